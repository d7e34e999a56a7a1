"""Score deltaflow's estimators and GluonTS's DeepAR on one regular data set, in one run.

All get the same window lengths, number of optimiser steps, batch size and width, and their own
default learning rates. Run ``python scripts/compare_with_deepar.py --help``.
"""

from __future__ import annotations

import argparse
import time

import pandas as pd
import torch
from gluonts.dataset.split import split
from gluonts.ev.metrics import MeanWeightedSumQuantileLoss
from gluonts.model.evaluation import evaluate_model
from gluonts.torch.model.deepar import DeepAREstimator
from rich.console import Console

import deltaflow
from deltaflow.tables import as_rich
from deltaflow.tasks import regular_seasonal

HORIZON, CONTEXT, WIDTH, BATCH_SIZE, BATCHES = 24, 72, 32, 32, 50
METRIC = MeanWeightedSumQuantileLoss([level / 10 for level in range(1, 10)])


def main() -> None:
    """Train each estimator, and print a table of their losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20, help=f"of {BATCHES} steps each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--series", type=int, default=50)
    arguments = parser.parse_args()

    data = regular_seasonal(num_series=arguments.series, length=24 * 21, seed=arguments.seed)
    train, template = split(data, offset=-3 * HORIZON)
    test = template.generate_instances(HORIZON, windows=3)
    trainer_kwargs = {
        "max_epochs": arguments.epochs,
        "logger": False,
        "enable_checkpointing": True,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    shared = {"prediction_length": HORIZON, "context_length": CONTEXT, "hidden_size": WIDTH}
    shared |= {"batch_size": BATCH_SIZE, "num_batches_per_epoch": BATCHES}
    estimators = {
        "DeepAR (GluonTS)": DeepAREstimator(
            freq="h", **shared, trainer_kwargs={**trainer_kwargs, "gradient_clip_val": 10.0}
        ),
        **{
            cls.__name__: cls(**shared, seed=arguments.seed, folds=0, trainer_kwargs=trainer_kwargs)
            for cls in (
                deltaflow.GRUFlowEstimator,
                deltaflow.CouplingFlowEstimator,
                deltaflow.ResNetFlowEstimator,
                deltaflow.GRUEstimator,
            )
        },
    }
    rows = {}
    reference = None
    for name, estimator in estimators.items():
        torch.manual_seed(arguments.seed)
        start = time.perf_counter()
        predictor = estimator.train(train)
        seconds = time.perf_counter() - start
        torch.manual_seed(arguments.seed)
        loss = float(evaluate_model(predictor, test_data=test, metrics=[METRIC]).iloc[0, 0])
        reference = reference or loss
        rows[name] = f"{loss:.4f}", f"{loss / reference:.3f}", f"{seconds:.0f}"
    columns = ["mean weighted quantile loss", "ratio to DeepAR", "training, s"]
    Console().print(as_rich(pd.DataFrame.from_dict(rows, "index", columns=columns)))


if __name__ == "__main__":
    main()
