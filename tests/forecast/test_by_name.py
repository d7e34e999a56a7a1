"""A forecast answers by name what was asked by name, whatever asks."""

import warnings

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.split import split
from gluonts.ev.metrics import MSE
from gluonts.evaluation import MultivariateEvaluator, make_evaluation_predictions
from gluonts.model.evaluation import evaluate_model
from torch.utils.data import DataLoader

from deltaflow import (
    ConformalPredictor,
    DataError,
    DeltaflowError,
    DeltaflowWarning,
    EnsemblePredictor,
    ForecastLightningModule,
    GRUFlowEstimator,
    HoldPredictor,
    IrregularDataset,
    predict_df,
)

BACKWARDS = {
    "target": ["MAP", "HR"],
    "feat_dynamic_real": ["dose"],
    "past_feat_dynamic_real": ["lab"],
    "feat_static_real": ["age"],
    "feat_static_cat": ["ward"],
}


@pytest.fixture(scope="module")
def backwards(make_frame) -> IrregularDataset:
    """The multivariate data set, its channels in the other order."""
    return IrregularDataset.from_long_dataframe(make_frame(("HR", "MAP")), **BACKWARDS)


@pytest.fixture(scope="module")
def more(make_frame) -> IrregularDataset:
    """The multivariate data set with a channel between the others, and with other covariates."""
    frame = make_frame(("HR", "MAP")).assign(RR=lambda frame: frame["lab"], site="a")
    roles = {**BACKWARDS, "target": ["MAP", "RR", "HR"], "feat_static_cat": ["site", "ward"]}
    return IrregularDataset.from_long_dataframe(frame, **roles)


def by_name(forecast) -> pd.DataFrame:
    table = forecast.to_dataframe()
    return table.sort_values(["target_name", "timestamp"], ignore_index=True)


def told(record) -> list[str]:
    return [str(one.message) for one in record if one.category is DeltaflowWarning]


def test_forecasts_have_the_channels_of_the_entry_in_its_order(
    trained, multivariate, backwards, instances
):
    predictor = trained("GRUFlowEstimator", "multivariate")
    pairs = zip(
        predictor.predict(instances(multivariate)),
        predictor.predict(instances(backwards)),
        strict=True,
    )
    for one, other in pairs:
        assert (one.target, other.target) == (("HR", "MAP"), ("MAP", "HR"))
        np.testing.assert_array_equal(one.mean, other.mean[:, ::-1])
        np.testing.assert_array_equal(one.quantile(0.9), other.quantile(0.9)[:, ::-1])
        samples = one.to_sample_forecast(3), other.to_sample_forecast(3)
        assert [forecast.target for forecast in samples] == [one.target, other.target]
        assert one.copy_dim(0).target == other.copy_dim(1).target == ("HR",)
        np.testing.assert_array_equal(
            one.copy_dim(0).quantile(0.1), other.copy_dim(1).quantile(0.1)
        )


def test_the_evaluators_of_gluonts_compare_a_channel_with_its_own_label(
    trained, multivariate, backwards
):
    predictor = trained("GRUFlowEstimator", "multivariate")
    evaluator = MultivariateEvaluator(quantiles=[0.1, 0.9], num_workers=0)
    scores = []
    for data in (multivariate, backwards):
        window = split(data, offset=-4)[1].generate_instances(4)
        series = [_series(*pair) for pair in zip(window.input, window.label, strict=True)]
        forecasts = list(predictor.predict(window.input))
        scores.append(evaluator(iter(series), iter(forecasts))[0])
    for name in ("RMSE", "MSE", "mean_wQuantileLoss"):
        assert scores[0][f"0_{name}"] == pytest.approx(scores[1][f"1_{name}"], rel=1e-12)
        assert scores[0][f"1_{name}"] == pytest.approx(scores[1][f"0_{name}"], rel=1e-12)
        assert scores[0][f"0_{name}"] != pytest.approx(scores[0][f"1_{name}"], rel=1e-3)


def _series(past: dict, label: dict) -> pd.DataFrame:
    values = np.concatenate([past["target"], label["target"]], axis=1).T
    return pd.DataFrame(values, pd.period_range(past["start"], periods=len(values)))


