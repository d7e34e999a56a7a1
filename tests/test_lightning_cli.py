"""The command line of Lightning, as its users type it."""

import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.fabric.accelerators import MPSAccelerator

from deltaflow import DeltaflowWarning, ForecastLightningModule, load_predictor
from deltaflow.cli import main
from deltaflow.encoders import ENCODERS
from deltaflow.tasks import TASKS

pytest.importorskip("jsonargparse")

CONFIGS = Path(__file__).parents[1] / "configs" / "fit"
SINE = {"num_series": 15, "length": 30}
TINY = {
    "trainer": {
        "max_epochs": 3,
        "gradient_clip_val": 1.0,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "model": {"hidden_size": 4, "dropout": 0.5},
    "data": {
        "dataset": "sine",
        "dataset_kwargs": SINE,
        "batch_size": 4,
        "num_batches_per_epoch": 5,
    },
}


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(tmp_path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished tiny training."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    root = ["--trainer.default_root_dir", str(folder)]
    assert main(["fit", "--config", str(folder / "tiny.yaml"), *root]) == 0
    return folder


def printed_config(capsys, *options: str) -> dict:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *options, "--print_config"])
    assert exit_.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def metrics(folder: Path, version: int = 0) -> pd.DataFrame:
    return pd.read_csv(folder / "lightning_logs" / f"version_{version}" / "metrics.csv")


@pytest.mark.parametrize(
    ("encoder", "data"), [*product(ENCODERS, ("clinical_sample", "physionet2012"))]
)
def test_shipped_configurations_are_read(encoder, data, capsys):
    options = [f"--config={CONFIGS / name}.yaml" for name in ("base", encoder)]
    if data == "physionet2012":
        options += [f"--config={CONFIGS / data}.yaml", "--data.dataset_kwargs.path", "somewhere"]
    config = printed_config(capsys, *options, "--model.hidden_size", "7")
    assert (config["model"]["encoder"], config["model"]["hidden_size"]) == (encoder, 7)
    assert config["data"]["dataset"] == data
    assert config["trainer"]["gradient_clip_val"] == 10.0
    if data == "physionet2012":
        assert config["data"]["dataset_kwargs"] == {"sets": ["a", "b"], "path": "somewhere"}


def test_every_shipped_configuration_is_one_of_these():
    assert {path.stem for path in CONFIGS.iterdir()} == {"base", "physionet2012", *ENCODERS}


def test_training_leaves_checkpoints_logs_and_its_configuration(trained):
    files = {path.name for path in trained.rglob("*") if path.is_file()}
    assert {"best.ckpt", "last.ckpt", "metrics.csv", "config.yaml"} <= files
    table = metrics(trained)
    assert table["train_loss_step"].count() == 15
    assert table["val_mean_weighted_quantile_loss"].count() == 3
    stored = trained / "lightning_logs" / "version_0" / "config.yaml"
    assert yaml.safe_load(stored.read_text())["model"]["dropout"] == 0.5
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(stored), "--print_config"])
    assert exit_.value.code == 0


def test_validate_test_and_predict_take_the_model_from_its_checkpoint(trained, tmp_path, capsys):
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    # Nothing of the model is repeated; other series must not change the scaling.
    others = yaml.safe_dump({**TINY["data"], "dataset_kwargs": {**SINE, "seed": 5}})
    (tmp_path / "data.yaml").write_text(others)
    options = ["--data", "data.yaml", "--ckpt_path", checkpoint]
    options += ["--trainer.enable_progress_bar", "false"]
    for command in ("validate", "test"):
        assert main([command, *options, f"--trainer.default_root_dir={command}"]) == 0
    assert np.isfinite(metrics(Path("test"))["test_loss"]).all()
    levels = ["--forecasts.path", "forecasts.parquet", "--forecasts.quantile_levels", "[0.1, 0.9]"]
    assert main(["predict", *options, *levels]) == 0
    assert "forecasts.parquet" in capsys.readouterr().out

    table = pd.read_parquet("forecasts.parquet")
    task = TASKS["sine"](**SINE, seed=5)
    predictor = load_predictor(checkpoint)
    assert predictor.reader == ForecastLightningModule.load_from_checkpoint(checkpoint).reader
    test = replace(next(iter(task.tests.values())), prediction_length=predictor.prediction_length)
    expected = pd.concat(
        [forecast.to_dataframe([0.1, 0.9]) for forecast in predictor.predict(test.input)],
        ignore_index=True,
    )
    assert list(table)[2:] == ["target_name", "predictions", "mean", "0.1", "0.9"]
    pd.testing.assert_frame_equal(table, expected)


