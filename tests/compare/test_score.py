from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.split import split
from torch.distributions import Normal

from deltaflow import DataError, EnsemblePredictor, GRUFlowEstimator, IrregularDataset, TimeSplitter
from deltaflow.compare.score import (
    ACCURACY,
    ALL_LEVELS,
    _tabulated,
    accuracy,
    check_channels,
    squared_errors,
)
from deltaflow.forecast.forecasts import DistributionForecast, QuantileForecast, SharedDistribution

LOC, SCALE = (70.0, 37.0), (10.0, 0.5)


@pytest.fixture
def test_data():
    """Two items, of which the second has no value of the second channel; the third never has."""
    frame = pd.DataFrame(
        {
            "item_id": ["a"] * 4 + ["b"] * 3,
            "timestamp": [0.0, 1, 25, 30, 0, 24, 40],
            "HR": [80.0, 81, 75, np.nan, 60, 62, 90],
            "Temp": [36.0, np.nan, 37.5, 36.5, 38, np.nan, np.nan],
            "Lactate": [1.0, 2.0, *[np.nan] * 5],
        }
    )
    data = IrregularDataset.from_long_dataframe(frame, target=["HR", "Temp", "Lactate"])
    return TimeSplitter(after="24h").split(data)[1].generate_instances(2)


def forecasts(count: int):
    loc, scale = (torch.tensor([[*pair, 1.0]] * 2).double() for pair in (LOC, SCALE))
    for item in range(count):
        start = pd.Period("2024", "h")
        shared = SharedDistribution(Normal, [loc, scale], np.array([0, 2]))
        forecast = DistributionForecast(shared, 0, [0, 1, 2])
        forecast.start_date, forecast.item_id = start, str(item)
        yield forecast.labelled(np.arange(2.0), ("HR", "Temp", "Lactate"))


def test_scores_are_those_of_their_formulas(test_data):
    scores = accuracy(
        list(forecasts(2)), test_data, ("HR", "Temp", "Lactate"), np.array([20.0, 1.0, 5.0])
    )
    heart, temperature = np.array([75.0, 62, 90]), np.array([37.5, 36.5])
    errors = heart - 70, temperature - 37
    assert scores["mse[HR]"] == pytest.approx((errors[0] ** 2).mean())
    assert scores["mae[Temp]"] == pytest.approx(0.5)
    assert scores["mse"] == pytest.approx(np.mean(np.concatenate(errors) ** 2))
    assert scores["balanced_mse"] == pytest.approx(
        ((errors[0] ** 2).mean() / 400 + (errors[1] ** 2).mean()) / 2
    )
    expected = [
        -Normal(loc, scale).log_prob(torch.tensor(values)).numpy()
        for loc, scale, values in zip(LOC, SCALE, (heart, temperature), strict=True)
    ]
    assert scores["nll[HR]"] == pytest.approx(expected[0].mean())
    assert scores["nll"] == pytest.approx(np.concatenate(expected).mean())
    assert scores["balanced_nll"] == pytest.approx(
        (expected[0].mean() - np.log(20) + expected[1].mean()) / 2
    )
    # The 80 % interval is ± 1.2816 standard deviations.
    assert scores["coverage_80[HR]"] == pytest.approx(2 / 3)
    assert scores["coverage_80"] == pytest.approx(4 / 5)
    # Errors of HR: 0.5, 0.8 and 2 deviations; the 50 % interval is ± 0.6745, the 95 % one ± 1.96.
    assert scores["coverage_50[HR]"] == pytest.approx(1 / 3)
    assert scores["coverage_95[HR]"] == pytest.approx(2 / 3)
    assert scores["coverage_95"] == pytest.approx(4 / 5)


def test_an_interval_includes_its_ends():
    frame = pd.DataFrame({"item_id": "a", "timestamp": [0.0, 25, 26, 27], "count": [1.0, 0, 2, 3]})
    data = IrregularDataset.from_long_dataframe(frame, target="count")
    test = TimeSplitter(after="24h").split(data)[1].generate_instances(3)
    keys = ["mean", *ALL_LEVELS]
    values = np.repeat([[1.0], *([0.0 if level < 0.5 else 2.0] for level in ALL_LEVELS)], 3, axis=1)
    forecast = QuantileForecast(values, keys)
    forecast.start_date, forecast.item_id = pd.Period("2024", "h"), "a"
    scores = accuracy([forecast.labelled(None, ("count",))], test, ("count",), np.ones(1))
    assert scores["coverage_80"] == pytest.approx(2 / 3)


