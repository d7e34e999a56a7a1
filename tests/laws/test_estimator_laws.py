"""The laws that every estimator obeys.

An estimator is tested by being a subclass of `IrregularEstimator`. Networks compute in float32,
whose sums change by about 1e-6 with the order of addition; ``CLOSE`` leaves them a factor of 30.
"""

import pickle
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from deltaflow import (
    DeltaflowWarning,
    IrregularDataset,
    IrregularEstimator,
    TimeSplitter,
    predict_df,
)
from deltaflow.data.schema import unit_seconds

ESTIMATORS = {
    cls.__name__: cls
    for cls in IrregularEstimator.__subclasses__()
    if cls.__module__.startswith("deltaflow")
}


class ChannelwiseEstimator(IrregularEstimator):
    """The network with a state per channel, and forecasts of the change from the last value."""

    def __init__(self, **options):
        super().__init__(**options, network="channelwise", scaling="last")


ESTIMATORS["ChannelwiseEstimator"] = ChannelwiseEstimator
CLOSE = {"rtol": 3e-5, "atol": 3e-5}
LEVELS = (0.1, 0.5, 0.9)

any_estimator = pytest.mark.parametrize("cls", ESTIMATORS.values(), ids=ESTIMATORS)


def quantiles(predictor, entries, **options) -> np.ndarray:
    """Quantiles of every forecast, (items, levels, queries, ...)."""
    forecasts = list(predictor.predict(entries, **options))
    return np.stack([[forecast.quantile(level) for level in LEVELS] for forecast in forecasts])


def with_queries(entry: dict, times, covariates=()) -> dict:
    """An entry that ends with queries at these elapsed times."""
    known = entry["feat_dynamic_real"][:, : entry["target"].shape[-1]]
    queries = np.vstack([times, *covariates])
    return {**entry, "feat_dynamic_real": np.hstack([known, queries])}


# Serialisation ------------------------------------------------------------------------------------

IN_A_NEW_PROCESS = """
import pickle, sys
from pathlib import Path

import torch
from gluonts.model.predictor import Predictor

import deltaflow

torch.set_num_threads(1)
folder = Path(sys.argv[1])
entries = pickle.loads((folder / "entries.pickle").read_bytes())
answers = {}
for path in sorted(p for p in folder.iterdir() if p.is_dir()):
    for load in (deltaflow.load_predictor, Predictor.deserialize):
        forecasts = load(path).predict(entries)
        answers[path.name, load.__module__.split(".")[0]] = [f.quantile(0.9) for f in forecasts]
(folder / "answers.pickle").write_bytes(pickle.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers_of_a_new_process(tmp_path_factory, trained, multivariate, instances):
    """Forecasts of every estimator's predictor, loaded in one new process."""
    folder = tmp_path_factory.mktemp("predictors")
    (folder / "entries.pickle").write_bytes(pickle.dumps(instances(multivariate)))
    for name, cls in ESTIMATORS.items():
        trained(cls, "multivariate").serialize(folder / name)
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, str(folder)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    return pickle.loads((folder / "answers.pickle").read_bytes())


@any_estimator
@pytest.mark.parametrize("loader", ["deltaflow", "gluonts"])
def test_a_predictor_loaded_in_a_new_process_gives_identical_forecasts(
    cls, loader, answers_of_a_new_process, trained, multivariate, instances
):
    answers = answers_of_a_new_process[cls.__name__, loader]
    forecasts = list(trained(cls, "multivariate").predict(instances(multivariate)))
    assert len(answers) == len(forecasts) == 8
    for answer, forecast in zip(answers, forecasts, strict=True):
        np.testing.assert_array_equal(answer, forecast.quantile(0.9))


@any_estimator
def test_a_predictor_survives_pickle(cls, trained, multivariate, instances):
    predictor = trained(cls, "multivariate")
    copy = pickle.loads(pickle.dumps(predictor))
    entries = instances(multivariate)
    np.testing.assert_array_equal(quantiles(copy, entries), quantiles(predictor, entries))


# Training -----------------------------------------------------------------------------------------


@any_estimator
def test_the_same_seed_gives_the_same_forecasts(
    cls, trained, univariate, make_estimator, instances
):
    entries = instances(univariate)
    first = quantiles(trained(cls), entries)
    np.testing.assert_array_equal(quantiles(make_estimator(cls).train(univariate), entries), first)
    other = make_estimator(cls, seed=1).train(univariate)
    assert not np.allclose(quantiles(other, entries), first)