def test_apples_gpu_is_not_chosen(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: True)
    assert main(["fit", "--config", tiny, "--trainer.default_root_dir", str(tmp_path)]) == 0


def test_run_names_its_checkpoints_and_its_configuration(trained, capsys):
    config = str(trained / "lightning_logs" / "version_0" / "config.yaml")
    assert main(["test", "--config", config, "--ckpt_path", "best"]) == 0
    assert "test_mae" in capsys.readouterr().out
    stored = trained / "lightning_logs" / "version_1" / "config.yaml"
    assert yaml.safe_load(stored.read_text())["data"]["reader"] is None


def test_run_does_not_replace_another(trained, capsys):
    options = ["--config", str(trained / "tiny.yaml"), "--trainer.default_root_dir", str(trained)]
    before = (trained / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    assert main(["fit", *options]) == 2
    assert "resume it by --ckpt_path last" in capsys.readouterr().err
    assert main(["fit", *options, "--trainer.fast_dev_run", "true"]) == 0
    assert (trained / "checkpoints" / "best.ckpt").stat().st_mtime_ns == before


def test_last_without_a_run_begins_one(tiny, tmp_path):
    options = ["--config", tiny, "--ckpt_path", "last", "--trainer.max_epochs", "1"]
    assert main(["fit", *options]) == 0
    assert main(["fit", *options]) == 0
    assert metrics(tmp_path)["train_loss_step"].count() == 5
    assert not (tmp_path / "lightning_logs" / "version_1" / "metrics.csv").exists()


def test_other_channels_than_trained_on_are_refused(trained, capsys):
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    assert main(["test", "--data.dataset", "clinical_sample", "--ckpt_path", checkpoint]) == 2
    assert "field 'x1': is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["test"], "give the trained model by --ckpt_path"),
        (["test", "--ckpt_path", "nowhere.ckpt"], "no checkpoint 'nowhere.ckpt'"),
        (["predict", "--ckpt_path", "tiny.yaml"], "not a checkpoint of weights"),
        (["predict", "--ckpt_path", "best"], "no checkpoint 'checkpoints/best.ckpt'"),
        (["fit", "--data.reader.schema", "{}"], "data.reader is that of a checkpoint"),
        (["fit", "--data.dataset", "sinne"], "did you mean 'sine'"),
        (["fit", "--data.dataset", "nowhere/x.csv"], "no file or folder"),
        (["fit", "--model.encoder", "gru_flo"], "did you mean 'gru_flow'"),
        (["fit", "--data.test", "beyond"], "unknown test 'beyond'"),
        (["fit", "--model.distr_output", "negative_binomial"], "is not a count"),
        (["fit", "--forecasts.path", "forecasts.txt"], "not a .csv or .parquet file"),
        (["fit", "--forecasts.quantile_levels", "[2.0]"], "[2.0] are not between 0 and 1"),
        (["fit", "--best.monitor", "val_los"], "could not find the monitored key"),
        (["fit", "--early_stopping.monitor", "val_los"], "`val_los` which is not available"),
        (["fit", "--seed_everything", "-1"], "seed must lie between 0 and 4294967295, got -1"),
        (["fit", "--trainer.accelerator", "abacus"], "invalid accelerator name"),
        (["fit", "--trainer.strategy", "ddpp"], "invalid strategy name"),
        (["fit", "--trainer.check_val_every_n_epoch", "0"], "must be at least 1, got 0"),
        (["fit", "--trainer.val_check_interval", "99"], "`val_check_interval` (99) must be less"),
        (["fit", "--model.encoder_kwargs.num_layers", "0"], "at least one flow"),
        (["fit", "--model.hidden_size", "0"], "hidden_size must be at least 1, got 0"),
        (["fit", "--model.balance", "-1"], "balance must be at least 0, got -1"),
        (["fit", "--optimizer.lr", "-1"], "lr must be at least 0, got -1"),
        (["fit", "--weight_averaging.decay", "2"], "decay must lie between 0 and 1, got 2"),
        (["fit", "--config", "latin.yaml"], "'utf-8' codec can't decode"),
        (["fit", "--seed_everything", "-1"], "seed must lie between 0 and"),
        (["fit", "--best.save_top_k=2"], "the latest over the best: give best.filename"),
    ],
)
def test_errors_are_one_line(options, message, tiny, capsys):
    Path("latin.yaml").write_bytes("model: {encoder: é}".encode("latin-1"))
    assert main([options[0], "--config", tiny, *options[1:]]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"deltaflow {options[0]}: ")
    assert message in error


