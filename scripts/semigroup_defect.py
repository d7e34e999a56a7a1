"""Measure how much two steps of a trained flow differ from one.

A gap is crossed in one step, or in two if there is an observation in between. The script prints the
median distance between both results, over hidden states of the clinical sample, as a share of the
distance that the state moves. Run ``python scripts/semigroup_defect.py --help``.
"""

from __future__ import annotations

import argparse

import pandas as pd
import torch
from rich.console import Console

import deltaflow
from deltaflow.tables import as_rich
from deltaflow.tasks import clinical_task

ESTIMATORS = {
    "gru_flow": deltaflow.GRUFlowEstimator,
    "coupling_flow": deltaflow.CouplingFlowEstimator,
    "resnet_flow": deltaflow.ResNetFlowEstimator,
}

GAPS = (0.1, 1.0, 10.0)
"""The gaps, in typical gaps. Each of the two steps is half as long."""


def main() -> None:
    """Train each flow, and print a table of the defects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    task = clinical_task()
    rows = {}
    for name, estimator_class in ESTIMATORS.items():
        estimator = estimator_class(
            task.prediction_length,
            seed=arguments.seed,
            folds=0,
            trainer_kwargs={"max_epochs": arguments.epochs, "logger": False},
        )
        network = estimator.train(task.training).network
        batch = next(iter(estimator.create_data_module(task.training).train_dataloader()))
        with torch.no_grad():
            hidden = network.encode(batch).state.hidden.double()
            flow = network.encoder.evolution.flow.double()
            shares = []
            for gap in GAPS:
                half = torch.full((len(hidden), 1), gap / 2, dtype=hidden.dtype)
                moved = flow(2 * half, hidden) - hidden
                defect = flow.semigroup_defect(half, half, hidden)
                shares.append((defect.norm(dim=-1) / moved.norm(dim=-1)).median().item())
        rows[name] = [f"{share:.1%}" for share in shares]
    columns = [f"{gap:g} typical gaps" for gap in GAPS]
    Console().print(as_rich(pd.DataFrame.from_dict(rows, "index", columns=columns)))


if __name__ == "__main__":
    main()
