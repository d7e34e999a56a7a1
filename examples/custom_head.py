"""A head of your own is one GluonTS output class, and one line in the registry.

python examples/custom_head.py [--quick]
"""

import sys
from typing import ClassVar

import pandas as pd
import torch
import torch.nn.functional as F
from gluonts.ev.metrics import MSE, Coverage, MeanWeightedSumQuantileLoss
from gluonts.model import evaluate_model
from gluonts.torch.distributions import DistributionOutput
from torch import Tensor
from torch.distributions import Laplace

from deltaflow import IrregularDataset, IrregularEstimator, TimeSplitter
from deltaflow.heads import HEADS
from deltaflow.tasks import irregular_sine


class LaplaceOutput(DistributionOutput):
    """Laplace's distribution, whose most likely forecast is the median."""

    args_dim: ClassVar = {"loc": 1, "scale": 1}
    distr_cls = Laplace

    @classmethod
    def domain_map(cls, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the network's numbers into arguments, with a positive scale."""
        return loc.squeeze(-1), F.softplus(scale).squeeze(-1) + 1e-6

    @property
    def event_shape(self) -> tuple:
        """Return the shape of one value, a plain number."""
        return ()


HEADS["laplace"] = LaplaceOutput


def main(quick: bool) -> None:
    torch.manual_seed(0)
    data = IrregularDataset.from_long_dataframe(irregular_sine())
    splitter = TimeSplitter(after="72h", horizon="24h")
    length = splitter.prediction_length(data)
    train, template = splitter.split(data)
    metrics = [MeanWeightedSumQuantileLoss([0.1, 0.5, 0.9]), MSE(), Coverage(0.9)]
    rows = {}
    for head in ("laplace", "student_t"):
        predictor = IrregularEstimator(
            prediction_length=length,
            context_length=32,
            distr_output=head,
            seed=0,
            blend=False,  # the networks alone, without simple forecasts, to compare them
            trainer_kwargs={"max_epochs": 10, "fast_dev_run": quick, "enable_progress_bar": False},
        ).train(train)
        instances = template.generate_instances(length)
        rows[head] = evaluate_model(predictor, test_data=instances, metrics=metrics)
    print(pd.concat(list(rows.values())).set_axis(list(rows)).round(3))


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
