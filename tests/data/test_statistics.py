"""Statistics of a training set."""

import json

import numpy as np
import pytest

from deltaflow import DataError
from deltaflow.data import statistics as module
from deltaflow.data.series import Series
from deltaflow.data.statistics import Statistics


def series(values, times=None, covariates=None) -> Series:
    values = np.atleast_2d(np.asarray(values, dtype=float).T).T  # (T, C)
    times = np.arange(len(values), dtype=float) if times is None else np.asarray(times, float)
    known = np.empty((len(times), 0)) if covariates is None else np.asarray(covariates, float)
    return Series("a", times, values, known, np.empty(0), np.empty(0, dtype=np.int64))


def fit(*values) -> Statistics:
    return Statistics.fit([series(v) for v in values], ["HR"])


def test_statistics_are_those_of_the_observed_values():
    statistics = fit([1, np.nan, 3], [np.nan, np.nan], [8, 8, 8, np.nan])
    observed = np.array([1, 3, 8, 8, 8])
    assert statistics.center == pytest.approx([observed.mean()])
    assert statistics.spread == pytest.approx([observed.std()])
    assert statistics.magnitude == pytest.approx([observed.mean()])
    # The others do not vary. Half of all pairs of a normal distribution of deviation 1 lie further
    # apart than 0.954.
    assert statistics.within == pytest.approx([(3 - 1) / 0.954], rel=0.02)


def test_the_typical_gap_is_the_median_over_the_observation_times():
    data = [series([1, 2, 3], times=[0, 10, 1000, 5000]), series([1, 2], times=[3, 10])]
    # Row 3 of the first is a query, so the gaps are 10, 990 and 7.
    assert Statistics.fit(data, ["HR"]).typical_gap == 10


def test_the_typical_span_is_the_median_over_the_items():
    times = [[0, 10, 1000, 5000], [3, 10], [0, 20, 100]]
    # The last row of each is a query.
    data = [series(np.ones(len(row) - 1), times=row) for row in times]
    assert Statistics.fit(data, ["HR"]).typical_span == 20
    assert fit([1.0], [2.0]).typical_span == fit([1.0], [2.0]).typical_gap == 1.0


def test_medians_of_more_data_than_are_kept_are_close(monkeypatch):
    gaps = np.random.default_rng(0).exponential(10.0, (500, 20))
    data = [series(np.arange(20), times=own.cumsum()) for own in gaps]
    exact = Statistics.fit(data, ["HR"]).typical_gap
    monkeypatch.setattr(module, "SAMPLE_SIZE", 1000)
    sampled = Statistics.fit(data, ["HR"]).typical_gap
    assert sampled != exact
    # The median of 1000 exponential gaps deviates by 10 / sqrt(1000), 4.5 %.
    assert sampled == pytest.approx(exact, rel=0.2)
    assert Statistics.fit(data, ["HR"]).typical_gap == sampled


def test_statistics_survive_json():
    statistics = fit([1, 2, np.nan], [5, 7])
    assert Statistics.from_dict(json.loads(json.dumps(statistics.to_dict()))) == statistics


@pytest.mark.parametrize("size", [1e300, 1e-300, 1.0])
def test_variation_of_values_of_any_size_is_exact(size):
    with np.errstate(over="raise", invalid="raise"):
        statistics = fit(size * np.array([1.0, 3.0]), size * np.array([10.0, 10.0, 16.0]))
    assert statistics.variation == pytest.approx([size * np.sqrt(26 / 3)], rel=1e-12, abs=0)


def test_a_target_missing_everywhere_is_refused():
    with pytest.raises(DataError, match="'HR': the target is missing everywhere"):
        fit([np.nan, np.nan])
    with pytest.raises(DataError, match="training set is empty"):
        Statistics.fit([], ["HR"])


def test_variation_is_the_deviation_within_items_that_repeat_a_channel():
    statistics = fit([[1.0], [3.0]], [[10.0], [10.0], [16.0]], [[500.0]])
    squares = 2 * 1.0 + 3 * 8.0  # around the means 2 and 12; the single value says nothing
    assert statistics.variation == pytest.approx([np.sqrt(squares / (1 + 2))])
    assert statistics.count == [6]


@pytest.mark.parametrize("length", [2, 3, 5, 50])
def test_deviations_of_unit_noise_are_one_however_few_values_an_item_has(length):
    rng = np.random.default_rng(length)
    values = rng.normal(rng.normal(0, 100, (4000, 1)), 1, (4000, length))
    statistics = fit(*values)
    assert statistics.within == pytest.approx([1], rel=0.05)
    assert statistics.variation == pytest.approx([1], rel=0.05)
