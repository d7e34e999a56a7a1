"""A flow of your own is one class; one line registers it as an encoder for every estimator.

python examples/custom_flow.py [--quick]
"""

import sys

import pandas as pd
import torch
from gluonts.ev.metrics import MSE, MeanWeightedSumQuantileLoss
from gluonts.model import Predictor, evaluate_model
from torch import Tensor, nn

from deltaflow import HoldPredictor, IrregularDataset, IrregularEstimator, TimeSplitter
from deltaflow.encoders import ENCODERS, flow_encoder
from deltaflow.flows import Flow, FlowMap
from deltaflow.tasks import irregular_sine


class RotationFlow(Flow):
    """Rotate pairs of features at learned frequencies: a harmonic oscillator, solved exactly."""

    semigroup = True  # two rotations are one by the sum of their angles
    closed_inverse = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.frequency = nn.Parameter(torch.logspace(-2, 0, dim // 2))  # radians per typical gap

    def prepare(self) -> FlowMap:
        """Return the rotation by ``frequency * t``, which is the identity at ``t = 0``."""

        def rotate(t: Tensor, x: Tensor) -> Tensor:
            angle = self.frequency * t
            cos, sin = angle.cos(), angle.sin()
            a, b = x.chunk(2, dim=-1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

        return rotate

    def inverse(
        self, t: Tensor, y: Tensor, *, tol: float | None = None, max_iter: int = 1000
    ) -> Tensor:
        """Rotate back."""
        self.check_inputs(t, y)
        return self.prepare()(-t, y)


ENCODERS["rotation"] = flow_encoder(RotationFlow)


def main(quick: bool) -> None:
    flow, t, x = RotationFlow(4), torch.rand(5, 1), torch.rand(5, 4)
    print("F(0, x) = x:", torch.equal(flow(torch.zeros(5, 1), x), x))
    print("inverse(t, F(t, x)) = x:", torch.allclose(flow.inverse(t, flow(t, x)), x), end="\n\n")

    data = IrregularDataset.from_long_dataframe(irregular_sine())
    splitter = TimeSplitter(after="72h", horizon="24h")
    length = splitter.prediction_length(data)
    train, template = splitter.split(data)
    models: dict[str, Predictor] = {"hold": HoldPredictor.fit(train, length)}
    for encoder in ("rotation", "gru_flow"):
        models[encoder] = IrregularEstimator(
            prediction_length=length,
            context_length=32,
            encoder=encoder,
            seed=0,
            blend=False,  # the networks alone, without simple forecasts, to compare them
            trainer_kwargs={"max_epochs": 10, "fast_dev_run": quick, "enable_progress_bar": False},
        ).train(train)
    metrics = [MeanWeightedSumQuantileLoss([0.1, 0.5, 0.9]), MSE()]
    instances = template.generate_instances(length)
    rows = [
        evaluate_model(model, test_data=instances, metrics=metrics) for model in models.values()
    ]
    print(pd.concat(rows).set_axis(list(models)).round(3))


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
