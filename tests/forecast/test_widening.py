"""Intervals beyond the lead times of the training data."""

import numpy as np
import pytest

from deltaflow import (
    DataError,
    DeltaflowError,
    HoldPredictor,
    IrregularEstimator,
    LiveForecaster,
    WideningPredictor,
    load_predictor,
)
from deltaflow.data.splitter import cut_entry
from deltaflow.forecast.held_out import HeldOut
from deltaflow.forecast.predictor import leads_of
from deltaflow.forecast.widening import LARGEST_POWER
from deltaflow.tasks import regular_seasonal, synthetic_task
from deltaflow.training.widening import SHARE, reach_of, widened

HOUR = 3600.0


@pytest.fixture(scope="module")
def task():
    return synthetic_task("sink", num_series=60, length=48)


@pytest.fixture(scope="module")
def hold(task):
    return HoldPredictor.fit(task.training, task.prediction_length)


def small_estimator(task, **options) -> IrregularEstimator:
    trainer_kwargs = {"max_epochs": 1, "enable_progress_bar": False, "logger": False}
    return IrregularEstimator(
        task.prediction_length,
        encoder="linear_flow",
        hidden_size=8,
        num_batches_per_epoch=2,
        seed=0,
        trainer_kwargs=trainer_kwargs,
        **options,
    )


def first(predictor, task, **arguments):
    """The forecast of one item, and its lead times in hours."""
    entry = next(iter(task.tests["sink"].input))
    forecast = next(iter(predictor.predict([entry], **arguments)))
    return forecast, leads_of(entry, task.prediction_length) / HOUR


def test_quantiles_move_away_from_the_median_beyond_the_reach_alone(task, hold):
    plain, lead = first(hold, task)
    wide, _ = first(WideningPredictor(hold, 24 * HOUR, [1.5, 0.0]), task)
    known = np.isfinite(lead)
    ratio = np.maximum(lead[known] / 24, 1)
    assert (ratio > 1.5).any()
    assert (ratio == 1).any()
    factor = np.stack([ratio**1.5, np.ones_like(ratio)], axis=-1)
    median = plain.quantile(0.5)[known]
    for level in (0.01, 0.1, 0.5, 0.7, 0.975):
        expected = median + factor * (plain.quantile(level)[known] - median)
        np.testing.assert_allclose(wide.quantile(level)[known], expected, rtol=1e-12)
    cells = np.zeros(plain.quantile(0.5).shape, dtype=bool)
    cells[:3, 0] = cells[5, 1] = True
    levels = [0.1, 0.9]
    every = wide.quantiles(levels)[:, cells]
    np.testing.assert_allclose(wide.quantiles(levels, cells), every, rtol=1e-12)
    np.testing.assert_array_equal(wide.mean, plain.mean)
    np.testing.assert_allclose(wide.copy_dim(1).quantile(0.9), wide.quantile(0.9)[:, 1])


def test_within_the_reach_forecasts_stay_what_they_are(task, hold):
    plain, lead = first(hold, task)
    wide, _ = first(WideningPredictor(hold, np.nanmax(lead) * HOUR, [1.5, 2.0]), task)
    assert type(wide) is type(plain)
    np.testing.assert_array_equal(wide.quantile(0.9), plain.quantile(0.9))


def test_samples_and_densities_are_those_of_the_wider_quantiles(task):
    network = small_estimator(task, folds=0, supports="real").train(task.training)
    wide, lead = first(WideningPredictor(network, 24 * HOUR, [1.0, 1.0]), task)
    known = np.isfinite(lead)
    # The density is the derivative of the level by the quantile.
    low, high = wide.quantiles([0.6999, 0.7001])[:, known]
    density = np.exp(wide.log_prob(wide.quantile(0.7))[known])
    np.testing.assert_allclose(density, 2e-4 / (high - low), rtol=1e-3)
    samples = wide.to_sample_forecast(2000).samples[:, known]
    share = (samples <= wide.quantile(0.9)[known]).mean(axis=0)
    assert np.abs(share - 0.9).max() < 0.05


def test_the_power_is_the_least_that_covers_what_it_is_fitted_to(task, hold):
    pairs, reach = list(task.validation), 12 * HOUR
    wider = WideningPredictor.fit(hold, reach, pairs)
    scored = HeldOut.of([hold], pairs, hold.schema)
    low, median, high = scored.inner
    for channel, power in enumerate(wider.powers):
        own = (scored.channel == channel) & (scored.lead > reach)
        side = np.where(scored.value < median, median - low, high - median)[own]
        score = np.abs(scored.value - median)[own] / side
        covered = (score <= (scored.lead[own] / reach) ** power).mean()
        assert covered >= 0.8
        assert power == 0 or covered < 0.8 + 2 / own.sum()