@any_estimator
def test_a_seeded_training_leaves_the_global_random_states_alone(cls, univariate, make_estimator):
    torch.manual_seed(5)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    make_estimator(cls).train(univariate, validation_data=univariate)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


@any_estimator
def test_an_unseeded_training_follows_the_global_random_state(
    cls, univariate, make_estimator, instances
):
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        predictor = make_estimator(cls, seed=None).train(univariate)
        answers.append(quantiles(predictor, instances(univariate)))
    np.testing.assert_array_equal(answers[0], answers[1])
    assert not np.allclose(answers[0], answers[2])


@any_estimator
def test_training_goes_on_from_a_predictor(cls, trained, univariate, make_estimator, instances):
    entries = instances(univariate)
    start = quantiles(trained(cls), entries)
    standing = make_estimator(cls, lr=0.0, seed=3).train_from(trained(cls), univariate)
    np.testing.assert_array_equal(quantiles(standing, entries), start)
    moved = make_estimator(cls, seed=3).train_from(trained(cls), univariate)
    assert not np.allclose(quantiles(moved, entries), start)
    np.testing.assert_array_equal(quantiles(trained(cls), entries), start)


# Time ---------------------------------------------------------------------------------------------


@any_estimator
@pytest.mark.parametrize("time_unit", ["min", "s", "D"])
def test_forecast_is_invariant_to_time_unit(
    cls, time_unit, trained, multivariate, multivariate_frame, roles, make_estimator, instances
):
    hours = instances(multivariate)
    others = IrregularDataset.from_long_dataframe(multivariate_frame, **roles, time_unit=time_unit)
    expected = quantiles(trained(cls, "multivariate"), hours)
    # A predictor trained on hours answers data in another unit ...
    answered = quantiles(trained(cls, "multivariate"), instances(others))
    np.testing.assert_allclose(answered, expected, **CLOSE)
    # ... and one that is trained on them is the same predictor.
    retrained = make_estimator(cls).train(others)
    np.testing.assert_allclose(quantiles(retrained, instances(others)), expected, **CLOSE)


@any_estimator
def test_elapsed_numbers_are_answered_in_any_unit(cls, make_estimator, instances):
    hours = np.random.default_rng(0).exponential(2.0, (4, 15)).cumsum(axis=1)
    answers = []
    for time_unit in ("h", "min", "W"):
        factor = unit_seconds("h") / unit_seconds(time_unit)
        frame = pd.DataFrame(
            {
                "item_id": np.repeat(range(4), 15),
                "timestamp": (factor * hours).ravel(),
                "target": np.sin(hours).ravel(),
            }
        )
        dataset = IrregularDataset.from_long_dataframe(frame, time_unit=time_unit)
        if not answers:
            predictor = make_estimator(cls).train(dataset)
        answers.append(quantiles(predictor, instances(dataset)))
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], **CLOSE)


@any_estimator
def test_a_forecast_does_not_depend_on_when_the_series_began(cls, trained, univariate, instances):
    # More history than the context can hold, and another origin of the times.
    entries = instances(univariate)
    shifted = []
    for entry in entries:
        times = entry["feat_dynamic_real"] + 1e4
        shifted.append({**entry, "feat_dynamic_real": times})
    np.testing.assert_allclose(
        quantiles(trained(cls), shifted), quantiles(trained(cls), entries), **CLOSE
    )


# Padding and batch mates --------------------------------------------------------------------------


@any_estimator
def test_a_forecast_does_not_depend_on_batch_mates(cls, trained, multivariate, instances):
    predictor = trained(cls, "multivariate")
    entries = instances(multivariate)
    for number, entry in enumerate(entries):  # histories of different lengths
        keep = slice(0, 16 - 2 * number)
        entry["target"] = entry["target"][:, keep]
        entry["past_feat_dynamic_real"] = entry["past_feat_dynamic_real"][:, keep]
        known = entry["feat_dynamic_real"]
        entry["feat_dynamic_real"] = np.hstack([known[:, keep], known[:, 16:]])
    together = quantiles(predictor, entries)
    alone = np.concatenate([quantiles(predictor, [entry]) for entry in entries])
    np.testing.assert_allclose(together, alone, **CLOSE)
    backwards = quantiles(predictor, entries[::-1])[::-1]
    np.testing.assert_allclose(together, backwards, **CLOSE)


