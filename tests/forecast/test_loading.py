"""Loading a predictor executes nothing that its directory holds."""

import json
import pickle
import re
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from gluonts.model.seasonal_naive import SeasonalNaivePredictor
from torch.utils.data import DataLoader

from deltaflow import (
    DeltaflowError,
    ForecastLightningModule,
    HoldPredictor,
    IrregularPredictor,
    load_predictor,
)
from deltaflow.saving import FORMAT


def rewrite(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_directory_is_good_before_it_is_changed(directory, trained, univariate, instances):
    predictor = load_predictor(directory)
    assert isinstance(predictor, IrregularPredictor)
    entries = instances(univariate)
    for one, other in zip(
        predictor.predict(entries), trained("GRUEstimator").predict(entries), strict=True
    ):
        np.testing.assert_array_equal(one.quantile(0.5), other.quantile(0.5))


def test_the_directory_holds_plain_json_and_weights(directory):
    for path in directory.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            weights = torch.load(path, weights_only=True)
            assert all(isinstance(value, torch.Tensor) for value in weights.values())


@pytest.mark.parametrize("number", [None, 0, 99])
def test_a_predictor_in_another_format_is_refused(number, directory):
    rewrite(directory / "predictor.json", lambda content: content.update(format=number))
    message = f"in format {number}, and .* reads format {FORMAT}: train"
    with pytest.raises(DeltaflowError, match=message):
        load_predictor(directory)


@pytest.mark.parametrize("number", [None, 0, 99])
def test_a_checkpoint_in_another_format_is_refused(number, trained, tmp_path):
    module = ForecastLightningModule.from_predictor(trained("GRUEstimator"))
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    entries = DataLoader([], collate_fn=list)
    trainer.predict(module, entries)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert load_predictor(tmp_path / "model.ckpt").prediction_length == 4
    stored = torch.load(tmp_path / "model.ckpt", weights_only=True)
    torch.save({**stored, "deltaflow_format": number}, tmp_path / "other.ckpt")
    with pytest.raises(DeltaflowError, match=f"other.ckpt is stored in format {number}"):
        load_predictor(tmp_path / "other.ckpt")
    with pytest.raises(DeltaflowError, match=f"the checkpoint is stored in format {number}"):
        trainer.predict(module, entries, ckpt_path=tmp_path / "other.ckpt")


@pytest.mark.parametrize("name", ["os.system", "gluonts.model.seasonal_naive.Seasonal", "", None])
def test_a_foreign_class_is_refused(directory, name):
    rewrite(directory / "gluonts-config.json", lambda content: content.update(type=name))
    with pytest.raises(DeltaflowError, match="not a predictor of deltaflow; if you trust it"):
        load_predictor(directory)


def test_a_predictor_of_gluonts_is_refused(tmp_path):
    SeasonalNaivePredictor(prediction_length=2, season_length=1).serialize(tmp_path)
    with pytest.raises(DeltaflowError, match=r"Predictor\.deserialize"):
        load_predictor(tmp_path)


def test_a_class_that_does_not_match_its_arguments_is_refused(directory):
    name = f"{HoldPredictor.__module__}.{HoldPredictor.__qualname__}"
    rewrite(directory / "gluonts-config.json", lambda content: content.update(type=name))
    with pytest.raises(DeltaflowError, match=r"does not describe a .*HoldPredictor"):
        load_predictor(directory)


@pytest.mark.parametrize("place", ["distr_output", "network", "reader"])
def test_json_that_asks_for_an_object_is_refused(directory, place, tmp_path):
    # This is how GluonTS's serde writes a call.
    touched = tmp_path / "touched"
    call = {"__kind__": "instance", "class": "pathlib.Path.touch", "args": [str(touched)]}

    def change(content):
        arguments = content["kwargs"]
        arguments[place] = {"deep": [{"deeper": call}]} if place == "reader" else call

    rewrite(directory / "predictor.json", change)
    with pytest.raises(DeltaflowError, match=r"asks for an object 'pathlib\.Path\.touch'"):
        load_predictor(directory)
    assert not touched.exists()


def test_positional_arguments_are_refused(directory):
    rewrite(directory / "predictor.json", lambda content: content.update(args=["x"]))
    with pytest.raises(DeltaflowError, match="does not describe"):
        load_predictor(directory)


@pytest.mark.parametrize(
    ("write", "read"),
    [(torch.save, lambda file: torch.load(file, weights_only=False)), (pickle.dump, pickle.load)],
    ids=["torch", "pickle"],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_an_object_pickled_into_the_weights_is_not_executed(directory, write, read, canary):
    (weights,) = (path for path in directory.iterdir() if path.suffix != ".json")
    with weights.open("wb") as file:
        write({"network.weight": canary}, file)
    # The attack works where objects are unpickled ...
    with weights.open("rb") as file:
        read(file)
    assert canary.path.exists()
    canary.path.unlink()
    # ... but not here.
    with pytest.raises(DeltaflowError, match=re.escape(str(weights))):
        load_predictor(directory)
    assert not canary.path.exists()


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"type": ["a"]}'])
def test_a_directory_without_a_predictor_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "gluonts-config.json").write_text(content)
    with pytest.raises(DeltaflowError):
        load_predictor(tmp_path)


def test_a_predictor_is_written_over_an_older_one(directory, trained, multivariate, instances):
    trained("GRUFlowEstimator", "multivariate").serialize(directory)
    entries = instances(multivariate)
    forecasts = load_predictor(directory).predict(entries)
    for one, other in zip(
        forecasts, trained("GRUFlowEstimator", "multivariate").predict(entries), strict=True
    ):
        np.testing.assert_array_equal(one.quantile(0.5), other.quantile(0.5))