def held_out(value, width, lead) -> HeldOut:
    """Values of the first channel, which are all forecast by 0 and an interval up to ``width``."""
    value, width, lead = (np.asarray(part, dtype=float) for part in (value, width, lead))
    quantiles = np.stack([np.zeros_like(width), np.zeros_like(width), width])[None]
    count = np.arange(len(value))
    return HeldOut(count.astype(str), 0 * count, lead * HOUR, lead * HOUR, value, quantiles)


def test_values_that_no_power_covers_do_not_decide_on_it(task, hold, monkeypatch):
    """As for counts, whose quantiles may coincide: no power widens an interval of width 0."""
    double = held_out(np.full(7, 2.0), np.ones(7), np.full(7, 4.0))  # covered by a power of 1/2
    unreachable = held_out(np.ones(3), np.zeros(3), np.full(3, 4.0))
    monkeypatch.setattr(HeldOut, "of", lambda *_: HeldOut.joined([double, unreachable]))
    assert WideningPredictor.fit(hold, HOUR, []).powers[0] == pytest.approx(0.5)


def test_intervals_that_are_too_narrow_at_the_reach_give_no_enormous_power(task, hold, monkeypatch):
    close = held_out(np.full(9, 2.0), np.ones(9), np.full(9, 1 + 1e-6))
    monkeypatch.setattr(HeldOut, "of", lambda *_: close)
    wide = WideningPredictor.fit(hold, HOUR, [])
    assert wide.powers[0] == LARGEST_POWER


def test_intervals_are_finite_at_any_lead_time(task, hold):
    entry = next(iter(task.tests["sink"].input))
    times = np.array(entry["feat_dynamic_real"])
    times[0, -1] += 1e15
    far = next(iter(WideningPredictor(hold, 1.0, [3881.0, 8.0]).predict(
        [{**entry, "feat_dynamic_real": times}]
    )))  # fmt: skip
    assert np.isfinite(far.quantiles([0.1, 0.5, 0.9])).all()


def test_items_that_end_too_early_teach_nothing(task, hold):
    with pytest.raises(DataError, match="no held-out item extends beyond"):
        WideningPredictor.fit(hold, 1e9, list(task.validation))


def test_nearly_all_targets_of_training_windows_lie_within_the_reach(task):
    data = small_estimator(task).create_data_module(task.training)
    leads = [
        window.series.times[row] - window.series.times[window.queries.start - 1]
        for window in (data.training_windows[number] for number in range(2000))
        for row in range(window.queries.start, window.queries.stop)
    ]
    assert abs(np.mean(np.array(leads) <= reach_of(data.training_windows)) - SHARE) < 0.01


@pytest.mark.parametrize("folds", [None, 2])
def test_an_estimator_learns_how_intervals_widen(task, tmp_path, folds):
    """With validation data, and with folds; the predictor can be saved, and goes live."""
    estimator = small_estimator(task, widening=True, folds=folds, blend=False, supports="real")
    predictor = estimator.train(task.training, None if folds else task.validation)
    members = [predictor] if folds is None else predictor.members[0].members
    assert all(isinstance(member, WideningPredictor) for member in members)
    longest = 48 * HOUR  # of the validation; training series take 96 hours
    assert 0.5 * longest < members[0].reach < 2 * longest
    predictor.serialize(tmp_path)
    wide, _ = first(predictor, task)
    loaded, _ = first(load_predictor(tmp_path, device="cpu"), task)
    np.testing.assert_array_equal(loaded.quantile(0.9), wide.quantile(0.9))
    LiveForecaster(predictor)


def test_known_query_times_teach_nothing(task, hold):
    """Items may end with times at which nothing is known yet."""
    data = small_estimator(task).create_data_module(task.training)
    ends = [(entry, entry["target"].shape[-1]) for entry in task.training]
    powers = [
        widened(
            hold, data, [cut_entry(entry, end - 4, end - 4 + asked)[0] for entry, end in ends]
        ).powers
        for asked in (0, 4)
    ]
    np.testing.assert_array_equal(*powers)


def test_widening_needs_items_that_are_held_out(task):
    with pytest.raises(DeltaflowError, match="give validation_data, or folds"):
        small_estimator(task, widening=True, folds=0).train(task.training)
    (item, *_) = task.training
    with pytest.raises(DeltaflowError, match="give validation_data, or more items"):
        small_estimator(task, widening=True).train([cut_entry(item, 20, 20)[0]])


def test_a_regular_series_cannot_teach_it():
    estimator = IrregularEstimator(4, widening=True, num_batches_per_epoch=1,
                                   trainer_kwargs={"max_epochs": 1})  # fmt: skip
    data = regular_seasonal(num_series=4)
    with pytest.raises(DataError, match="widening needs lead times of irregular series"):
        estimator.train(data[:2], data[2:])