@pytest.mark.filterwarnings("ignore::deltaflow.DeltaflowWarning")
def test_an_evaluation_of_a_channel_that_is_not_forecast_is_refused(
    trained, univariate, multivariate, more, instances
):
    for predictor, data, channel in (
        (trained("GRUFlowEstimator", "multivariate"), more, "RR"),
        (HoldPredictor.fit(univariate, 4), multivariate, "MAP"),
        (EnsemblePredictor([HoldPredictor.fit(univariate, 4)] * 2), multivariate, "MAP"),
    ):
        window = split(data, offset=-4)[1].generate_instances(4)
        with pytest.raises(DataError, match=f"item 'p0', field '{channel}': the model does not"):
            evaluate_model(predictor, test_data=window, metrics=[MSE()])
        forecasts, series = make_evaluation_predictions(data, predictor, num_samples=5)
        with pytest.raises(DataError, match=f"field '{channel}'"):
            MultivariateEvaluator(num_workers=0)(series, forecasts)
        (forecast, *_) = predictor.predict(instances(data))
        assert set(forecast.to_dataframe()["target_name"]) == set(predictor.schema.target)


def test_a_single_channel_is_forecast_from_data_of_many_and_the_other_way_round(
    univariate, multivariate, make_frame, instances
):
    frame = make_frame(("HR", "MAP"))
    alone = IrregularDataset.from_long_dataframe(frame, target="HR")
    listed = IrregularDataset.from_long_dataframe(frame, target=["HR"])
    predictors = [HoldPredictor.fit(data, 4) for data in (alone, listed)]
    tables = []
    for predictor in predictors:
        for data, shape in ((alone, (4,)), (listed, (4, 1)), (multivariate, (4, 1))):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeltaflowWarning)
                (forecast, *_) = predictor.predict(instances(data))
            assert forecast.mean.shape == forecast.quantile(0.1).shape == shape
            tables.append(by_name(forecast))
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    with pytest.raises(DataError, match="item 'p0', field 'MAP': is missing"):
        next(HoldPredictor.fit(multivariate, 4).predict(instances(alone)))


def test_members_of_an_ensemble_may_have_learned_in_another_order(
    trained, multivariate, backwards, more, instances, make_estimator
):
    one = trained("GRUFlowEstimator", "multivariate")
    other = make_estimator(GRUFlowEstimator, seed=1).train(backwards)
    ensemble = EnsemblePredictor([one, other])
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        forecasts = [list(ensemble.predict(instances(d))) for d in (multivariate, backwards, more)]
    parts = [list(member.predict(instances(multivariate))) for member in (one, other)]
    for own, swapped, extra, first, second in zip(*forecasts, *parts, strict=True):
        np.testing.assert_allclose(own.mean, (first.mean + second.mean) / 2)
        pd.testing.assert_frame_equal(by_name(own), by_name(swapped))
        pd.testing.assert_frame_equal(by_name(own), by_name(extra))
    assert len(told(record)) == 1
    assert "feat_static_cat 'site', target 'RR'" in told(record)[0]


def test_members_of_an_ensemble_know_the_levels_that_they_have_seen(make_frame):
    frame = make_frame(("HR", "MAP"))
    seen = [frame.assign(ward=frame["ward"].replace("er", ward)) for ward in ("er", "or")]
    parts = [IrregularDataset.from_long_dataframe(part, **BACKWARDS) for part in seen]
    ensemble = EnsemblePredictor([HoldPredictor.fit(part, 4) for part in parts])
    assert ensemble.schema.feat_static_cat == {"ward": ("er", "icu", "or")}
    future = frame.groupby("item_id").tail(1)[["item_id", "timestamp", "dose"]]
    future = future.assign(timestamp=future["timestamp"] + pd.Timedelta("1h"))
    assert len(predict_df(ensemble, frame, future)) == 2 * len(future)


