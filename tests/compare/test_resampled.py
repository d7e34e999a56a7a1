import pickle

import numpy as np
import pandas as pd
import pytest
from gluonts.ev.metrics import MSE
from gluonts.model import evaluate_model
from gluonts.model.estimator import Estimator
from gluonts.model.forecast import QuantileForecast
from gluonts.model.forecast import SampleForecast as RegularForecast
from gluonts.model.predictor import Predictor

from deltaflow import DataError, DeltaflowError, IrregularDataset, TimeSplitter
from deltaflow.compare import resampled
from deltaflow.compare.resampled import ResampledEstimator, deepar
from deltaflow.tasks import regular_seasonal


class Counting(Predictor):
    """Goes on from the last value of a series by 1, 2, 3, … in every sample."""

    def predict(self, dataset, num_samples=5, **kwargs):
        for entry in dataset:
            steps = entry["target"][-1] + np.arange(1, self.prediction_length + 1)
            start = entry["start"] + len(entry["target"])
            yield RegularForecast(np.tile(steps, (num_samples, 1)), start, entry["item_id"])


class CountingEstimator(Estimator):
    def __init__(self, prediction_length: int = 4) -> None:
        super().__init__()
        self.prediction_length = prediction_length
        self.seen: list = []

    def train(self, training_data, validation_data=None, **kwargs):
        self.seen = list(training_data)
        return Counting(self.prediction_length)


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": "a",
            "timestamp": pd.to_datetime("2024-01-01") + pd.to_timedelta([0, 0.6, 3, 4.0], "h"),
            "HR": [80.0, 82, np.nan, 84],
            "Temp": [np.nan, np.nan, 37.0, 38.0],
        }
    )


def predict(data: IrregularDataset, estimator, queries: list[float], step: str = "1h"):
    """Forecasts of the first item at hours after its last observation, padded by one."""
    predictor = ResampledEstimator(len(queries) + 1, step, estimator).train(data)
    entry = dict(data[0])
    end = entry["feat_dynamic_real"][0, -1]
    asked = [*(end + np.array(queries)), np.nan]
    entry["feat_dynamic_real"] = np.append(entry["feat_dynamic_real"], [asked], axis=1)
    return next(predictor.predict([entry]))


def test_grid_ends_at_the_last_observation_and_is_filled_forward(frame):
    estimator = CountingEstimator()
    data = IrregularDataset.from_long_dataframe(frame, target=["HR", "Temp"])
    ResampledEstimator(3, "1h", estimator).train(data)
    heart, temperature = estimator.seen
    assert heart["target"].tolist() == [80, 82, 82, 82, 84]
    assert temperature["target"].tolist() == [37.5, 37.5, 37.5, 37, 38]  # the mean comes first
    assert (heart["feat_static_cat"], temperature["feat_static_cat"]) == ([0], [1])
    assert heart["start"] == pd.Period("2024-01-01 00:00", "h")
    assert (heart["item_id"], temperature["item_id"]) == ("a/HR", "a/Temp")


@pytest.mark.parametrize(("step", "unit", "gap"), [("20s", "min", 1 / 3), ("10min", "h", 1 / 6)])
def test_a_grid_of_the_observation_times_repeats_the_series(step, unit, gap):
    """Although neither is a multiple of the step in float64."""
    values = np.arange(200.0)
    frame = pd.DataFrame({"item_id": "a", "timestamp": gap * values, "target": values})
    estimator = CountingEstimator()
    data = IrregularDataset.from_long_dataframe(frame, time_unit=unit)
    ResampledEstimator(3, step, estimator).train(data)
    np.testing.assert_array_equal(estimator.seen[0]["target"], values)


def test_forecast_is_read_off_between_grid_points(frame):
    data = IrregularDataset.from_long_dataframe(frame, target=["HR", "Temp"])
    forecast = predict(data, CountingEstimator(), [0.0, 0.5, 1.0, 2.25])
    assert forecast.samples.shape == (5, 5, 2)
    np.testing.assert_allclose(forecast.mean[:4, 0], [84, 84.5, 85, 86.25])
    np.testing.assert_allclose(forecast.mean[:4, 1], [38, 38.5, 39, 40.25])
    np.testing.assert_allclose(forecast.mean[4], forecast.mean[3])  # padding
    assert forecast.timestamps[1] == pd.Timestamp("2024-01-01 04:30")
    assert forecast.timestamps[4] is pd.NaT


