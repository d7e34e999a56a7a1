"""The accuracy and the cost of forecasts."""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gluonts.model.forecast as gluonts_forecast
import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry
from gluonts.dataset.split import TestData
from gluonts.ev.aggregations import Mean
from gluonts.ev.metrics import MAE, MSE, DirectMetric, MeanSumQuantileLoss
from gluonts.model import evaluate_forecasts

from deltaflow.compare.models import Trained
from deltaflow.errors import DataError
from deltaflow.forecast.forecasts import RealTimeForecast
from deltaflow.heads import DECILES

INTERVALS = {"coverage_50": (0.25, 0.75), "coverage_80": (0.1, 0.9), "coverage_95": (0.025, 0.975)}
"""The central intervals whose coverage is measured, by their lower and upper levels."""

ALL_LEVELS = sorted({*DECILES, *(level for pair in INTERVALS.values() for level in pair)})

TIMING_SECONDS = 5.0
"""The total time after which passes over a test are not repeated."""

ACCURACY = ("mean_weighted_quantile_loss", "mse", "mae", "nll", *INTERVALS)
"""The measures of accuracy. Each appears in the results three times: over all pooled values; as
``mse[HR]``, for each channel; and as ``balanced_mse``, the mean over the channels, each divided by
its unit (see `Task.scale`), so that no channel dominates the mean."""


def check_channels(forecasts: Sequence[RealTimeForecast], channels: Sequence[str]) -> None:
    """Raise an error unless all forecasts have the channels of the training data, in order.

    The scores and the unit of a channel are found by its position.
    """
    for forecast in forecasts:
        if forecast.target != tuple(channels) or forecast.ignored:
            raise DataError(
                f"the channels of the test are not {list(channels)}, as in the training data",
                "split training and test from one data set",
                item=forecast.item_id,
                field="target",
            )


def accuracy(
    forecasts: Sequence[RealTimeForecast],
    test: TestData,
    channels: Sequence[str],
    scale: np.ndarray,
) -> dict[str, float]:
    """Score forecasts by GluonTS's evaluation, and their distributions by their likelihood.

    Parameters
    ----------
    forecasts, test
        The forecasts, in the order of the test, and what they are of.
    channels, scale
        The D names, and the unit ``(D,)`` of each channel.

    Returns
    -------
    dict
        The measures of `ACCURACY`. The squared error is that of the mean, the absolute error that
        of the median. Channels that are never observed, and a likelihood that a forecast does not
        have, are left out; channels that are always 0 are left out of the balanced quantile loss.
    """
    labels = _labels(test)
    observed = np.isfinite(labels)
    by_channel = _evaluate(forecasts, test).set_axis(pd.Index(channels))
    by_channel["nll"] = _negative_log_likelihood(forecasts, labels)
    by_channel["size"] = np.abs(np.where(observed, labels, 0.0)).sum(axis=(0, 2))
    by_channel["count"], by_channel["unit"] = observed.sum(axis=(0, 2)), scale
    by_channel = by_channel[by_channel["count"] > 0]
    losses, sizes = by_channel["mean_sum_quantile_loss"], by_channel["size"]
    by_channel = by_channel.assign(mean_weighted_quantile_loss=losses / sizes)

    balanced = by_channel.assign(
        mean_weighted_quantile_loss=losses / sizes.where(sizes > 0),  # of zeros it is infinite
        mse=by_channel["mse"] / by_channel["unit"] ** 2,
        mae=by_channel["mae"] / by_channel["unit"],
        nll=by_channel["nll"] - np.log(by_channel["unit"]),
    ).mean()
    results = {}
    for name in ACCURACY:
        results[name] = np.average(by_channel[name], weights=by_channel["count"])
        results[f"balanced_{name}"] = balanced[name]
        results |= {f"{name}[{channel}]": value for channel, value in by_channel[name].items()}
    # A quantile loss is weighted by the size of its labels, other means by their number.
    results["mean_weighted_quantile_loss"] = losses.sum(skipna=False) / sizes.sum()
    return {name: float(value) for name, value in results.items() if not np.isnan(value)}


def squared_errors(
    forecasts: Sequence[RealTimeForecast], test: TestData, scale: np.ndarray
) -> dict[str, Any]:
    """Return the squared errors of the mean, summed over the queries of each item.

    They give the balanced squared error of any choice of items.

    Parameters
    ----------
    forecasts, test
        The forecasts, in the order of the test, and what they are of.
    scale
        The unit ``(D,)`` of each channel.

    Returns
    -------
    dict
        Two lists ``(N, D)``: `count`, of the observed labels, and `sum`, of their squared errors
        over the squared unit, to four digits.
    """
    labels = _labels(test)
    observed = np.isfinite(labels)
    means = [np.atleast_2d(forecast.mean.T) for forecast in forecasts]  # (D, Q) each
    squares = np.where(observed, (np.stack(means) - labels) / scale[:, None], 0.0) ** 2
    sums = [[float(f"{own:.3e}") or 0 for own in row] for row in squares.sum(axis=2)]
    return {"count": observed.sum(axis=2).tolist(), "sum": sums}


