"""Forecasts by groups of whole series, in Ray and Dask, are those of `predict_df`."""

import copy
import runpy
from pathlib import Path

import pandas as pd
import pytest

from deltaflow import predict_df

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def case(univariate_frame, trained):
    """A predictor, the past, and three times per item to ask for, one item left out."""
    frame = univariate_frame[["item_id", "timestamp", "HR"]]
    last = frame.groupby("item_id")["timestamp"].max().drop("p3")
    future = [(last + pd.Timedelta(hours=hours)).reset_index() for hours in (24, 1, 6)]
    future = pd.concat(future).sort_values(["item_id", "timestamp"], ignore_index=True)
    # One series at a time: matrix products of other shapes differ in their last bits.
    predictor = copy.deepcopy(trained("GRUFlowEstimator"))
    predictor.batch_size = 1
    return predictor, frame, future


def assert_same_forecasts(forecasts: pd.DataFrame, case) -> None:
    forecasts = forecasts.sort_values(["item_id", "timestamp"], ignore_index=True)
    alone = predict_df(*case, quantile_levels=[0.1, 0.9])
    pd.testing.assert_frame_equal(forecasts, alone, check_exact=True)


def test_dask_forecasts_whole_items(case):
    dask = pytest.importorskip("dask")
    dd = pytest.importorskip("dask.dataframe")
    example = runpy.run_path(str(EXAMPLES / "forecast_with_dask.py"))
    predictor, past, future = case
    with dask.config.set({"dataframe.convert-string": False}):
        parts = [dd.from_pandas(frame, npartitions=5) for frame in (past, future)]
        forecasts = example["forecast"](predictor, *parts).compute(scheduler="sync")
    assert_same_forecasts(forecasts, case)


def test_ray_forecasts_whole_items(case):
    ray = pytest.importorskip("ray")
    example = runpy.run_path(str(EXAMPLES / "forecast_with_ray.py"))
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        forecasts = example["forecast"](*case, num_actors=1)
    finally:
        ray.shutdown()
    assert_same_forecasts(forecasts, case)
