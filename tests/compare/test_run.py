import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from gluonts.dataset.common import MetaData, TrainDatasets
from gluonts.dataset.jsonl import JsonLinesWriter

from deltaflow import ConformalPredictor, EnsemblePredictor, load_predictor
from deltaflow.compare import run, run_comparison, score
from deltaflow.compare.models import matching_size, train_row
from deltaflow.compare.run import execute
from deltaflow.compare.score import accuracy
from deltaflow.data.windows import LabelledWindows, joined
from deltaflow.errors import DeltaflowError, UnknownNameError
from deltaflow.saving import MARKER
from deltaflow.tasks import TASKS, load_task, regular_seasonal


def untold(what: str, share: float) -> None:
    """Nobody watches."""


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """The rows that were trained, in order."""
    rows = []

    def counted(row, *args):
        rows.append(row)
        return train_row(row, *args)

    train_row = run.train_row
    monkeypatch.setattr(run, "train_row", counted)
    return rows


def test_hold_and_every_encoder_are_run_with_every_seed(tiny):
    runs = run_comparison(tiny(seeds=[0, 1]))
    assert [(r["encoder"], r["seed"]) for r in runs] == [
        ("hold", 0),
        ("hold", 1),
        ("gru", 0),
        ("gru", 1),
        ("gru (averaged)", None),
    ]
    assert {r["status"] for r in runs} == {"finished"}
    for finished in runs:
        assert list(finished["scores"]) == ["sine", "sine_beyond"]
        stored = finished["scores"]["sine"]
        assert {"mse", "balanced_mse", "mse[x1]", "parameters"} <= set(stored)
        assert ("nll" in stored) == (finished["encoder"] == "gru")  # others have quantiles alone
    first, second = (r["curve"] for r in runs[2:4])
    assert len(first) == 2
    assert first[0]["val_loss"] != second[0]["val_loss"]


def test_finished_runs_are_not_repeated(tiny, trained):
    before = run_comparison(tiny())
    assert trained == ["hold", "gru"]
    assert json.dumps(run_comparison(tiny())) == json.dumps(before)
    run_comparison(tiny(seeds=[0, 1]))
    assert trained == ["hold", "gru", "hold", "gru"]


def test_changed_settings_repeat_a_run(tiny, trained):
    run_comparison(tiny())
    run_comparison(tiny(trainer={"max_epochs": 1}))
    assert trained == ["hold", "gru"] * 2


def test_failed_run_is_recorded_goes_last_and_is_tried_again(tiny, trained):
    broken = {
        "broken": {
            "model": {"encoder": "gru_flow", "encoder_kwargs": {"time_embedding": "nonsense"}}
        }
    }
    config = tiny(encoders=["broken", "gru"], variants=broken)
    statuses = {r["encoder"]: r["status"] for r in run_comparison(config)}
    assert statuses == {"hold": "finished", "broken": "failed", "gru": "finished"}
    stored = json.loads((config.output / "runs" / "sine-broken-seed0.json").read_text())
    assert "nonsense" in stored["errors"]["training"]
    assert stored["scores"] == {}
    run_comparison(config)
    assert trained == ["hold", "broken", "gru", "broken"]