@any_estimator
def test_unobserved_rows_beyond_the_context_do_not_matter(cls, trained, univariate, instances):
    # Observations before the last 12 rows, the context length, are not read.
    entries = instances(univariate)
    changed = []
    for entry in entries:
        target = entry["target"].copy()
        target[:-12] = 1e6
        changed.append({**entry, "target": target})
    np.testing.assert_array_equal(
        quantiles(trained(cls), changed), quantiles(trained(cls), entries)
    )


@any_estimator
def test_padded_queries_repeat_the_last_real_one(cls, trained, univariate):
    splitter = TimeSplitter(after="20h", horizon="2h")
    _, template = splitter.split(univariate)
    entries = list(template.generate_instances(4).input)
    padded = 0
    for entry, answer in zip(entries, quantiles(trained(cls), entries), strict=True):
        asked = int(np.isfinite(entry["feat_dynamic_real"][0, -4:]).sum())
        if asked:
            repeated = np.broadcast_to(answer[:, asked - 1 : asked], answer[:, asked:].shape)
            np.testing.assert_allclose(answer[:, asked:], repeated, **CLOSE)
        padded += 4 - asked
        assert np.isfinite(answer).all()
    assert padded > 4


@any_estimator
def test_items_shorter_than_the_context_are_forecast(cls, trained, univariate, instances):
    entries = instances(univariate)
    for length in (1, 2, 5):
        short = [
            {
                **entry,
                "target": entry["target"][:length],
                "feat_dynamic_real": entry["feat_dynamic_real"][:, : length + 4],
            }
            for entry in entries
        ]
        assert np.isfinite(quantiles(trained(cls), short)).all()


@any_estimator
def test_items_shorter_than_the_context_train(cls, make_frame, make_estimator, instances):
    frame = make_frame(length=6)
    dataset = IrregularDataset.from_long_dataframe(frame, target="HR")
    predictor = make_estimator(cls, context_length=500).train(dataset)
    assert np.isfinite(quantiles(predictor, instances(dataset))).all()


# Many queries -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_predictors(univariate, make_estimator):
    made = {}

    def get(cls):
        if cls not in made:
            made[cls] = make_estimator(cls, prediction_length=500).train(univariate)
        return made[cls]

    return get


@any_estimator
def test_one_query_and_500_shuffled_ones_have_the_same_distribution(
    cls, long_predictors, univariate
):
    predictor = long_predictors(cls)
    entry = univariate[0]
    times = entry["feat_dynamic_real"][0, -1] + np.linspace(0.0, 300.0, 500)
    order = np.random.default_rng(0).permutation(500)
    (many,) = predictor.predict([with_queries(entry, times[order])])
    alone = [0, 1, 77, 250, 499]
    padding = np.full(499, np.nan)
    single = predictor.predict([with_queries(entry, [times[i], *padding]) for i in alone])
    for number, forecast in zip(alone, single, strict=True):
        place = int(np.flatnonzero(order == number)[0])
        for parameter in ("df", "loc", "scale"):
            together, by_itself = (
                parameter_of(f.distribution, parameter)[i]
                for f, i in ((many, place), (forecast, 0))
            )
            assert together.item() == pytest.approx(by_itself.item(), rel=3e-5, abs=3e-5)
        for level in LEVELS:
            together, by_itself = many.quantile(level)[place], forecast.quantile(level)[0]
            assert together == pytest.approx(by_itself, rel=3e-5)


def parameter_of(distribution, name: str) -> torch.Tensor:
    """A parameter of a scaled Student-t distribution."""
    while not hasattr(distribution, "df"):
        distribution = distribution.base_dist
    return getattr(distribution, name)


@any_estimator
def test_a_distribution_depends_on_when_it_is_asked_for(cls, long_predictors, univariate):
    entry = univariate[0]
    times = entry["feat_dynamic_real"][0, -1] + np.geomspace(0.01, 1000.0, 500)
    (forecast,) = long_predictors(cls).predict([with_queries(entry, times)])
    assert len(np.unique(forecast.quantile(0.9).round(6))) > 100


@any_estimator
@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e6, 1e12])
def test_forecasts_are_finite_at_any_distance(cls, gap, trained, univariate):
    entries = [with_queries(e, e["feat_dynamic_real"][0, -1] + [gap] * 4) for e in univariate]
    assert np.isfinite(quantiles(trained(cls), entries)).all()


# Samples ------------------------------------------------------------------------------------------


