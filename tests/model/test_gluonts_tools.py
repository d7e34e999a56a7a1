"""GluonTS's own splits and evaluations run unmodified on irregular data."""

import numpy as np
import pytest
from gluonts.dataset.split import split
from gluonts.ev.metrics import MAE, MSE, MeanWeightedSumQuantileLoss
from gluonts.evaluation import Evaluator, MultivariateEvaluator, make_evaluation_predictions
from gluonts.evaluation.backtest import backtest_metrics
from gluonts.model.evaluation import evaluate_model

from deltaflow import GRUEstimator, HoldPredictor, IrregularDataset, TimeSplitter

ESTIMATORS = ["GRUFlowEstimator", "CouplingFlowEstimator", "ResNetFlowEstimator", "GRUEstimator"]
LEVELS = [0.1, 0.5, 0.9]
METRICS = [MSE(), MAE(), MeanWeightedSumQuantileLoss(LEVELS)]

both_kinds = pytest.mark.parametrize("kind", ["univariate", "multivariate"])
# GluonTS hands the function to pandas, which will treat it in another way one day.
pytestmark = pytest.mark.filterwarnings("ignore:The provided callable:FutureWarning")

any_model = pytest.mark.parametrize("model", [*ESTIMATORS, "HoldPredictor"])


@pytest.fixture
def predictor(model, kind, datasets, trained):
    if model == "HoldPredictor":
        return HoldPredictor.fit(datasets[kind], 4)
    return trained(model, kind)


def evaluator(kind: str) -> Evaluator:
    # num_workers=0: no processes for eight items.
    if kind == "univariate":
        return Evaluator(quantiles=LEVELS, num_workers=0)
    return MultivariateEvaluator(
        quantiles=LEVELS, num_workers=0, target_agg_funcs={"sum": np.nansum}
    )