def test_lightning_says_once_what_it_ignores_in_all_batches(trained, multivariate, more, instances):
    predictor = trained("GRUFlowEstimator", "multivariate")
    module = ForecastLightningModule.from_predictor(predictor)
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False)
    loader = DataLoader(instances(more), batch_size=2, collate_fn=list)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        batches = trainer.predict(module, loader)
    assert len(told(record)) == 1
    forecasts = [forecast for batch in batches for forecast in batch]
    for one, other in zip(forecasts, predictor.predict(instances(multivariate)), strict=True):
        pd.testing.assert_frame_equal(by_name(one), by_name(other))


def test_training_goes_on_by_name(trained, multivariate, backwards, make_estimator):
    predictor = trained("GRUFlowEstimator", "multivariate")
    one, other = (
        make_estimator(GRUFlowEstimator).train_from(predictor, data, validation_data=data)
        for data in (multivariate, backwards)
    )
    assert one.reader == other.reader
    for name, value in one.network.state_dict().items():
        np.testing.assert_array_equal(value, other.network.state_dict()[name])


@pytest.mark.parametrize("target", [["HR", "MAP"], ["MAP", "HR"]])
def test_calibration_is_by_name(target, trained, multivariate, backwards, more, make_estimator):
    """Folds, members and the data that are asked about may have their channels in any order."""
    one = trained("GRUFlowEstimator", "multivariate")
    other = make_estimator(GRUFlowEstimator, seed=1).train(backwards)
    data = multivariate if target[0] == "HR" else backwards
    swapped = backwards if target[0] == "HR" else multivariate
    fold, rest = (split(part, offset=-4)[1].generate_instances(4) for part in (data, swapped))
    conformal = ConformalPredictor.fit_folds([one, other], [fold, rest])
    expected = ConformalPredictor.fit_folds(
        [one, other], [split(multivariate, offset=-4)[1].generate_instances(4)] * 2
    )
    assert conformal.schema.target == ("HR", "MAP")
    for own, known in ((conformal.leads, expected.leads), (conformal.scores, expected.scores)):
        for one_channel, other_channel in zip(own, known, strict=True):
            np.testing.assert_allclose(one_channel, other_channel)
    asked = split(more, offset=-4)[1].generate_instances(4).input
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        forecasts = list(conformal.predict(asked))
    assert len(told(record)) == 1
    known = conformal.predict(split(multivariate, offset=-4)[1].generate_instances(4).input)
    for forecast, same in zip(forecasts, known, strict=True):
        pd.testing.assert_frame_equal(by_name(forecast), by_name(same))


def test_a_training_resumes_only_with_categories_in_the_same_order(
    make_frame, make_estimator, tmp_path
):
    frame = make_frame(("HR", "MAP")).assign(site=lambda frame: frame["ward"])
    trainer = {"max_epochs": 1, "enable_progress_bar": False, "default_root_dir": tmp_path}
    callback = pl.callbacks.ModelCheckpoint(tmp_path, filename="one")
    settings = {**trainer, "enable_checkpointing": True, "callbacks": [callback]}
    data = [
        IrregularDataset.from_long_dataframe(frame, target="HR", feat_static_cat=order)
        for order in (["ward", "site"], ["site", "ward"])
    ]
    make_estimator(GRUFlowEstimator, trainer_kwargs=settings).train(data[0])
    resumed = make_estimator(GRUFlowEstimator, trainer_kwargs={**trainer, "max_epochs": 2})
    resumed.train(data[0], ckpt_path=str(tmp_path / "one.ckpt"))
    with pytest.raises(DeltaflowError, match="was trained on other data"):
        resumed.train(data[1], ckpt_path=str(tmp_path / "one.ckpt"))


def test_a_category_that_training_had_not_seen_is_told_once(multivariate, multivariate_frame):
    predictor = HoldPredictor.fit(multivariate, 4)
    past = multivariate_frame.groupby("item_id").head(16).assign(ward="another")
    future = multivariate_frame.groupby("item_id").tail(4)
    unseen = "categories that were not seen in training count as unknown: feat_static_cat 'ward'"
    with pytest.warns(DeltaflowWarning, match=unseen):
        predict_df(predictor, past, future)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict_df(predictor, past, future)
        predict_df(HoldPredictor.fit(multivariate, 4), past.assign(ward=None), future)
