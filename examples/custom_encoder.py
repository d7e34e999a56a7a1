"""An encoder of your own in `deltaflow compare`: one file, and one line in the registry.

python examples/custom_encoder.py [--quick]

This encoder has neither a flow nor a solver: between two observations its state relaxes, at learned
rates, towards a learned point of rest.
"""

import sys
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from deltaflow.compare import CompareConfig, ComparedData, compare
from deltaflow.encoders import ENCODERS, RecurrentEncoder
from deltaflow.encoders.evolution import Evolution, Evolve
from deltaflow.training.options import TrainerOptions


class Relaxation(Evolution):
    """``h ← rest + exp(-rate · Δt) · (h - rest)``, which does not change the state at Δt = 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.linspace(-4.0, 1.0, hidden_size))
        self.rest = nn.Parameter(torch.zeros(hidden_size))

    def prepare(self) -> Evolve:
        """Return the map from state and gap to the state after it."""

        def relax(hidden: Tensor, delta_t: Tensor) -> Tensor:
            kept = torch.exp(-F.softplus(self.rate) * delta_t.unsqueeze(-1))
            return self.rest + kept * (hidden - self.rest)

        return relax


def relaxing_gru(num_channels: int, num_features: int, hidden_size: int) -> RecurrentEncoder:
    """Build a GRU whose state relaxes between the observations."""
    return RecurrentEncoder(num_channels, num_features, hidden_size, Relaxation(hidden_size))


ENCODERS["relaxing_gru"] = relaxing_gru


def main(quick: bool) -> None:
    config = CompareConfig(
        data=ComparedData(
            dataset="sine",
            dataset_kwargs={"num_series": 20, "length": 30} if quick else {},
            num_batches_per_epoch=2 if quick else 30,
        ),
        trainer=TrainerOptions(max_epochs=1 if quick else 10),
        encoders=["relaxing_gru", "gru", "gru_flow"],
        seeds=[0],
        output=Path("comparison/custom_encoder"),
    )
    compare(config, Console())


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