@any_estimator
@pytest.mark.parametrize("kind", ["univariate", "multivariate"])
def test_paths_are_finite_and_reproduced_by_their_seed(
    cls, kind, datasets, make_estimator, instances
):
    estimator = make_estimator(cls, sampling="path", num_parallel_samples=9, batch_size=3)
    predictor = estimator.train(datasets[kind])
    entries = instances(datasets[kind])
    shape = (9, 4) if kind == "univariate" else (9, 4, 2)

    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, again, other = (
        np.stack([f.samples for f in predictor.predict(entries, seed=seed)]) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.shape == (8, *shape)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    # Items beyond the first batch of three are not given the same noise again.
    standard = (first - first.mean(axis=1, keepdims=True)) / first.std(axis=1, keepdims=True)
    assert not np.allclose(standard[0], standard[3], atol=1e-2)
    (some, *_) = predictor.predict(entries, num_samples=5)
    assert len(some.samples) == 5


@any_estimator
def test_paths_answer_unsorted_queries_in_their_own_order(
    cls, univariate, make_estimator, instances
):
    predictor = make_estimator(cls, sampling="path", num_parallel_samples=6).train(univariate)
    entries = instances(univariate)
    order = np.array([2, 0, 3, 1])
    shuffled = []
    for entry in entries:
        times = entry["feat_dynamic_real"].copy()
        times[:, -4:] = times[:, -4:][:, order]
        shuffled.append({**entry, "feat_dynamic_real": times})
    for straight, mixed in zip(
        predictor.predict(entries, seed=0), predictor.predict(shuffled, seed=0), strict=True
    ):
        np.testing.assert_allclose(mixed.samples, straight.samples[:, order], **CLOSE)


@any_estimator
def test_marginal_samples_are_drawn_as_asked(cls, trained, multivariate, instances):
    predictor = trained(cls, "multivariate")
    entries = instances(multivariate)
    first, again = (
        np.stack([f.samples for f in predictor.predict(entries, num_samples=11, seed=seed)])
        for seed in (4, 4)
    )
    assert first.shape == (8, 11, 4, 2)
    np.testing.assert_array_equal(first, again)


# Nothing observed ---------------------------------------------------------------------------------


@any_estimator
@pytest.mark.parametrize("kind", ["univariate", "multivariate"])
def test_items_without_observations_are_answered_from_the_training_set(
    cls, kind, trained, datasets, instances
):
    predictor = trained(cls, kind)
    entries = instances(datasets[kind])
    unseen = {"p1": "all missing", "p6": "no rows"}
    for entry in entries:
        fields = [f for f in ("target", "past_feat_dynamic_real") if f in entry]
        if unseen.get(entry["item_id"]) == "all missing":
            entry.update({field: np.full_like(entry[field], np.nan) for field in fields})
        elif unseen.get(entry["item_id"]) == "no rows":
            entry.update({field: entry[field][..., :0] for field in fields})
            entry["feat_dynamic_real"] = entry["feat_dynamic_real"][:, -4:]
    with pytest.warns(DeltaflowWarning, match=r"some items \(2, such as") as caught:
        answers = quantiles(predictor, entries)
    assert len([w for w in caught if issubclass(w.category, DeltaflowWarning)]) == 1
    assert np.isfinite(answers).all()
    center, spread = (
        np.array(getattr(predictor.reader.statistics, name))[: 1 if kind == "univariate" else 2]
        for name in ("center", "spread")
    )
    for number in (1, 6):
        medians = answers[number, 1].reshape(4, -1)
        assert (np.abs(medians - center) < 2 * spread).all()


# Through a DataFrame ------------------------------------------------------------------------------


@any_estimator
def test_a_data_frame_in_minutes_is_answered_by_a_predictor_of_hours(cls, make_estimator):
    hours = np.random.default_rng(1).exponential(1.0, (3, 12)).cumsum(axis=1)
    frame = pd.DataFrame(
        {
            "item_id": np.repeat(range(3), 12),
            "timestamp": pd.Timestamp("2024-01-01") + pd.to_timedelta(hours.ravel(), unit="h"),
            "target": np.cos(hours).ravel(),
        }
    )
    past = frame.groupby("item_id").head(9)
    future = frame.drop(past.index)[["item_id", "timestamp"]]
    answers = [
        predict_df(
            make_estimator(cls).train(
                IrregularDataset.from_long_dataframe(past, time_unit=time_unit)
            ),
            past,
            future,
        )
        for time_unit in ("h", "min")
    ]
    pd.testing.assert_frame_equal(answers[0], answers[1], rtol=3e-5)
