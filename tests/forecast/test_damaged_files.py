"""Damaged, foreign and hostile files are refused by an error that names them; nothing runs."""

import json
import pickle
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from deltaflow import (
    DeltaflowError,
    ForecastLightningModule,
    GRUEstimator,
    HoldPredictor,
    IrregularDataModule,
    load_predictor,
)
from deltaflow.forecast.gaussian_process.predictor import GaussianProcessPredictor

WEIGHTS = "prediction-net-state.pt"


@pytest.fixture(scope="module")
def stored(univariate, tmp_path_factory) -> Path:
    """A checkpoint of Lightning."""
    data = IrregularDataModule(
        univariate, prediction_length=4, context_length=12, batch_size=4, num_batches_per_epoch=2
    )
    model = ForecastLightningModule(
        data.reader, data.prediction_length, encoder="gru", hidden_size=8, seed=0
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, default_root_dir=folder, **options)
    trainer.fit(model, data)
    trainer.save_checkpoint(folder / "good.ckpt")
    return folder / "good.ckpt"


def truncated(share: float):
    def change(path: Path, canary) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return change


def flipped(path: Path, canary) -> None:
    content = bytearray(path.read_bytes())
    content[:8] = bytes(255 - byte for byte in content[:8])
    path.write_bytes(content)


def saved(change):
    """Change the tensors of a file, in its ``state_dict`` if it is a checkpoint."""

    def apply(path: Path, canary) -> None:
        content = torch.load(path, weights_only=True)
        change(content.get("state_dict", content), canary)
        torch.save(content, path)

    return apply


def other_shape(weights, canary):
    name = next(iter(weights))
    weights[name] = torch.zeros(3, 1, 2)


def not_finite(value: float):
    def change(weights, canary):
        next(iter(weights.values())).view(-1)[0] = value

    return change


def one_missing(weights, canary):
    weights.pop(next(iter(weights)))


def one_more(weights, canary):
    weights["network.another"] = torch.zeros(2)  # others are those of a subclass of the module


def no_tensor(weights, canary):
    weights[next(iter(weights))] = "text"


def pickled_beside(weights, canary):
    weights["canary"] = canary


def pickled(path: Path, canary) -> None:
    path.write_bytes(pickle.dumps({"state_dict": canary, "hyper_parameters": {}}))


