"""Every head trains end to end and gives finite, ordered quantiles."""

import numpy as np
import pytest
from gluonts.torch.distributions import (
    ISQFOutput,
    LaplaceOutput,
    PiecewiseLinearOutput,
    PoissonOutput,
    SplicedBinnedParetoOutput,
)

from deltaflow import (
    DataError,
    DeltaflowError,
    GRUEstimator,
    GRUFlowEstimator,
    IrregularDataset,
    load_predictor,
)
from deltaflow.heads import HEADS, MonotoneQuantileOutput

HEADS_AND_INSTANCES = {
    **{name: name for name in HEADS},
    "isqf": ISQFOutput(num_pieces=3, qk_x=[0.1, 0.5, 0.9]),
    "piecewise linear": PiecewiseLinearOutput(num_pieces=3),
    "laplace": LaplaceOutput(),
    "spliced binned pareto": SplicedBinnedParetoOutput(
        bins_lower_bound=-4.0, bins_upper_bound=4.0, num_bins=20, tail_percentile_gen_pareto=0.05
    ),
    "three quantiles": MonotoneQuantileOutput([0.1, 0.5, 0.9]),
}
LEVELS = [0.1, 0.3, 0.5, 0.7, 0.9]


@pytest.fixture(scope="module")
def counts(make_frame) -> dict[str, IrregularDataset]:
    """Counts, on which every head can be trained; univariate and multivariate."""
    random = np.random.default_rng(0)
    frame = make_frame(("HR", "MAP"))
    frame["calls"] = random.poisson(20.0, len(frame)).astype(float)
    frame["visits"] = np.where(random.random(len(frame)) < 0.3, np.nan, frame["calls"] // 4)
    return {
        "univariate": IrregularDataset.from_long_dataframe(frame, target="calls"),
        "multivariate": IrregularDataset.from_long_dataframe(frame, target=["calls", "visits"]),
    }


@pytest.mark.parametrize("kind", ["univariate", "multivariate"])
@pytest.mark.parametrize("head", HEADS_AND_INSTANCES.values(), ids=HEADS_AND_INSTANCES)
def test_every_head_gives_finite_ordered_quantiles(
    head, kind, counts, make_estimator, instances, tmp_path
):
    estimator = make_estimator(GRUFlowEstimator, distr_output=head)
    predictor = estimator.train(counts[kind])
    entries = instances(counts[kind])
    forecasts = list(predictor.predict(entries, seed=0))
    shape = (4,) if kind == "univariate" else (4, 2)
    for forecast in forecasts:
        quantiles = np.stack([forecast.quantile(level) for level in LEVELS])
        assert quantiles.shape == (5, *shape)
        assert np.isfinite(quantiles).all()
        assert (np.diff(quantiles, axis=0) >= 0).all()
    drawn = predictor.predict(entries, num_samples=7, seed=0)
    assert [forecast.samples.shape for forecast in drawn] == [(7, *shape)] * len(entries)

    predictor.serialize(tmp_path)
    again = load_predictor(tmp_path).predict(entries, seed=0)
    for forecast, loaded in zip(forecasts, again, strict=True):
        np.testing.assert_array_equal(forecast.quantile(0.9), loaded.quantile(0.9))


def test_counts_are_forecast_by_counts(counts, make_estimator, instances):
    estimator = make_estimator(GRUEstimator, distr_output="negative_binomial")
    predictor = estimator.train(counts["multivariate"])
    (forecast, *_) = predictor.predict(instances(counts["multivariate"]), num_samples=50, seed=0)
    assert forecast.samples.shape == (50, 4, 2)
    np.testing.assert_array_equal(forecast.samples, forecast.samples.round())
    assert (forecast.samples >= 0).all()
    # The training set's means are about 20 and 5; even an untrained network is scaled to them.
    calls, visits = forecast.samples.mean(axis=(0, 1))
    assert 5 < calls < 80
    assert 1 < visits < 20


@pytest.mark.parametrize("wrong", [-1.0, 2.5])
def test_what_is_not_a_count_is_refused_with_its_place(wrong, make_frame):
    frame = make_frame(("calls",)).assign(calls=1.0)
    frame.loc[frame.index[45], "calls"] = wrong
    dataset = IrregularDataset.from_long_dataframe(frame, target="calls")
    estimator = GRUEstimator(prediction_length=2, distr_output="negative_binomial")
    with pytest.raises(DataError, match=f"{wrong} is not a count; choose a continuous") as caught:
        estimator.train(dataset)
    assert (caught.value.item, caught.value.field, caught.value.position) == ("p2", "calls", 5)


def test_missing_counts_are_not_refused(make_frame, make_estimator):
    frame = make_frame(("calls",)).assign(calls=1.0)
    frame.loc[frame.index[::3], "calls"] = np.nan
    dataset = IrregularDataset.from_long_dataframe(frame, target="calls")
    make_estimator(GRUEstimator, distr_output="negative_binomial").train(dataset)


def test_paths_need_a_distribution(univariate, make_estimator):
    estimator = make_estimator(GRUEstimator, distr_output="quantile", sampling="path")
    with pytest.raises(DeltaflowError, match="choose sampling='marginal'"):
        estimator.train(univariate)


@pytest.mark.parametrize("output", [HEADS_AND_INSTANCES["isqf"], PoissonOutput()])
def test_a_distribution_without_a_quantile_function_is_forecast_by_samples(
    output, counts, make_estimator, instances
):
    estimator = make_estimator(GRUEstimator, distr_output=output, num_parallel_samples=70)
    predictor = estimator.train(counts["multivariate"])
    (forecast, *_) = predictor.predict(instances(counts["multivariate"]))
    assert forecast.samples.shape == (70, 4, 2)
    assert np.isfinite(forecast.samples).all()


def test_the_mean_beside_the_quantiles_is_not_their_median(make_frame, make_estimator, instances):
    random = np.random.default_rng(0)
    frame = make_frame(("HR",), num_items=20)
    frame["cost"] = random.exponential(10.0, len(frame)) ** 2  # mean 200, median 48
    dataset = IrregularDataset.from_long_dataframe(frame, target="cost")
    estimator = make_estimator(
        GRUFlowEstimator, distr_output="mean_quantile", num_batches_per_epoch=150, lr=0.01,
        trainer_kwargs={"max_epochs": 1, "enable_progress_bar": False},
    )  # fmt: skip
    forecasts = list(estimator.train(dataset).predict(instances(dataset)))
    mean = np.mean([forecast.mean for forecast in forecasts])
    median = np.mean([forecast.quantile(0.5) for forecast in forecasts])
    assert 100 < mean < 350
    assert 20 < median < 100


def test_a_single_level_gives_no_other_one(counts, make_estimator, instances):
    estimator = make_estimator(GRUEstimator, distr_output=MonotoneQuantileOutput([0.5]))
    (forecast, *_) = estimator.train(counts["multivariate"]).predict(
        instances(counts["multivariate"])
    )
    assert np.isfinite(forecast.quantile(0.5)).all()
    with pytest.raises(DeltaflowError, match=r"no quantile 0.9 follows from the level 0.5 alone"):
        forecast.quantile(0.9)
