"""The contract of predictors: what they say of themselves, and how any of them is saved."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from gluonts.core.component import validated
from gluonts.dataset.split import split
from gluonts.model.predictor import Predictor

from deltaflow import (
    ConformalPredictor,
    DeltaflowError,
    DeltaflowPredictor,
    EnsemblePredictor,
    GRUEstimator,
    HoldPredictor,
    load_predictor,
    predict_df,
)
from deltaflow.forecast.gaussian_process.predictor import GaussianProcessPredictor
from deltaflow.forecast.predictor import PREDICTORS
from deltaflow.forecast.support import Support, SupportPredictor
from deltaflow.forecast.widening import WideningPredictor
from deltaflow.randomness import ItemSeeds, seeded


class ShiftedPredictor(DeltaflowPredictor):
    """A wrapper as a user may write it: it holds a predictor and is one, and needs nothing else."""

    @validated()
    def __init__(self, predictor: DeltaflowPredictor, shift: Any) -> None:
        super().__init__(predictor.prediction_length, predictor.schema)
        self.predictor = predictor
        self.shift = np.array(shift)

    def predict(self, dataset, num_samples=None, seed=None):
        for forecast in self.predictor.predict(dataset, num_samples or 50, seed):
            forecast.samples = forecast.samples + self.shift
            yield forecast


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(PREDICTORS, "ShiftedPredictor", ShiftedPredictor)


@pytest.fixture
def wrapper(multivariate) -> ShiftedPredictor:
    return ShiftedPredictor(HoldPredictor.fit(multivariate, 4), np.array([1000.0, -1000.0]))


def quantiles(predictor, entries) -> np.ndarray:
    return np.stack([forecast.quantile(0.9) for forecast in predictor.predict(entries, seed=3)])


def test_a_wrapper_is_saved_with_what_it_wraps(
    registered, wrapper, trained, multivariate, instances, tmp_path
):
    entries = instances(multivariate)
    network = trained("GRUEstimator", "multivariate")
    nested = EnsemblePredictor([ShiftedPredictor(wrapper, [0.0, 1.0]), network])
    for number, predictor in enumerate((wrapper, nested)):
        folder = tmp_path / str(number)
        predictor.serialize(folder)
        for load in (load_predictor, Predictor.deserialize):
            loaded = load(folder)
            assert loaded.summary() == predictor.summary()
            np.testing.assert_array_equal(quantiles(loaded, entries), quantiles(predictor, entries))


def test_a_predictor_is_printed_in_a_line(wrapper, trained):
    network = trained("GRUEstimator", "multivariate")
    ensemble = EnsemblePredictor([network, network, wrapper])
    assert repr(ensemble) == (
        "EnsemblePredictor(2 × IrregularPredictor(gru), ShiftedPredictor(HoldPredictor()))"
    )


def test_a_wrapper_is_asked_by_data_frames(wrapper, multivariate_frame):
    past, future = multivariate_frame[:-2], multivariate_frame[-2:]
    answer = predict_df(wrapper, past, future, quantile_levels=[0.5], seed=1)
    assert (answer["predictions"] > 500).tolist() == (answer["target_name"] == "HR").tolist()


def test_a_class_that_is_not_registered_is_refused(wrapper, tmp_path):
    wrapper.serialize(tmp_path)
    with pytest.raises(DeltaflowError, match="not a predictor of deltaflow"):
        load_predictor(tmp_path)


def test_a_class_may_move_to_another_module(registered, wrapper, tmp_path):
    wrapper.serialize(tmp_path)
    for path in tmp_path.rglob("*.json"):
        path.write_text(path.read_text().replace("deltaflow.forecast", "deltaflow.model"))
    assert isinstance(load_predictor(tmp_path), ShiftedPredictor)


def test_members_move_to_a_device_together(wrapper, trained):
    network = trained("GRUEstimator", "multivariate")
    ensemble = EnsemblePredictor([wrapper, network])
    assert ensemble.members == [wrapper, network]
    assert ensemble.to("cpu") is ensemble
    with pytest.raises(DeltaflowError, match="no device"):
        ensemble.to("cuda:99")


def test_the_summary_says_what_a_predictor_is(trained, multivariate):
    network = trained("GRUFlowEstimator", "multivariate")
    summary = EnsemblePredictor([network, HoldPredictor.fit(multivariate, 4)]).summary()
    assert summary["target"] == ["HR", "MAP"]
    assert summary["prediction_length"] == 4
    first, second = summary["members"]
    assert (first["encoder"], first["distr_output"]) == ("gru_flow", "student_t")
    assert first["num_parameters"] == sum(p.numel() for p in network.network.parameters())
    assert (second["predictor"], second["target"]) == ("HoldPredictor", ["HR", "MAP"])
    assert json.loads(json.dumps(summary)) == summary


def test_the_summary_says_once_what_members_have_in_common(trained, multivariate):
    network = trained("GRUFlowEstimator", "multivariate")
    hold = HoldPredictor.fit(multivariate, 4)
    members = EnsemblePredictor([network, network, hold]).summary()["members"]
    assert members == [{"count": 2, **network.summary()}, hold.summary()]


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", "", "cpu:x"])
@pytest.mark.parametrize("kind", ["network", "hold", "ensemble"])
def test_a_device_that_is_not_there_is_named(kind, device, trained, multivariate, tmp_path):
    hold = HoldPredictor.fit(multivariate, 4)
    network = trained("GRUEstimator", "multivariate")
    predictor = {"network": network, "hold": hold, "ensemble": EnsemblePredictor([network, hold])}
    predictor[kind].serialize(tmp_path)
    with pytest.raises(DeltaflowError, match=f"there is no device '{device}' on this machine"):
        load_predictor(tmp_path, device=device)


@pytest.mark.parametrize("device", ["mps", "mps:0", torch.device("mps")])
def test_apples_gpu_is_refused_since_it_has_no_float64(device, trained, tmp_path):
    trained("GRUEstimator").serialize(tmp_path)
    with pytest.raises(DeltaflowError, match=r"float64, which Apple's GPU.* lacks: choose 'cpu'"):
        load_predictor(tmp_path, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_does_not_make_a_file_damaged(trained, tmp_path):
    trained("GRUEstimator").serialize(tmp_path)
    for load in (load_predictor, Predictor.deserialize):
        with pytest.raises(DeltaflowError, match=r"no device 'cuda' .* choose 'cpu', or 'auto'"):
            load(tmp_path, device="cuda")


@pytest.mark.parametrize("kind", ["conformal", "gaussian process"])
def test_the_samples_of_a_seed_are_drawn_by_the_forecasts_themselves(kind, univariate, instances):
    entries = instances(univariate)
    if kind == "conformal":
        pairs = split(univariate, offset=-4)[1].generate_instances(4)
        predictor = ConformalPredictor.fit(HoldPredictor.fit(univariate, 4), pairs)
    else:
        predictor = GaussianProcessPredictor.fit(univariate, 4)
    drawn, seeds = predictor.predict(entries, num_samples=7, seed=3), ItemSeeds(3)
    for forecast, samples in zip(predictor.predict(entries), drawn, strict=True):
        with seeded(seeds.of(forecast.item_id, forecast.start_date)):
            expected = forecast.to_sample_forecast(7).samples
        np.testing.assert_array_equal(samples.samples, expected)


@pytest.fixture
def sampler(univariate, trained, make_estimator):
    """A function that returns a predictor of the named kind."""

    def get(kind: str) -> DeltaflowPredictor:
        if kind == "paths":
            return make_estimator(GRUEstimator, sampling="path", batch_size=3).train(univariate)
        pairs = split(univariate, offset=-4)[1].generate_instances(4)
        hold, network = HoldPredictor.fit(univariate, 4), trained("GRUEstimator")
        process = GaussianProcessPredictor.fit(univariate, 4)
        return {
            "network": network,
            "hold": hold,
            "gaussian process": process,
            "conformal": ConformalPredictor.fit(network, pairs),
            "ensemble": EnsemblePredictor([network, hold, process]),
            "support": SupportPredictor.of(network, [Support(low=50.0)]),
            "widening": WideningPredictor(network, 60.0, [0.5]),
        }[kind]

    return get


SAMPLERS = [
    "network", "paths", "hold", "gaussian process", "conformal", "ensemble", "support", "widening",
]  # fmt: skip


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_samples_of_an_item_depend_neither_on_other_items_nor_on_their_order(
    kind, sampler, univariate, instances
):
    predictor, entries = sampler(kind), instances(univariate)

    def drawn(asked):
        forecasts = predictor.predict(asked, num_samples=6, seed=3)
        return {one.item_id: one.quantile(0.4) for one in forecasts}

    together = drawn(entries)
    for some in (entries[::-1], entries[2:5], entries[6:]):
        for item, values in drawn(some).items():
            np.testing.assert_allclose(values, together[item], rtol=1e-5)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_callers_random_state_is_unchanged_even_between_two_forecasts(
    kind, sampler, univariate, instances
):
    predictor, entries = sampler(kind), instances(univariate)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    for _ in predictor.predict(entries, num_samples=3, seed=1):
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(torch.random.get_rng_state(), before)