def test_queries_beyond_the_horizon_are_rolled_on_to(frame):
    data = IrregularDataset.from_long_dataframe(frame, target="HR")
    forecast = predict(data, CountingEstimator(prediction_length=2), [1.0, 7.5])
    assert forecast.samples.shape == (5, 3)
    np.testing.assert_allclose(forecast.mean[:2], [85, 91.5])


def test_item_without_a_past_is_forecast_from_the_mean(frame):
    data = IrregularDataset.from_long_dataframe(frame, target="HR")
    predictor = ResampledEstimator(1, "1h", CountingEstimator()).train(data)
    entry = {
        **data[0],
        "target": np.empty(0),
        "feat_dynamic_real": np.array([[1.0]]),
    }
    assert next(predictor.predict([entry])).mean == pytest.approx([82 + 1])


def test_deepar_trains_on_channels_is_evaluated_and_pickled(multivariate, tmp_path):
    trainer = {"max_epochs": 1, "enable_progress_bar": False, "logger": False}
    trainer |= {"default_root_dir": tmp_path, "enable_model_summary": False}
    estimator = deepar(
        "4h", "12h", num_channels=2, hidden_size=4, num_batches_per_epoch=1, trainer_kwargs=trainer
    )
    splitter = TimeSplitter(after="24h", horizon="12h")
    length = splitter.prediction_length(multivariate)
    training, template = splitter.split(multivariate)
    predictor = ResampledEstimator(length, "4h", estimator).train(training, multivariate)
    predictor = pickle.loads(pickle.dumps(predictor))
    test = template.generate_instances(length)
    scores = evaluate_model(predictor, test_data=test, metrics=[MSE()], axis=(0, 2))
    assert scores.shape == (2, 1)
    assert np.isfinite(scores.to_numpy()).all()


@pytest.mark.parametrize(("step", "length"), [("1h", 2), ("90min", 2), ("10h", 1)])
def test_by_default_deepar_reaches_half_of_the_longest_series(frame, monkeypatch, step, length):
    made = []

    def untrained(*arguments):
        made.append(deepar(*arguments))
        return CountingEstimator()

    monkeypatch.setattr(resampled, "deepar", untrained)
    data = IrregularDataset.from_long_dataframe(frame, target=["HR", "Temp"])
    ResampledEstimator(4, step).train(data)
    (estimator,) = made
    assert estimator.prediction_length == length
    assert estimator.cardinality == [2]


def test_forecasts_that_cannot_be_sampled_are_refused(frame):
    class Quantiles(Counting):
        def predict(self, dataset, **kwargs):
            for forecast in super().predict(dataset, **kwargs):
                median = forecast.quantile(0.5)[None]
                yield QuantileForecast(median, forecast.start_date, ["0.5"])

    class QuantileEstimator(CountingEstimator):
        def train(self, training_data, validation_data=None, **kwargs):
            return Quantiles(self.prediction_length)

    data = IrregularDataset.from_long_dataframe(frame, target="HR")
    with pytest.raises(DeltaflowError, match="a QuantileForecast cannot be sampled"):
        predict(data, QuantileEstimator(), [1.0])


def test_regular_data_and_steps_that_are_no_durations_are_refused():
    with pytest.raises(DataError, match="regular already"):
        ResampledEstimator(4, "1h").train(regular_seasonal(num_series=2))
    for step in ("1 hur", "30", "-1h"):
        with pytest.raises(DataError, match=f"'step': '{step}' is not a duration"):
            ResampledEstimator(4, step)
    with pytest.raises(DataError, match="'step': the duration is zero"):
        ResampledEstimator(4, "0h")
    with pytest.raises(DataError, match="'horizon': '24' is not a duration"):
        deepar("2h", horizon="24")


def test_channels_are_told_apart_by_name(frame):
    data, swapped = (
        IrregularDataset.from_long_dataframe(frame, target=target)
        for target in (["HR", "Temp"], ["Temp", "HR"])
    )
    predictor = ResampledEstimator(3, "1h", CountingEstimator()).train(data)
    test = TimeSplitter(after="3h").split(data)[1].generate_instances(3).input
    other = TimeSplitter(after="3h").split(swapped)[1].generate_instances(3).input
    (forecast,), (asked,) = predictor.predict(test), predictor.predict(other)
    assert (forecast.target, asked.target) == (("HR", "Temp"), ("Temp", "HR"))
    np.testing.assert_array_equal(forecast.samples, asked.samples[..., ::-1])
    assert forecast.mean[0, 0] > 80 > 40 > forecast.mean[0, 1]