def test_balanced_error_follows_from_the_sums_of_the_items(test_data):
    scale = np.array([20.0, 1.0, 5.0])
    stored = squared_errors(list(forecasts(2)), test_data, scale)
    assert stored["count"] == [[1, 2, 0], [2, 0, 0]]
    expected = [[25 / 400, 0.25 + 0.25, 0], [(64 + 400) / 400, 0, 0]]
    np.testing.assert_allclose(stored["sum"], expected, rtol=1e-3)
    count, errors = np.sum(stored["count"], axis=0), np.sum(stored["sum"], axis=0)
    scores = accuracy(list(forecasts(2)), test_data, ("HR", "Temp", "Lactate"), scale)
    assert scores["balanced_mse"] == pytest.approx(np.mean(errors[:2] / count[:2]), rel=1e-3)


def test_forecast_that_is_no_number_has_no_error_of_zero(test_data):
    def diverged():
        for forecast in forecasts(2):
            loc = torch.full((2, 3), torch.nan).double()
            family = partial(Normal, validate_args=False)
            shared = SharedDistribution(family, [loc, torch.ones(2, 3)], np.array([0, 2]))
            yield DistributionForecast(shared, 0, [0, 1, 2]).labelled_like(forecast)

    stored = squared_errors(list(diverged()), test_data, np.ones(3))
    count, errors = np.array(stored["count"]), np.array(stored["sum"])
    assert np.isnan(errors[count > 0]).all()
    assert (errors[count == 0] == 0).all()


def test_pooled_quantile_loss_is_that_of_gluonts(test_data):
    from gluonts.ev.metrics import MeanWeightedSumQuantileLoss
    from gluonts.model import evaluate_forecasts

    scores = accuracy(list(forecasts(2)), test_data, ("HR", "Temp", "Lactate"), np.ones(3))
    levels = [level / 10 for level in range(1, 10)]
    pooled = evaluate_forecasts(
        forecasts(2), test_data=test_data, metrics=[MeanWeightedSumQuantileLoss(levels)]
    )
    assert scores["mean_weighted_quantile_loss"] == pytest.approx(pooled.iloc[0, 0])


def test_channel_of_zeros_counts_in_the_pooled_quantile_loss():
    frame = pd.DataFrame({"item_id": "a", "timestamp": [0.0, 25, 30], "HR": [80.0, 75, 60]})
    data = IrregularDataset.from_long_dataframe(
        frame.assign(Temp=0.0, Lactate=[1.0, np.nan, np.nan]), target=["HR", "Temp", "Lactate"]
    )
    test = TimeSplitter(after="24h").split(data)[1].generate_instances(2)
    scores = accuracy(list(forecasts(1)), test, ("HR", "Temp", "Lactate"), np.ones(3))
    # Forecasts of Temp are wrong by about 37 each, in the pool of labels of 75 and 60.
    pooled, heart = (scores[f"mean_weighted_quantile_loss{n}"] for n in ("", "[HR]"))
    assert pooled == pytest.approx(heart + 2 * 37 / 135, abs=0.01)
    assert np.isinf(scores["mean_weighted_quantile_loss[Temp]"])
    assert scores["balanced_mean_weighted_quantile_loss"] == pytest.approx(heart)


@pytest.mark.parametrize("head", ["student_t", "normal", "negative_binomial", "quantile"])
@pytest.mark.parametrize("kind", ["univariate", "multivariate"])
def test_quantiles_are_those_of_the_forecast_where_there_is_a_label(
    head, kind, datasets, make_estimator
):
    dataset = datasets[kind]
    if head == "negative_binomial":
        counts = [{**entry, "target": np.rint(abs(entry["target"]))} for entry in dataset]
        estimator = make_estimator(GRUFlowEstimator, distr_output=head)
        predictor = estimator.train(counts)
    else:
        predictor = make_estimator(GRUFlowEstimator, distr_output=head).train(dataset)
    ensemble = EnsemblePredictor([predictor, predictor])
    test = split(dataset, offset=-4)[1].generate_instances(4)
    for model in (predictor, ensemble):
        for forecast, label in zip(model.predict(test.input), test.label, strict=True):
            tabulated = _tabulated(forecast, label)
            observed = np.isfinite(label["target"].T)
            np.testing.assert_allclose(tabulated.mean, forecast.mean)
            for level in ALL_LEVELS:
                np.testing.assert_allclose(
                    tabulated.quantile(level)[observed], forecast.quantile(level)[observed]
                )


def test_channel_that_is_never_observed_is_left_out(test_data):
    scores = accuracy(list(forecasts(2)), test_data, ("HR", "Temp", "Lactate"), np.ones(3))
    assert not [name for name in scores if "Lactate" in name]
    assert np.isfinite(list(scores.values())).all()
    assert {f"balanced_{name}" for name in ACCURACY} <= set(scores)


def test_channels_in_another_order_than_in_training_are_not_scored():
    for channels in (("Temp", "HR", "Lactate"), ("HR", "Temp")):
        with pytest.raises(DataError, match="item '0', field 'target': the channels of the test"):
            check_channels(list(forecasts(1)), channels)
    check_channels(list(forecasts(2)), ["HR", "Temp", "Lactate"])