def test_interruption_keeps_what_is_finished(tiny, monkeypatch, trained):
    interrupted = tiny(encoders=["gru", "gru_d"])

    def interrupt(row, *args):
        if row == "gru_d":
            raise KeyboardInterrupt
        return counted(row, *args)

    counted = run.train_row
    monkeypatch.setattr(run, "train_row", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(interrupted)
    monkeypatch.setattr(run, "train_row", counted)
    run_comparison(interrupted)
    assert trained == ["hold", "gru", "gru_d"]


def test_failure_of_one_test_keeps_the_others(tiny, monkeypatch):
    def fail_beyond(trained, test):
        if test is task.tests["sine_beyond"]:
            raise DeltaflowError("too far")
        return timed(trained, test)

    timed = score.timed_forecasts
    monkeypatch.setattr(score, "timed_forecasts", fail_beyond)
    config = tiny()
    task = TASKS["sine"](**config.data.dataset_kwargs)
    train = partial(train_row, "hold", config.row_options("hold"), 0, untold)
    result = execute(train, 0, task)
    assert result["status"] == "failed"
    assert list(result["scores"]) == ["sine"]
    assert "too far" in result["errors"]["sine_beyond"]


def test_seed_decides_a_run_and_the_global_generators_are_left_alone(tiny):
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    config = tiny()
    task = TASKS["sine"](**config.data.dataset_kwargs)
    options = config.row_options("gru")
    first, second, other = (
        execute(partial(train_row, "gru", options, seed, untold), seed, task) for seed in (0, 0, 1)
    )
    assert first["scores"]["sine"]["mse"] == second["scores"]["sine"]["mse"]
    assert first["scores"]["sine"]["mse"] != other["scores"]["sine"]["mse"]
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_resampled_deepar_is_a_row_and_has_no_likelihood(tiny):
    config = tiny(encoders=["resampled_deepar"], trainer={"max_epochs": 1}, resampled_step="8h")
    (_, deepar) = run_comparison(config)
    assert deepar["status"] == "finished"
    assert "nll" not in deepar["scores"]["sine"]
    assert deepar["scores"]["sine"]["parameters"] > 0


def test_average_row_is_the_average_of_the_kept_predictors(tiny):
    config = tiny(seeds=[0, 1], encoders=["gru", "item_mean"], trainer={"max_epochs": 1})
    runs = run_comparison(config)
    (averaged,) = (r for r in runs if r["seed"] is None)
    assert averaged["encoder"] == "gru (averaged)"
    assert runs.index(averaged) == 4
    folder = config.output / "runs"
    kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert kept == ["sine-gru-seed0", "sine-gru-seed1"]

    task = TASKS["sine"](**config.data.dataset_kwargs)
    ensemble = EnsemblePredictor([load_predictor(folder / name) for name in kept])
    test = task.tests["sine"]
    scores = accuracy(list(ensemble.predict(test.input)), test, task.schema.target, task.units)
    stored = averaged["scores"]["sine"]
    assert stored == {**stored, **{name: pytest.approx(scores[name]) for name in scores}}
    assert "nll" not in stored
    members = [r["scores"]["sine"] for r in runs if r["encoder"] == "gru" and r is not averaged]
    assert stored["parameters"] == sum(member["parameters"] for member in members)
    # The squared error is convex, so that an average can only be better than its members' mean.
    assert stored["mse"] < np.mean([member["mse"] for member in members])


def test_an_average_of_widened_members_is_widened(tiny):
    runs = run_comparison(tiny(seeds=[0, 1], trainer={"max_epochs": 1}, widening=True))
    *_, first, second, averaged = runs
    assert averaged["errors"] == {}
    widths = [
        np.subtract(example["high"], example["low"])
        for example in (r["examples"]["sine_beyond"][0] for r in (first, second, averaged))
    ]
    np.testing.assert_allclose(widths[2], (widths[0] + widths[1]) / 2, rtol=1e-5)
    numbers = [r["scores"]["sine"]["parameters"] for r in (first, second, averaged)]
    assert numbers[2] == numbers[0] + numbers[1]


def test_an_average_may_be_calibrated_on_the_validation(tiny, trained):
    changes = {"seeds": [0, 1], "trainer": {"max_epochs": 1}, "average_seeds": True}
    plain = run_comparison(tiny(**changes))[-1]["scores"]["sine"]
    trained.clear()
    config = tiny(**changes, calibrate_averages=True)
    stored = run_comparison(config)[-1]["scores"]["sine"]
    assert trained == []  # the members stay as they are
    task, folder = TASKS["sine"](**config.data.dataset_kwargs), config.output / "runs"
    ensemble = EnsemblePredictor([load_predictor(folder / f"sine-gru-seed{n}") for n in (0, 1)])
    test = task.tests["sine"]
    calibrated = list(ConformalPredictor.fit(ensemble, task.validation).predict(test.input))
    scores = accuracy(calibrated, test, task.schema.target, task.units)
    assert stored == {**stored, **{name: pytest.approx(scores[name]) for name in scores}}
    assert stored["mse"] == pytest.approx(plain["mse"])
    assert stored["mean_weighted_quantile_loss"] != plain["mean_weighted_quantile_loss"]


def test_average_is_made_again_when_a_member_changes(tiny, trained):
    config = tiny(seeds=[0, 1], trainer={"max_epochs": 1})
    stored = config.output / "runs" / "sine-gru-averaged.json"

    def averaged() -> bool:
        """Tell whether the average is made again."""
        before = stored.stat().st_mtime_ns if stored.exists() else None
        run_comparison(config)
        return stored.stat().st_mtime_ns != before

    assert averaged()
    assert not averaged()
    shutil.rmtree(config.output / "runs" / "sine-gru-seed1")
    trained.clear()
    assert averaged()
    assert trained == ["gru"]
    assert not averaged()
    (config.output / "runs" / "sine-gru-seed0" / MARKER).unlink()
    assert averaged()
    assert trained == ["gru", "gru"]


def test_average_needs_two_finished_seeds_and_the_option(tiny, monkeypatch):
    def fail_first(row, options, seed, tell, task):
        if seed == 0:
            raise ValueError("no luck")
        return train_row(row, options, seed, tell, task)

    train_row = run.train_row
    monkeypatch.setattr(run, "train_row", fail_first)
    assert None not in [
        r["seed"] for r in run_comparison(tiny(seeds=[0, 1], trainer={"max_epochs": 1}))
    ]
    monkeypatch.setattr(run, "train_row", train_row)
    assert None not in [
        r["seed"]
        for r in run_comparison(tiny(seeds=[0, 1], trainer={"max_epochs": 1}, average_seeds=False))
    ]
    assert None in [
        r["seed"] for r in run_comparison(tiny(seeds=[0, 1], trainer={"max_epochs": 1}))
    ]


def test_quantile_heads_are_scored_and_averaged(tiny):
    runs = run_comparison(
        tiny(seeds=[0, 1], trainer={"max_epochs": 1}, model={"distr_output": "quantile"})
    )
    assert {r["status"] for r in runs} == {"finished"}
    for r in runs:
        assert np.isfinite(list(r["scores"]["sine"].values())).all()
        assert {"coverage_50", "coverage_80", "coverage_95"} <= set(r["scores"]["sine"])


def test_progress_is_told(tiny):
    told = []
    config = tiny()
    task = TASKS["sine"](**config.data.dataset_kwargs)
    options = config.row_options("gru")
    train = partial(train_row, "gru", options, 0, lambda *state: told.append(state))
    execute(train, 0, task)
    assert [share for _, share in told] == [0.5, 1.0]
    assert told[0][0].startswith("epoch 1 of 2, validation loss ")


def test_variants_have_options_of_their_own(tiny):
    wide = {"wide": {"model": {"encoder": "gru", "hidden_size": 9}}}
    runs = run_comparison(tiny(encoders=["gru", "wide"], variants=wide, trainer={"max_epochs": 1}))
    sizes = [r["scores"]["sine"]["parameters"] for r in runs]
    assert sizes[0] == 0
    assert sizes[1] < sizes[2]


def test_number_of_parameters_is_matched(tiny):
    runs = run_comparison(
        tiny(encoders=["gru", "gru_flow"], num_parameters=3000, trainer={"max_epochs": 1})
    )
    for encoder in runs[1:]:
        assert encoder["scores"]["sine"]["parameters"] == pytest.approx(3000, rel=0.1)


@pytest.mark.parametrize("wanted", [0, 7, 100, 10**9])
def test_matching_size_is_the_closest(wanted):
    sizes = range(1, 1025)
    best = min(abs(size**2 - wanted) for size in sizes)
    assert abs(matching_size(lambda size: size**2, wanted) ** 2 - wanted) == best


def test_validated_windows_are_the_split_items():
    task = TASKS["clinical_sample"]()
    whole = {entry["item_id"]: entry for entry in task.validation.dataset}
    for past, label in task.validation:
        together, entry = joined(past, label), whole[past["item_id"]]
        count = together["target"].shape[-1]
        np.testing.assert_array_equal(together["target"], entry["target"][:, :count])
        np.testing.assert_array_equal(
            together["feat_dynamic_real"], entry["feat_dynamic_real"][:, :count]
        )
        assert entry["feat_dynamic_real"][0, count - 1] < 48 * 60


def test_misspelt_encoder_is_refused_before_anything_runs(tiny):
    with pytest.raises(UnknownNameError, match="did you mean 'gru_flow'"):
        tiny(encoders=["gru_flo"])
    with pytest.raises(UnknownNameError, match="did you mean 'gru_d'"):
        tiny(variants={"mine": {"model": {"encoder": "gru_dd"}}})
    with pytest.raises(
        UnknownNameError, match=r"model of .*'mine' 'hiden_size': did you mean 'hidd"
    ):
        tiny(variants={"mine": {"model": {"hiden_size": 9}}})
    with pytest.raises(UnknownNameError, match="option of the variant 'mine' 'threads'"):
        tiny(variants={"mine": {"threads": 2}})  # all rows have the same
    with pytest.raises(DeltaflowError, match="max_epochs must be at least 1"):
        tiny(trainer={"max_epochs": 0})
    with pytest.raises(DeltaflowError, match="at least one seed"):
        tiny(seeds=[])
    for seeds in ([0, 0], [-1], [2**32]):
        with pytest.raises(DeltaflowError, match="seeds are different numbers"):
            tiny(seeds=seeds)


def test_gluonts_data_set_is_compared(tmp_path, tiny):
    series = regular_seasonal(num_series=6, length=72)
    shorter = [{**entry, "target": entry["target"][:-6]} for entry in series]
    stored = TrainDatasets(MetaData(freq="h", prediction_length=6), shorter, series)
    stored.save(str(tmp_path / "hourly"), JsonLinesWriter())
    runs = run_comparison(
        tiny(data={"dataset": str(tmp_path / "hourly")}, trainer={"max_epochs": 1})
    )
    assert [run["status"] for run in runs] == ["finished", "finished"]
    example = runs[1]["examples"]["hourly"][0]
    assert example["times"] == list(np.arange(66.0, 72.0))
    assert example["time_unit"] == "periods"


def test_surroundings_of_the_encoders_are_options(tiny):
    options = {
        "data": {"scaling": "last", "origins_within": ["6h", "30h"]},
        "model": {
            "network": "channelwise",
            "network_kwargs": {"num_heads": 2, "shrinkage": 10.0},
            "distr_output": "mean_quantile",
            "balance": 0.5,
        },
        "emphasis": 1.0,
    }
    averaged, plain = (
        run_comparison(tiny(**options, weight_averaging={"decay": decay}))[1]
        for decay in (0.9, None)
    )
    for made in (averaged, plain):
        assert made["status"] == "finished", made["errors"]
    assert averaged["curve"][-1]["val_loss"] != plain["curve"][-1]["val_loss"]
    assert averaged["curve"][0]["train_loss"] == plain["curve"][0]["train_loss"]


def test_kept_weights_are_the_averaged_ones(tiny):
    """What was validated is what is kept: the loss of the kept predictor is the best one seen."""
    config = tiny(weight_averaging={"decay": 0.5}, trainer={"max_epochs": 3})
    _, made = run_comparison(config)
    best = min(epoch["val_loss"] for epoch in made["curve"])
    task = load_task("sine", config.data.dataset_kwargs, config.data.columns, config.data.split)
    folder = config.output / "runs" / made["predictor"]
    predictor = load_predictor(folder)
    batch = predictor.reader.collate(list(LabelledWindows(task.validation, predictor.reader)))
    total, count = predictor.network.loss(batch)
    assert (total / count).item() == pytest.approx(best, rel=1e-5)
