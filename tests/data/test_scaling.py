"""Scalings: what a row looks like depends on the rows up to it and on the training set alone."""

import numpy as np
import pytest
import torch

from deltaflow.data.scaling import SCALINGS, LastScaling, RunningScaling
from deltaflow.data.series import Series
from deltaflow.data.statistics import LIMIT, Statistics

CENTRED = np.array([True])


def fit(*items) -> Statistics:
    """The statistics of items ``(T,)`` or ``(T, C)``."""
    data = [
        Series(
            item_id=None,
            times=np.arange(len(item), dtype=float),
            values=np.asarray(item, dtype=float).reshape(len(item), -1),
            covariates=np.empty((len(item), 0)),
            static_real=np.empty(0),
            static_cat=np.empty(0, dtype=np.int64),
        )
        for item in items
    ]
    return Statistics.fit(data, [f"channel {i}" for i in range(data[0].values.shape[1])])


def units(scaling, values):
    """Location and scale ``(C,)`` of what follows the values ``(T,)`` or ``(T, C)`` of a series."""
    values = torch.tensor(np.asarray(values, dtype=float)).reshape(1, len(values), -1)
    _, memory = scaling.read(values)
    return tuple(part[0].numpy() for part in scaling.outputs(memory))


@pytest.fixture(params=SCALINGS)
def make_scaling(request):
    return SCALINGS[request.param]


@pytest.fixture
def patchy():
    """Values ``(4, 30, 3)`` with gaps; a channel that begins late, and one never observed."""
    rng = np.random.default_rng(0)
    values = rng.normal([5, 0, 1e6], [1, 100, 1], (4, 30, 3))
    values[rng.random(values.shape) < 0.4] = np.nan
    values[1, :20, 0] = np.nan
    values[2, :, 1] = np.nan
    return values


def test_reading_row_by_row_and_at_once_are_the_same(make_scaling, patchy):
    scaling = make_scaling(fit(*patchy), np.array([True, True, False]))
    rows, memory = scaling.read(torch.tensor(patchy))
    _, kept = scaling.read(torch.full((4, 1, 3), torch.nan, dtype=torch.float64))
    assert kept.shape == memory.shape
    for step in range(patchy.shape[1]):
        row, kept = scaling.read_next(kept, torch.tensor(patchy[:, step]))
        assert torch.equal(row.values, rows.values[:, step])
        assert torch.equal(row.observed, rows.observed[:, step])
    assert torch.equal(row.levels, rows.levels)
    torch.testing.assert_close(kept, memory, rtol=0, atol=0, equal_nan=True)


def test_later_rows_have_no_influence(make_scaling, patchy):
    scaling = make_scaling(fit(*patchy), np.array([True, True, False]))
    rows, _ = scaling.read(torch.tensor(patchy))
    changed = patchy.copy()
    changed[:, 12:] = -1e9
    after, _ = scaling.read(torch.tensor(changed))
    assert torch.equal(rows.values[:, :12], after.values[:, :12])


@pytest.mark.parametrize("size", [1e100, 1e-100, 5e-324, 1.0])
@pytest.mark.parametrize("shape", ["varying", "constant", "single", "zeros"])
@pytest.mark.parametrize("trained_on", ["the same", "large values", "small values"])
def test_values_of_any_size_are_read_as_finite_numbers(make_scaling, size, shape, trained_on):
    values = {"varying": [1.0, -0.5, 0.25], "constant": [1.0] * 3, "single": [1.0]}
    values = size * np.array(values.get(shape, [0.0, 0.0]))
    known = {"large values": [1e100, -1e100], "small values": [5e-324, 0.0]}
    statistics = fit(known.get(trained_on, values))
    for centred in (True, False):
        scaling = make_scaling(statistics, np.array([centred]))
        rows, memory = scaling.read(torch.tensor(values).reshape(1, -1, 1))
        assert rows.values.abs().max() <= LIMIT
        assert rows.levels.isfinite().all()
        loc, scale = scaling.outputs(memory)
        assert loc.isfinite().all()
        assert scale.isfinite().all()
        assert (scale > 0).all()


def test_an_unobserved_series_has_the_statistics_of_the_training_set():
    statistics = fit([1.0, 2, 3, 4], [10.0, 11])
    nothing = np.full(3, np.nan)
    running, last = RunningScaling(statistics, CENTRED), LastScaling(statistics, CENTRED)
    np.testing.assert_allclose(units(running, nothing), [statistics.center, statistics.spread])
    np.testing.assert_array_equal(units(last, nothing), [statistics.center, statistics.variation])