BAD_WEIGHTS = {
    "empty": truncated(0.0),
    "half": truncated(0.5),
    "all but the end": truncated(0.99),
    "flipped": flipped,
    "other shape": saved(other_shape),
    "NaN": saved(not_finite(float("nan"))),
    "infinite": saved(not_finite(float("inf"))),
    "one missing": saved(one_missing),
    "one more": saved(one_more),
    "no tensor": saved(no_tensor),
    "canary": saved(pickled_beside),
    "pickle": pickled,
    "text": lambda path, canary: path.write_text("weights"),
    "missing": lambda path, canary: path.unlink(),
    "directory": lambda path, canary: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("bad", BAD_WEIGHTS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_bad_weights_are_refused(bad, directory, canary):
    weights = directory / WEIGHTS
    BAD_WEIGHTS[bad](weights, canary)
    with pytest.raises(DeltaflowError, match=re.escape(str(weights))):
        load_predictor(directory)
    assert not canary.path.exists()


@pytest.mark.parametrize("bad", [name for name in BAD_WEIGHTS if name != "directory"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_bad_checkpoints_are_refused(bad, stored, univariate, make_estimator, canary, tmp_path):
    load_predictor(stored)
    checkpoint = tmp_path / "bad.ckpt"
    checkpoint.write_bytes(stored.read_bytes())
    BAD_WEIGHTS[bad](checkpoint, canary)
    with pytest.raises(DeltaflowError, match=re.escape(str(checkpoint)) + "|holds no predictor"):
        load_predictor(checkpoint)
    if bad in ("empty", "half", "all but the end", "flipped", "canary", "pickle", "text"):
        with pytest.raises(DeltaflowError, match=re.escape(str(checkpoint))):
            make_estimator(GRUEstimator).train(univariate, ckpt_path=str(checkpoint))
    assert not canary.path.exists()


def changed(**arguments):
    def change(content: dict) -> None:
        content["kwargs"].update(arguments)

    return change


def within(*keys: str, value):
    def change(content: dict) -> None:
        part = content["kwargs"]
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value

    return change


BAD_JSON = {
    "an argument of another version": changed(temperature=1.0),
    "a missing argument": lambda content: content["kwargs"].pop("reader"),
    "a missing part": lambda content: content["kwargs"]["reader"].pop("scaling"),
    "another type": changed(reader=[1, 2]),
    "no arguments": lambda content: content.update(kwargs="x"),
    "another network": within("network", "network", value="os.system"),
    "another encoder": within("network", "encoder", value="subprocess.Popen"),
    "another size": within("network", "hidden_size", value=9),
    "another scaling": within("reader", "scaling", value="builtins.eval"),
    "statistics of fewer channels": within("reader", "statistics", "center", value=[]),
    "statistics that are no numbers": within("reader", "statistics", "spread", value=["wide"]),
    "an infinite scale": within("reader", "statistics", "within", value=[float("inf")]),
    "a scale of zero": within("reader", "statistics", "variation", value=[0.0]),
    "NaN": within("reader", "statistics", "typical_gap", value=float("nan")),
    "statistics of more features": within("reader", "statistics", "static_center", value=[1.0]),
    "more channels": within("reader", "schema", "target", value=["HR", "MAP"]),
    "no list of channels": within("reader", "schema", "target", value="HR"),
    "channels without a name": within("reader", "schema", "target", value=[None]),
    "a number as a category": within("reader", "schema", "feat_static_cat", value={"ward": [1]}),
    "another time": within("reader", "schema", "time", value="lunar"),
    "half a query": changed(prediction_length=0.5),
    "a context of text": within("reader", "context", value="24h"),
    "centred or not": within("reader", "centred", value=[]),
    "no forecasts at once": changed(batch_size=0),
    "a class among the options": within(
        "network", "encoder_kwargs", value={"__kind__": "type", "class": "os.system"}
    ),
}


@pytest.mark.parametrize("bad", BAD_JSON)
def test_bad_descriptions_are_refused(bad, directory):
    path = directory / "predictor.json"
    content = json.loads(path.read_text())
    BAD_JSON[bad](content)
    path.write_text(json.dumps(content))
    with pytest.raises(DeltaflowError, match=re.escape(str(directory)) + "|unknown|at least 1"):
        load_predictor(directory)


@pytest.mark.parametrize("name", ["predictor.json", "gluonts-config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_broken_json_is_refused(name, content, directory):
    (directory / name).write_bytes(content)
    with pytest.raises(DeltaflowError, match=re.escape(str(directory))):
        load_predictor(directory)


HOLD = [
    {"levels": [0.5]}, {"leads": [[3600.0]]}, {"changes": [[[1.0]]]}, {"values": [["high"]]},
    {"center": ["high"]}, {"center": [float("inf")]}, {"center": []}, {"spread": [1.0]},
]  # fmt: skip

PROCESS = [
    {"theta": []}, {"theta": [[0.0]]}, {"theta": [["high"] * 5]}, {"theta": [[float("nan")] * 5]},
    {"theta": [[0.0] * 5] * 2}, {"process": "trend"}, {"center": [float("nan")]}, {"center": []},
    {"spread": [0.0]}, {"unit": 0.0}, {"powers": [1.0, 1.0]}, {"powers": [3.0]},
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((HoldPredictor, change) for change in HOLD),
        *((GaussianProcessPredictor, change) for change in PROCESS),
    ],
)
def test_a_damaged_simple_forecast_is_refused(kind, change, univariate, tmp_path):
    kind.fit(univariate.select(range(2)), 4).serialize(tmp_path)
    path = tmp_path / "predictor.json"
    content = json.loads(path.read_text())
    content["kwargs"].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(DeltaflowError, match=re.escape(str(path)) + "|unknown power"):
        load_predictor(tmp_path)
