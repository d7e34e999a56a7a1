"""Encoders with time scales of their own start from those of the training data."""

import numpy as np
import pandas as pd
import pytest

from deltaflow import (
    ForecastLightningModule,
    IrregularDataModule,
    LinearFlowEstimator,
    load_predictor,
)
from deltaflow.data import IrregularDataset
from deltaflow.tasks import regular_seasonal


def every_other_hour(num_items: int = 6, length: int = 200) -> IrregularDataset:
    """Items with an observation every other hour."""
    times = pd.date_range("2024-01-01", periods=length, freq="2h")
    frames = [
        pd.DataFrame({"item_id": str(i), "timestamp": times, "HR": np.sin(np.arange(length))})
        for i in range(num_items)
    ]
    return IrregularDataset.from_long_dataframe(pd.concat(frames), target="HR")


def encoder_options(data, **options) -> dict:
    module = IrregularDataModule(data, prediction_length=4, **options)
    network = ForecastLightningModule(module.reader, 4, encoder="linear_flow", hidden_size=16)
    return dict(network.hparams["encoder_kwargs"])


def test_a_span_is_that_of_the_series_as_they_are_read():
    data = every_other_hour()
    assert encoder_options(data, context_length=1000)["span"] == pytest.approx(199)
    assert encoder_options(data, context_length=30)["span"] == pytest.approx(30)
    short = encoder_options(data, context_length=1000, context="48h")
    assert short["span"] == pytest.approx(24)


def test_cycles_are_the_calendar_cycles_that_series_can_show():
    options = {"context_length": 1000, "seasonality": ["hour", "day", "week", "year"]}
    assert encoder_options(every_other_hour(), **options)["cycles"] == pytest.approx([12.0, 84.0])
    assert encoder_options(every_other_hour(), context_length=1000)["cycles"] == []
    regular = encoder_options(regular_seasonal(num_series=4, length=400), context_length=1000)
    assert regular["cycles"] == pytest.approx([24.0, 168.0])


def test_oscillators_start_at_these_scales():
    data = IrregularDataModule(
        every_other_hour(), prediction_length=4, context_length=1000, seasonality=["day"]
    )
    module = ForecastLightningModule(data.reader, 4, encoder="linear_flow", hidden_size=32)
    _, turns = module.network.encoder.flow.exponent()
    periods = 1 / turns.detach()
    assert (periods - 12.0).abs().min() < 1e-4
    assert 50 < periods.max() < 199 / 2
    assert periods.min() < 3


def test_other_encoders_get_no_such_options():
    data = IrregularDataModule(every_other_hour(), prediction_length=4, context_length=30)
    assert ForecastLightningModule(data.reader, 4, encoder="gru").hparams["encoder_kwargs"] == {}


def test_what_is_given_stays(make_estimator):
    estimator = make_estimator(
        LinearFlowEstimator, encoder_kwargs={"span": 7.0, "cycles": [5.0], "num_layers": 1}
    )
    module = estimator.create_lightning_module(estimator.create_data_module(every_other_hour()))
    expected = {"span": 7.0, "cycles": [5.0], "num_layers": 1}
    assert module.hparams["encoder_kwargs"] == expected


def test_a_stored_network_keeps_its_time_scales(make_estimator, instances, tmp_path):
    data = every_other_hour()
    predictor = make_estimator(LinearFlowEstimator, seasonality=["day"]).train(data)
    predictor.serialize(tmp_path)
    loaded = load_predictor(tmp_path)
    kept = predictor.network_arguments["encoder_kwargs"]
    assert kept["span"] > 1
    assert kept["cycles"] == pytest.approx([12.0])
    assert loaded.network_arguments["encoder_kwargs"] == kept
    entries = instances(data)
    for one, other in zip(predictor.predict(entries), loaded.predict(entries), strict=True):
        np.testing.assert_array_equal(one.mean, other.mean)


def test_training_goes_on_with_the_stored_time_scales(make_estimator):
    estimator = make_estimator(LinearFlowEstimator)
    predictor = estimator.train(every_other_hour())
    again = estimator.train_from(predictor, every_other_hour(num_items=3))
    assert again.network_arguments == predictor.network_arguments