def test_running_units_are_mean_and_deviation_of_the_past():
    scaling = RunningScaling(fit([0.0, 1.0], [5.0, 7.0]), CENTRED)
    past = np.random.default_rng(0).normal(1e9, 0.01, 5000)  # of few digits, were it not shifted
    loc, scale = units(scaling, past)
    assert loc == pytest.approx(past.mean(), rel=1e-15)
    # The training set's deviation, about 1, counts for three observations.
    weight = 4999 / 5002
    assert np.log(scale) == pytest.approx(weight * np.log(past.std()), rel=1e-3)


def test_missing_values_do_not_move_the_units(make_scaling):
    scaling = make_scaling(fit([1.0, 2, 3, 4]), CENTRED)
    past = np.array([5.0, 9, 7])
    assert units(scaling, past) == units(scaling, np.insert(past, [0, 1, 3], np.nan))


def test_few_observations_lean_on_the_training_set_and_many_do_not():
    statistics = fit([0.0, 2.0], [10.0, 12.0])
    scaling = RunningScaling(statistics, CENTRED)
    _, one = units(scaling, [50.0])
    assert one == pytest.approx(statistics.within)
    wide = [0.0, 200.0]  # its own deviation is 100
    scales = [float(units(scaling, n * wide)[1][0]) for n in (1, 5, 500)]
    assert one < scales[0] < scales[1] < scales[2] == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("length", [2, 3, 5, 50])
def test_the_scale_of_unit_noise_is_one_however_few_values_there_are(length):
    rng = np.random.default_rng(length)
    values = rng.normal(rng.normal(0, 100, (4000, 1)), 1, (4000, length))
    scaling = RunningScaling(fit(*values), CENTRED)
    _, memory = scaling.read(torch.tensor(values).unsqueeze(-1))
    assert scaling.outputs(memory)[1].median() == pytest.approx(1, rel=0.05)


def test_items_of_quite_unlike_scale_keep_their_own():
    noise = np.random.default_rng(0).normal(size=500)
    scaling = RunningScaling(fit(noise, 1e3 * noise, 1e6 * noise), CENTRED)
    for size in (1e-6, 1.0, 1e9):
        assert units(scaling, size * noise)[1] == pytest.approx(size, rel=0.2)
    assert 0 < float(units(scaling, np.zeros(500))[1][0]) < 10  # of 1e3; nothing is divided by 0


def test_running_levels_say_where_a_series_stands():
    statistics = fit([0.0, 2.0], [10.0, 12.0])
    scaling = RunningScaling(statistics, CENTRED)
    rows, memory = scaling.read(torch.tensor([[[9.0], [10.0], [np.nan]]], dtype=torch.float64))
    loc, scale = (float(part) for part in scaling.outputs(memory))
    expected = [
        (loc - statistics.center[0]) / statistics.spread[0],
        np.log(scale / statistics.spread[0]),
    ]
    np.testing.assert_allclose(rows.levels[0], expected, rtol=1e-6)


def test_a_channel_that_is_not_centred_keeps_zero_and_is_scaled_by_its_magnitude():
    scaling = RunningScaling(fit([1.0, 3.0]), np.array([False]))
    loc, scale = units(scaling, np.full(1000, 500.0))
    assert loc == 0
    assert scale == pytest.approx(500, rel=0.05)


def test_changes_are_forecast_from_the_last_value_and_values_read_in_units_of_the_training_set():
    statistics = fit([[1.0, 5.0], [3.0, 7.0], [8.0, np.nan]])
    values = np.array([[2.0, np.nan], [4.0, np.nan], [np.nan, np.nan]])
    scaling = LastScaling(statistics, np.array([True, True]))
    loc, scale = units(scaling, values)
    np.testing.assert_array_equal(loc, [4.0, statistics.center[1]])
    np.testing.assert_array_equal(scale, statistics.variation)
    rows, _ = scaling.read(torch.tensor(values).unsqueeze(0))
    expected = (np.array([2.0, 4.0]) - statistics.center[0]) / statistics.spread[0]
    np.testing.assert_allclose(rows.values[0, :2, 0], expected, rtol=1e-6)

    scaling = LastScaling(statistics, np.array([True, False]))
    loc, scale = units(scaling, values)
    np.testing.assert_array_equal(loc, [4.0, 0.0])
    np.testing.assert_array_equal(scale, [statistics.variation[0], statistics.magnitude[1]])
