"""Scores of forecasts during validation and test, in the units of the data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric

from deltaflow.heads import DECILES


class ForecastScores(Metric):
    """Squared and absolute error, quantile loss and coverage of all channels at once.

    Sums per channel are accumulated in float64 over batches and processes, so the result does not
    depend on how the data are divided into batches. Only observed values count.

    Parameters
    ----------
    channels
        Names of the D channels.

    Examples
    --------
    >>> scores = ForecastScores(["HR"])
    >>> quantiles = torch.linspace(60.0, 76.0, 9).unsqueeze(-1)  # the nine deciles of one value
    >>> scores.update(torch.tensor([70.0]), torch.tensor([0]), torch.tensor([68.0]), quantiles)
    >>> {name: round(float(score), 3) for name, score in scores.compute().items()}
    {'mse': 4.0, 'mae': 2.0, 'mean_weighted_quantile_loss': 0.029, 'coverage_80': 1.0}
    """

    full_state_update = False
    higher_is_better = None

    sums: Tensor

    def __init__(self, channels: Sequence[str]) -> None:
        super().__init__()
        self.channels = list(channels)
        zeros = torch.zeros(6, len(self.channels), dtype=torch.float64)
        self.add_state("sums", default=zeros, dist_reduce_fx="sum")

    def update(self, values: Tensor, channels: Tensor, mean: Tensor, quantiles: Tensor) -> None:
        """Add N observed values.

        Parameters
        ----------
        values, channels, mean
            ``(N,)`` observed values, the index of each value's channel, and the forecast means.
        quantiles
            ``(9, N)`` forecast deciles.
        """
        levels = torch.tensor(DECILES, dtype=torch.float64, device=values.device).unsqueeze(-1)
        error = values - quantiles.double()  # (9, N)
        losses = 2 * torch.maximum(levels * error, (levels - 1) * error).mean(dim=0)
        inside = (quantiles[0] <= values) & (values <= quantiles[-1])
        squared, absolute = (values - mean).square(), (values - quantiles[4]).abs()
        parts = torch.ones_like(values), values.abs(), squared, absolute, losses, inside
        count = len(self.channels)
        sums = [torch.bincount(channels, part.double(), minlength=count) for part in parts]
        self.sums = self.sums + torch.stack(sums).to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores over all values and, if there are several channels, ``mse[HR]`` etc.

        ``mse`` is the squared error of the mean, ``mae`` the absolute error of the median,
        ``mean_weighted_quantile_loss`` the mean loss of the nine deciles divided by the mean
        absolute value, unless all values are 0, and ``coverage_80`` the share of values between the
        outer deciles. ``balanced_quantile_loss`` is the average of several channels' quantile
        losses, in which no channel dominates because of its unit; channels that are always 0 are
        left out. A channel without values has no scores.
        """
        results = _scores(self.sums.sum(dim=1))
        if len(self.channels) > 1:
            by_channel = [_scores(own) for own in self.sums.unbind(1)]
            for channel, own in zip(self.channels, by_channel, strict=True):
                results |= {f"{name}[{channel}]": score for name, score in own.items()}
            loss = "mean_weighted_quantile_loss"
            _, sizes, *_ = self.sums
            losses = [own[loss] for own, size in zip(by_channel, sizes, strict=True) if size > 0]
            if results:
                results["balanced_quantile_loss"] = torch.stack(losses or [results[loss]]).mean()
        return results


def _scores(sums: Tensor) -> dict[str, Tensor]:
    """Return the scores of the sums ``(6,)`` over values."""
    count, size, squared, absolute, quantile, covered = sums
    if count == 0:
        return {}
    return {
        "mse": squared / count,
        "mae": absolute / count,
        "mean_weighted_quantile_loss": quantile / (size if size > 0 else count),
        "coverage_80": covered / count,
    }


def score_table(results: Mapping[str, Tensor]) -> str:
    """Return logged scores as text, with a column per score and a row per channel.

    Lightning would print them with Rich, which drops ``[bili]`` as markup.

    >>> print(score_table({"mae": torch.tensor(2.5), "mae[bili]": torch.tensor(1.5)}))
          mae
          2.5
    bili  1.5
    """
    split = {name: re.fullmatch(r"(.*?)(?:\[(.*)\])?", name, re.DOTALL) for name in results}
    columns: dict[str, dict[str, str]] = {}
    for name, match in split.items():
        assert match is not None  # the pattern matches any text
        measure, channel = match[1], match[2] or ""
        columns.setdefault(measure, {})[channel] = f"{float(results[name]):.5g}"
    return pd.DataFrame(columns).fillna("").to_string()