def timed_forecasts(
    trained: Trained, test: TestData
) -> tuple[list[RealTimeForecast], dict[str, float]]:
    """Forecast a test, and return the forecasts and the costs of the row.

    Returns
    -------
    forecasts
        The forecasts, in the order of the test.
    costs
        `parameters`; `epochs` until training stopped; `seconds_per_epoch`, their median;
        `ms_per_forecast`, milliseconds per forecast series in the fastest of three passes over the
        test (fewer if they take longer than `TIMING_SECONDS`); `evaluations_per_batch`,
        vector-field evaluations per forecast batch, if the encoder has any.
    """
    encoder = None if trained.network is None else trained.network.network.encoder
    costs = {"parameters": float(trained.num_parameters), "epochs": float(len(trained.curve))}
    if trained.curve:
        costs["seconds_per_epoch"] = statistics.median(e["seconds"] for e in trained.curve)
    entries = list(test.input)
    forecasts: list[Any] = []
    passes: list[float] = []
    while len(passes) < 3 and sum(passes) < TIMING_SECONDS:
        if encoder is not None:
            encoder.reset_num_evaluations()
        began = time.perf_counter()
        forecasts = list(trained.predictor.predict(entries))
        passes.append(time.perf_counter() - began)
    costs["ms_per_forecast"] = 1000 * min(passes) / len(entries)
    if trained.network and encoder and encoder.num_evaluations:
        batches = math.ceil(len(entries) / trained.network.batch_size)
        costs["evaluations_per_batch"] = encoder.num_evaluations / batches
    return forecasts, costs


def _labels(test: TestData) -> np.ndarray:
    """Return the labels ``(N, D, Q)`` of a test."""
    return np.stack([np.atleast_2d(label["target"]) for label in test.label])


def _evaluate(forecasts: Sequence[RealTimeForecast], test: TestData) -> pd.DataFrame:
    """Return the measures that GluonTS computes, a row per channel."""
    items, last_axis = 0, np.ndim(next(iter(test.label))["target"])
    # GluonTS draws a progress bar, and divides by the number of values, which may be 0.
    with contextlib.redirect_stderr(io.StringIO()), np.errstate(invalid="ignore"):
        raw = evaluate_forecasts(
            map(_tabulated, forecasts, test.label),
            test_data=test,
            metrics=[
                MeanSumQuantileLoss(DECILES),
                MSE(),
                MAE(),
                *(partial(_coverage, name) for name in INTERVALS),
            ],
            axis=(items, last_axis),
        )
    return raw.rename(columns={"MSE[mean]": "mse", "MAE[0.5]": "mae"})


def _coverage(name: str, axis: Any = None) -> DirectMetric:
    """Return the metric of the share of the labels within an interval, its ends included.

    The difference of GluonTS's coverage at both levels would leave out labels at the lower end,
    such as the zeros among counts.
    """
    low, high = map(str, INTERVALS[name])

    def inside(data: Mapping[str, np.ndarray]) -> np.ndarray:
        return ((data[low] <= data["label"]) & (data["label"] <= data[high])).astype(float)

    return DirectMetric(name=name, stat=inside, aggregate=Mean(axis=axis))


def _tabulated(forecast: RealTimeForecast, label: DataEntry) -> gluonts_forecast.QuantileForecast:
    """Compute mean and quantiles of a forecast once, for all metrics.

    A quantile of a Student-t distribution takes a microsecond, and few pairs of query and channel
    have a label: without one, the quantiles stay 0.
    """
    observed = np.isfinite(label["target"].T)  # (Q,) or (Q, D)
    arrays = np.zeros((1 + len(ALL_LEVELS), *observed.shape))
    arrays[0] = forecast.mean
    arrays[1:, observed] = forecast.quantiles(ALL_LEVELS, observed)
    keys = ["mean", *map(str, ALL_LEVELS)]
    return gluonts_forecast.QuantileForecast(arrays, forecast.start_date, keys, forecast.item_id)


def _negative_log_likelihood(
    forecasts: Sequence[RealTimeForecast], labels: np.ndarray
) -> np.ndarray:
    """Return the mean ``-log p`` of each channel's labels ``(N, D, Q)``: ``(D,)``.

    In the units of the data. NaN if a forecast has no distribution, or a channel no label.
    """
    losses = []
    for forecast, label in zip(forecasts, labels, strict=True):
        log_prob = forecast.log_prob(label.T if np.ndim(forecast.mean) == 2 else label[0])
        if log_prob is None:
            return np.full(labels.shape[1], np.nan)
        losses.append(-np.atleast_2d(log_prob.T))
    count = np.isfinite(labels).sum(axis=(0, 2))
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(labels), losses, 0.0).sum(axis=(0, 2)) / count