@pytest.mark.parametrize("options", [["--model.encodr", "gru"], ["--trainer.max_epochs", "many"]])
def test_unknown_option_and_wrong_type_are_named(options, tiny, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", tiny, *options])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert options[0].removeprefix("--") in error
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("deltaflow fit: ")
    assert "usage:" not in error  # of all options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.columns.tagret", "[HR]"], ["data.columns", "'tagret' is not accepted"]),
        (
            ["--data.columns.feat_static_cat", "x"],
            ["data.columns", '"feat_static_cat"', "<class 'list'>", "x"],
        ),
        (["--data.context_length", "x"], ["data.context_length", "<class 'int'>", "value: x"]),
    ],
)
def test_value_of_none_of_several_types_is_refused_in_a_sentence(options, words, tiny, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", tiny, *options])
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("deltaflow fit: ")
    assert all(word in error for word in words)
    assert "Union" not in error
    assert "NoneType" not in error
    assert len(error) < 250


def test_a_configuration_may_be_empty(tiny, capsys):
    Path("empty.yaml").write_text("# nothing yet\n\n  # nor here\n")
    options = ["--config", "empty.yaml", "--config", tiny, "--trainer.fast_dev_run", "true"]
    assert main(["fit", *options]) == 0


@pytest.mark.parametrize("command", ["fit", "compare"])
@pytest.mark.parametrize("given", [{"model": None}, {"data": ["sine"]}, {"weight_averaging": 0.9}])
def test_a_value_in_place_of_a_group_of_options_is_refused(command, given, capsys):
    Path("given.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 1}, **given}))
    with pytest.raises(SystemExit):
        main([command, "--config", "given.yaml"])
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"deltaflow {command}: {next(iter(given))} is a group of options: ")


@pytest.mark.parametrize(
    ("group", "name", "value", "source"),
    [
        ("model", "lr", 0.1, "optimizer.lr"),
        ("data", "seed", 1, "seed_everything"),
        ("best", "dirpath", "models", "trainer.default_root_dir"),
    ],
)
def test_a_derived_option_in_a_configuration_is_refused(group, name, value, source, capsys):
    Path("given.yaml").write_text(yaml.safe_dump({group: {name: value}}))
    with pytest.raises(SystemExit):
        main(["fit", "--config", "given.yaml"])
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{group}.{name} is not an option of its own: give {source} instead" in error


def test_file_is_learned_from_by_its_column_names(make_frame, tiny, tmp_path):
    make_frame(("HR", "MAP"), num_items=10).to_csv("stays.csv", index=False)
    options = ["--data.dataset", "stays.csv", "--data.dataset_kwargs", "null"]
    options += ["--data.columns", "{target: [HR, MAP], feat_static_cat: [ward]}"]
    options += ["--data.split.after", "24h", "--data.split.horizon", "12h"]
    assert main(["fit", "--config", tiny, *options, "--trainer.max_epochs", "1"]) == 0
    table = metrics(tmp_path)
    assert np.isfinite(table["val_mae[MAP]"].dropna()).all()
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert load_predictor(checkpoint).reader.schema.target == ("HR", "MAP")
    assert main(["predict", *options, "--ckpt_path", str(checkpoint)]) == 0
    forecasts = pd.read_csv("forecasts.csv", parse_dates=["timestamp"])
    asked = make_frame(("HR", "MAP"), num_items=10).set_index(["item_id", "timestamp"]).index
    assert forecasts.set_index(["item_id", "timestamp"]).index.isin(asked).all()


def test_another_file_is_judged_and_forecast_by_name(make_frame, tiny):
    frame = make_frame(("HR", "MAP"), num_items=10)
    frame.to_csv("seen.csv", index=False)
    # Further columns, and wards that have other codes there.
    frame.assign(RR=frame["lab"], site="a").to_csv("new.csv", index=False)
    seen = ["--data.dataset", "seen.csv", "--data.dataset_kwargs", "null",
            "--data.columns", "{target: [HR, MAP], feat_static_cat: [ward]}"]  # fmt: skip
    new = ["--data.dataset", "new.csv", "--data.columns",
           "{target: [RR, MAP, HR], feat_static_cat: [site, ward]}"]  # fmt: skip
    split = ["--data.split.after", "24h", "--data.split.horizon", "12h"]
    assert main(["fit", "--config", tiny, *seen, *split, "--trainer.max_epochs", "1"]) == 0
    scores, tables = [], []
    for options in (seen, new):
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            assert main(["test", *options, *split, "--ckpt_path", "best"]) == 0
        told = [str(one.message) for one in record if one.category is DeltaflowWarning]
        told = [message for message in told if "does not know" in message]
        assert len(told) == (options is new)
        newest = max(Path("lightning_logs").glob("*/metrics.csv"), key=lambda f: f.stat().st_mtime)
        scores.append(pd.read_csv(newest).iloc[-1])
        assert main(["predict", *options, *split, "--ckpt_path", "best"]) == 0
        tables.append(pd.read_csv("forecasts.csv"))
    assert "feat_static_cat 'site', target 'RR'" in told[0]
    pd.testing.assert_series_equal(*scores, check_names=False)
    one, other = (
        table.sort_values(["item_id", "timestamp", "target_name"], ignore_index=True)
        for table in tables
    )
    pd.testing.assert_frame_equal(one, other)


def test_rows_without_target_are_times_to_forecast(make_frame, tiny):
    seen = make_frame(num_items=10)[["item_id", "timestamp", "HR"]]
    seen.to_csv("seen.csv", index=False)
    options = ["--data.columns.target", "[HR]", "--data.split.after", "30h"]
    options += ["--data.split.horizon", "6h", "--data.split.test_share", "0"]
    assert main(["fit", "--config", tiny, "--data.dataset=seen.csv", "--data.dataset_kwargs=null",
                 "--trainer.max_epochs=1", *options]) == 0  # fmt: skip

    begin = pd.Timestamp("2024-06-01")
    known = pd.DataFrame({"timestamp": begin + pd.to_timedelta([0, 7, 20, 29], "h"), "HR": 70.0})
    asked = pd.DataFrame({"timestamp": begin + pd.to_timedelta([31, 33.5], "h")})
    future = pd.concat([known, asked]).assign(item_id="new")
    future.to_csv("new.csv", index=False)
    assert main(["predict", "--data.dataset=new.csv", *options, "--ckpt_path=best"]) == 0
    forecasts = pd.read_csv("forecasts.csv", parse_dates=["timestamp"])
    assert list(forecasts["item_id"]) == ["new", "new"]
    assert list(forecasts["timestamp"]) == list(asked["timestamp"])
    assert np.isfinite(forecasts["0.9"]).all()


def test_two_processes_write_each_series_once(trained, tiny):
    options = ["predict", "--config", tiny, "--data.batch_size=1", "--trainer.logger=false"]
    options += ["--ckpt_path", str(trained / "checkpoints" / "last.ckpt")]
    assert main([*options, "--forecasts.path=one.csv"]) == 0
    several = ["--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.devices=2"]
    command = [sys.executable, "-m", "deltaflow", *options, *several]
    subprocess.run([*command, "--forecasts.path=two.csv"], check=True, stdout=subprocess.DEVNULL)
    one, two = pd.read_csv("one.csv"), pd.read_csv("two.csv")
    assert one["item_id"].nunique() % 2 == 1  # so that a padding sampler would repeat one
    pd.testing.assert_frame_equal(two, one)


def test_fit_killed_at_a_random_step_goes_on_as_if_nothing_had_happened(trained, tiny, tmp_path):
    command = [sys.executable, "-m", "deltaflow", "fit", "--config", tiny]
    command += ["--last.every_n_train_steps=1", f"--trainer.default_root_dir={tmp_path}"]
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    steps = np.random.default_rng().integers(1, 14)
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and stored_step(checkpoint) >= steps:
                break
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = stored_step(checkpoint)
    assert steps <= done

    assert main([*command[3:], "--ckpt_path", "last"]) == 0
    whole, resumed = metrics(trained), metrics(tmp_path, version=1)
    losses = "train_loss_step"
    expected = whole.dropna(subset=losses).set_index("step")[losses]
    repeated = resumed.dropna(subset=losses).set_index("step")[losses]
    assert list(repeated.index) == list(range(done, 15))
    pd.testing.assert_series_equal(repeated, expected[done:], check_exact=True)
    scores = [column for column in whole if column.startswith("val_")]
    validated = resumed.dropna(subset="val_loss")[scores].reset_index(drop=True)
    rest = whole.dropna(subset="val_loss")[scores].tail(len(validated)).reset_index(drop=True)
    pd.testing.assert_frame_equal(validated, rest, check_exact=True)
    weights = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (trained, tmp_path)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_averaged_weights_are_validated_and_stored(tiny, tmp_path):
    assert (
        main(["fit", "--config", tiny, "--weight_averaging.decay=0.5", "--optimizer.lr=0.02"]) == 0
    )
    path = tmp_path / "checkpoints" / "best.ckpt"
    stored = torch.load(path, weights_only=True)
    assert stored["hyper_parameters"]["lr"] == 0.02
    trained, kept = stored["current_model_state"], stored["state_dict"]
    assert any(not torch.equal(trained[name], kept[name]) for name in kept)
    assert main(["validate", "--config", tiny, "--ckpt_path", str(path)]) == 0
    assert metrics(tmp_path, 1)["val_loss"].iloc[0] == pytest.approx(
        metrics(tmp_path)["val_loss"].min()
    )


def stored_step(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]