@both_kinds
def test_windows_cut_values_and_times_together(kind, datasets):
    dataset = datasets[kind]
    _, template = split(dataset, offset=-10)
    pairs = list(template.generate_instances(4, windows=3, distance=3, max_history=6))
    assert len(pairs) == 3 * len(dataset)
    for number, (past, label) in enumerate(pairs):
        whole = dataset[number // 3]
        first = 10 + 3 * (number % 3)
        context, queries = slice(first - 6, first), slice(first, first + 4)
        np.testing.assert_array_equal(past["target"], whole["target"][..., context])
        np.testing.assert_array_equal(label["target"], whole["target"][..., queries])
        both = slice(first - 6, first + 4)
        np.testing.assert_array_equal(
            past["feat_dynamic_real"], whole["feat_dynamic_real"][:, both]
        )
        assert past["feat_dynamic_real"].dtype == np.float64
        assert past["info"] == whole["info"]


@both_kinds
def test_training_data_of_a_split_train(kind, datasets, make_estimator):
    train, _ = split(datasets[kind], offset=-8)
    predictor = make_estimator(GRUEstimator).train(train)
    assert predictor.prediction_length == 4


@any_model
@both_kinds
def test_evaluate_model_runs_on_windows_with_a_short_history(model, kind, predictor, datasets):
    _, template = split(datasets[kind], offset=-10)
    test_data = template.generate_instances(4, windows=3, distance=3, max_history=6)
    table = evaluate_model(predictor, test_data=test_data, metrics=METRICS, seasonality=1)
    assert table.shape == (1, 3)
    assert np.isfinite(table.to_numpy()).all()


@both_kinds
def test_the_metrics_are_those_of_the_forecasts(kind, datasets, trained):
    # Missing labels are masked, not counted.
    _, template = split(datasets[kind], offset=-4)
    test_data = template.generate_instances(4)
    predictor = trained("GRUFlowEstimator", kind)
    table = evaluate_model(predictor, test_data=test_data, metrics=METRICS, seasonality=1)
    medians = np.stack([f.quantile(0.5) for f in predictor.predict(test_data.input)])
    labels = np.stack([label["target"] for label in test_data.label])
    if kind == "multivariate":
        labels = labels.swapaxes(1, 2)  # GluonTS's labels are (D, Q), its forecasts (Q, D)
    expected = np.nanmean(np.abs(medians - labels))
    assert table["MAE[0.5]"].item() == pytest.approx(expected, rel=1e-6)


@any_model
@both_kinds
def test_make_evaluation_predictions_and_evaluator_run(model, kind, predictor, datasets):
    forecasts, series = make_evaluation_predictions(datasets[kind], predictor, num_samples=50)
    forecasts = list(forecasts)
    assert all(forecast.num_samples == 50 for forecast in forecasts)
    metrics, per_item = evaluator(kind)(series, forecasts, num_series=len(datasets[kind]))
    assert np.isfinite(metrics["mean_wQuantileLoss"])
    assert np.isfinite(metrics["RMSE"])
    if kind == "univariate":
        assert list(per_item["item_id"]) == [entry["item_id"] for entry in datasets[kind]]
    else:
        assert np.isfinite([metrics[f"{i}_mean_wQuantileLoss"] for i in (0, 1)]).all()


@any_model
@both_kinds
def test_backtest_metrics_run(model, kind, predictor, make_frame, roles):
    # GluonTS's statistics refuse missing past covariates, so here they are filled in.
    if kind == "univariate":
        dataset = IrregularDataset.from_long_dataframe(make_frame(), target="HR")
    else:
        frame = make_frame(("HR", "MAP")).fillna({"lab": 0.0})
        dataset = IrregularDataset.from_long_dataframe(frame, **roles)
    metrics, _ = backtest_metrics(dataset, predictor, evaluator=evaluator(kind), num_samples=20)
    assert np.isfinite(metrics["mean_wQuantileLoss"])


@any_model
@both_kinds
@pytest.mark.parametrize(
    ("date", "horizon"), [("2024-03-01 01:00", "2h"), ("2024-03-02 20:00", "4h")]
)
@pytest.mark.filterwarnings("ignore::deltaflow.DeltaflowWarning")
def test_evaluate_model_runs_on_a_split_by_time(model, kind, date, horizon, datasets, predictor):
    splitter = TimeSplitter(date=date, horizon=horizon)
    assert splitter.prediction_length(datasets[kind]) <= 4
    _, template = splitter.split(datasets[kind])
    test_data = template.generate_instances(4)
    before = [past["target"].shape[-1] for past in test_data.input]
    after = [int(np.isfinite(label["feat_dynamic_real"][0]).sum()) for label in test_data.label]
    # The horizons vary in length, and in some item there is nothing before or after the split.
    assert len(set(after)) > 1
    assert 0 in before + after
    table = evaluate_model(predictor, test_data=test_data, metrics=METRICS, seasonality=1)
    assert np.isfinite(table.to_numpy()).all()


@pytest.mark.parametrize("model", ["GRUFlowEstimator", "HoldPredictor"])
@both_kinds
@pytest.mark.filterwarnings("ignore::deltaflow.DeltaflowWarning")
def test_items_with_nothing_before_are_forecast(model, kind, datasets, predictor):
    _, template = TimeSplitter(after="0h", horizon="1min").split(datasets[kind])
    test_data = template.generate_instances(4)
    assert all(past["target"].shape[-1] == 0 for past in test_data.input)
    forecasts = list(predictor.predict(test_data.input))
    assert len(forecasts) == len(datasets[kind])
    for forecast in forecasts:
        assert np.isfinite(forecast.quantile(0.9)).all()


@both_kinds
def test_forecasts_carry_the_nominal_index_and_the_item(kind, datasets, trained, instances):
    entries = instances(datasets[kind])
    for entry, forecast in zip(
        entries, trained("GRUEstimator", kind).predict(entries), strict=True
    ):
        assert forecast.item_id == entry["item_id"]
        assert forecast.info == entry["info"]
        assert forecast.start_date == entry["start"] + entry["target"].shape[-1]
        assert len(forecast.index) == 4
        assert forecast.index.freqstr == "h"
