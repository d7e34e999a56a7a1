"""Training by an estimator and by Lightning's own Trainer."""

import copy
import logging
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.fabric.accelerators import MPSAccelerator
from lightning.fabric.utilities.device_parser import _select_auto_accelerator
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, IterableDataset

from deltaflow import (
    DataError,
    DeltaflowError,
    ForecastLightningModule,
    ForecastWriter,
    GRUEstimator,
    GRUFlowEstimator,
    HoldEstimator,
    HoldPredictor,
    IrregularDataModule,
    IrregularDataset,
    IrregularEstimator,
    ResampledEstimator,
    TimeSplitter,
    load_predictor,
    predict_df,
    split_items,
)
from deltaflow.data.scaling import SCALINGS
from deltaflow.data.windows import joined
from deltaflow.training import engine


class Count(pl.Callback):
    """Counts the epochs that it sees."""

    def __init__(self) -> None:
        self.epochs = 0

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.epochs += 1


class Record(pl.Callback):
    """Keeps the loss and the weights of every validated epoch."""

    def __init__(self) -> None:
        self.losses, self.weights = [], []

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.losses.append(trainer.callback_metrics["val_loss"].item())
            self.weights.append(copy.deepcopy(pl_module.network.state_dict()))


def assert_same_weights(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.fixture
def surprises(univariate) -> list[dict]:
    """Validation items that a model expects less and less as it learns the smooth training data."""
    jumps = np.random.default_rng(0).choice([-1.0, 1.0], (8, 20))
    return [{**e, "target": jump} for e, jump in zip(univariate, jumps, strict=True)]


@pytest.mark.parametrize("validate", [False, True])
def test_trainer_kwargs_are_untouched_by_two_trainings(validate, univariate, make_estimator):
    count = Count()
    settings = {"max_epochs": 2, "enable_progress_bar": False, "callbacks": [count]}
    before = {**settings, "callbacks": [count]}
    estimator = make_estimator(GRUEstimator, trainer_kwargs=settings)
    for trainings in (1, 2):
        estimator.train(univariate, validation_data=univariate if validate else None)
        assert count.epochs == 2 * trainings
        assert settings == before
        assert estimator.trainer_kwargs == before


def test_a_single_callback_need_not_be_in_a_list(univariate, make_estimator):
    count = Count()
    settings = {"max_epochs": 1, "enable_progress_bar": False, "callbacks": count}
    make_estimator(GRUEstimator, trainer_kwargs=settings).train(univariate)
    assert count.epochs == 1


def test_validation_picks_the_best_epoch(univariate, surprises, make_estimator):
    record = Record()
    settings = {"max_epochs": 4, "enable_progress_bar": False, "callbacks": [record]}
    estimator = make_estimator(GRUEstimator, lr=0.03, trainer_kwargs=settings)
    predictor = estimator.train(univariate, validation_data=surprises)
    best = int(np.argmin(record.losses))
    assert len(record.losses) == 4
    assert best < 3, record.losses
    assert_same_weights(predictor.network.state_dict(), record.weights[best])


class RecordAverages(EMAWeightAveraging):
    """Averages weights, and keeps those that every epoch validated."""

    def __init__(self) -> None:
        super().__init__(decay=0.9)
        self.weights, self.losses = [], []

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self.weights.append(copy.deepcopy(pl_module.network.state_dict()))

    def on_validation_end(self, trainer, pl_module) -> None:
        self.losses.append(trainer.callback_metrics["val_loss"].item())


def test_a_moving_average_is_that_of_lightning(univariate, make_estimator):
    weights = []
    for average in (engine.moving_average(0.9), EMAWeightAveraging(decay=0.9)):
        settings = {"max_epochs": 3, "enable_progress_bar": False, "callbacks": average}
        estimator = make_estimator(GRUEstimator, lr=0.03, folds=0, trainer_kwargs=settings)
        weights.append(estimator.train(univariate).network.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-5, atol=1e-6)


def test_averaged_weights_are_those_of_the_best_epoch(univariate, surprises, make_estimator):
    averages = RecordAverages()
    settings = {"max_epochs": 5, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    estimator = make_estimator(
        GRUEstimator, lr=0.03, trainer_kwargs={**settings, "callbacks": averages}
    )
    predictor = estimator.train(univariate, surprises)
    best = int(np.argmin(averages.losses))
    assert best < 4, averages.losses
    assert_same_weights(predictor.network.state_dict(), averages.weights[best])


@pytest.mark.parametrize(
    "callback",
    [
        EMAWeightAveraging(decay=0.9),
        StochasticWeightAveraging(0.01, swa_epoch_start=2),
        EarlyStopping("val_loss", patience=1),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_a_callback_begins_anew_in_every_training_run(
    callback, univariate, surprises, make_estimator
):
    settings = {"max_epochs": 4, "enable_progress_bar": False, "callbacks": callback}
    estimator = make_estimator(GRUEstimator, lr=0.03, trainer_kwargs=settings)
    first = estimator.train(univariate, surprises).network.state_dict()
    assert_same_weights(estimator.train(univariate, surprises).network.state_dict(), first)


def test_stochastic_weight_averaging_returns_its_average(univariate, surprises, make_estimator):
    # The average is of the last epochs of training, so that validation has no influence on it.
    def train(validation, *callbacks) -> dict:
        settings = {"max_epochs": 4, "enable_progress_bar": False, "callbacks": list(callbacks)}
        estimator = make_estimator(GRUEstimator, lr=0.03, trainer_kwargs=settings)
        return estimator.train(univariate, validation).network.state_dict()

    averaged = train(surprises, StochasticWeightAveraging(0.01, swa_epoch_start=2))
    assert_same_weights(averaged, train(None, StochasticWeightAveraging(0.01, swa_epoch_start=2)))
    # It has not begun when training ends: the best epoch is kept then.
    late = train(surprises, StochasticWeightAveraging(0.01, swa_epoch_start=9))
    assert_same_weights(late, train(surprises))


def test_forecasts_of_a_test_set_are_validated_as_given(univariate, make_estimator):
    splitter = TimeSplitter(after="30h", horizon="20h")
    count = splitter.prediction_length(univariate)
    assert count > 4
    judged = splitter.split(univariate)[1].generate_instances(count)
    record = Record()
    settings = {"max_epochs": 3, "enable_progress_bar": False, "callbacks": [record]}
    estimator = make_estimator(GRUEstimator, horizon="1h", trainer_kwargs=settings)
    module, _, predictor = estimator.train_model(univariate, judged)
    best = int(np.argmin(record.losses))
    assert_same_weights(predictor.network.state_dict(), record.weights[best])
    # The loss is that of all labels, further away than training windows reach.
    windows = [
        predictor.reader.window(predictor.reader.read(joined(*pair)), pair[0]["target"].shape[-1])
        for pair in judged
    ]
    total, number = module.network.eval().loss(predictor.reader.collate(windows))
    assert number == sum(np.isfinite(label["target"]).sum() for _, label in judged)
    assert (total / number).item() == pytest.approx(record.losses[best], rel=1e-5)


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoints_hold_the_averaged_weights(weights_only, univariate, tmp_path):
    data = IrregularDataModule(
        univariate, univariate, prediction_length=4, context_length=12, num_batches_per_epoch=2
    )
    module = ForecastLightningModule(
        data.reader, data.prediction_length, encoder="gru", hidden_size=4
    )
    keep, averages = ModelCheckpoint(tmp_path, save_weights_only=weights_only), RecordAverages()
    settings = {"logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    pl.Trainer(max_epochs=1, callbacks=[averages, keep], **settings).fit(module, data)
    stored = load_predictor(keep.best_model_path).network.state_dict()
    assert_same_weights(stored, averages.weights[0])


def test_logs_and_checkpoints_are_written_where_they_were_asked_for(
    univariate, make_estimator, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    def train(validation=None, **settings) -> None:
        settings = {"max_epochs": 1, "enable_progress_bar": False, **settings}
        make_estimator(GRUEstimator, trainer_kwargs=settings).train(univariate, validation)

    train(univariate, logger=CSVLogger("."))
    assert (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").exists()
    for validation, monitor in ((None, "train_loss"), (univariate, "val_loss")):
        keep = ModelCheckpoint(f"mine_{monitor}", monitor=monitor, save_last=True)
        train(validation, callbacks=[keep])
        assert load_predictor(keep.best_model_path).prediction_length == 4
        assert {path.name for path in (tmp_path / f"mine_{monitor}").iterdir()} >= {"last.ckpt"}
    unnamed = ModelCheckpoint()
    train(callbacks=unnamed, default_root_dir="elsewhere")
    assert list((tmp_path / "elsewhere" / "checkpoints").iterdir())


def test_best_epoch_before_an_interruption_is_not_forgotten(
    univariate, surprises, make_estimator, tmp_path
):
    record = Record()
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)

    def train(callbacks, ckpt_path=None) -> dict:
        settings = {"max_epochs": 4, "enable_progress_bar": False, "callbacks": callbacks}
        estimator = make_estimator(GRUEstimator, lr=0.03, trainer_kwargs=settings)
        return estimator.train(univariate, surprises, ckpt_path=ckpt_path).network.state_dict()

    whole = train([record, keep])
    assert np.argmin(record.losses) < 3, record.losses
    assert_same_weights(train([], str(tmp_path / "epoch=2.ckpt")), whole)


def test_without_validation_the_last_epoch_stays(univariate, make_estimator):
    output = make_estimator(GRUEstimator).train_model(univariate)
    trained = output.trained_net.network.state_dict()
    assert_same_weights(output.predictor.network.state_dict(), trained)
    assert output.trainer.current_epoch == 1


def test_without_logged_losses_the_last_epoch_stays(univariate, make_estimator):
    barebones = {"barebones": True, "max_epochs": 2}
    estimator = make_estimator(GRUEstimator, trainer_kwargs=barebones)
    weights = estimator.train_model(univariate, univariate).predictor.network.state_dict()
    assert_same_weights(weights, estimator.train_model(univariate).predictor.network.state_dict())


def test_training_writes_nothing_into_the_working_directory(
    univariate, make_estimator, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make_estimator(GRUEstimator).train(univariate, validation_data=univariate)
    assert list(tmp_path.iterdir()) == []


def test_the_data_are_not_changed_by_training(multivariate, make_estimator, instances):
    before = copy.deepcopy(list(multivariate))
    predictor = make_estimator(GRUEstimator).train(multivariate, validation_data=multivariate)
    list(predictor.predict(instances(multivariate)))
    for entry, original in zip(multivariate, before, strict=True):
        np.testing.assert_equal(entry, original)


def test_train_from_keeps_the_scaling_of_the_first_training(univariate, trained, make_estimator):
    larger = [{**entry, "target": 1000 * entry["target"]} for entry in univariate]
    first = trained("GRUEstimator")
    second = make_estimator(GRUEstimator).train_from(first, larger)
    assert second.reader.statistics == first.reader.statistics


def test_train_from_may_change_the_number_of_queries(univariate, trained, make_estimator):
    estimator = make_estimator(GRUEstimator, prediction_length=7)
    assert estimator.train_from(trained("GRUEstimator"), univariate).prediction_length == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "gru_d"}, "encoder 'gru', not 'gru_d'"),
        ({"hidden_size": 12}, "hidden_size 8, not 12"),
        ({"distr_output": "normal"}, "distr_output 'student_t', not 'normal'"),
        # The weights would fit this one.
        ({"network_kwargs": {"num_heads": 4}}, "network_kwargs {'num_heads': 2}, not"),
    ],
)
def test_train_from_another_network_is_refused(
    options, message, univariate, make_estimator, tmp_path
):
    own = {"network": "channelwise", "network_kwargs": {"num_heads": 2}}
    make_estimator(GRUEstimator, **own).train(univariate).serialize(tmp_path)
    first = load_predictor(tmp_path)
    with pytest.raises(DeltaflowError, match=re.escape(f"the predictor has {message}")):
        make_estimator(GRUEstimator, **{**own, **options}).train_from(first, univariate)


def test_missing_targets_have_no_influence_on_training(univariate, make_estimator, instances):
    # A channel value that is missing is NaN; whatever else is said of it changes nothing.
    estimator = make_estimator(GRUEstimator)
    data = estimator.create_data_module(univariate)
    module = estimator.create_lightning_module(data)
    batch = next(iter(data.train_dataloader()))
    hidden = ~batch.target_observed
    hidden[:, 0] = True
    losses = []
    for value in (0.0, 1e5):
        target = torch.where(hidden, value, batch.target)
        changed = batch._replace(target=target, target_observed=~hidden)
        losses.append(module.network.loss(changed))
    assert losses[0][1] == losses[1][1] == (~hidden).sum()
    assert torch.equal(losses[0][0], losses[1][0])


def test_a_lightning_trainer_trains_the_module(multivariate, instances):
    torch.manual_seed(0)
    data = IrregularDataModule(
        multivariate, multivariate, prediction_length=4, context_length=12, num_batches_per_epoch=2
    )
    module = ForecastLightningModule(
        data.reader, data.prediction_length, encoder="coupling_flow", hidden_size=8
    )
    before = copy.deepcopy(module.state_dict())
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    assert any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert np.isfinite(trainer.callback_metrics["val_loss"].item())
    for forecast in module.to_predictor().predict(instances(multivariate)):
        assert np.isfinite(forecast.quantile(0.9)).all()


@pytest.fixture
def mac(monkeypatch):
    """Lets Lightning see the GPU of an Apple computer."""
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: True)
    assert _select_auto_accelerator() == "mps"


def test_apples_gpu_is_not_chosen_since_it_has_no_float64(mac, univariate, make_estimator):
    estimator = make_estimator(GRUEstimator)
    assert isinstance(estimator.train_model(univariate).trainer.accelerator, CPUAccelerator)
    given = estimator.with_settings(trainer_kwargs={"accelerator": "auto", "max_epochs": 1})
    assert isinstance(given.train_model(univariate).trainer.accelerator, CPUAccelerator)


def test_apples_gpu_is_refused_before_training(mac, univariate):
    data = IrregularDataModule(univariate, **SMALL)
    trainer = pl.Trainer(max_epochs=1, **QUIET)
    with pytest.raises(DeltaflowError, match=r"float64, which Apple's GPU.* lacks: choose 'cpu'"):
        trainer.fit(ForecastLightningModule(data.reader, 4), data)


class Penalised(ForecastLightningModule):
    """A user's module, with a hyperparameter, a layer and a loss of its own."""

    def __init__(self, *args, alpha: float = 0.1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.save_hyperparameters("alpha")
        self.alpha = alpha
        self.extra = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        penalty = sum(part.square().sum() for part in self.parameters())
        return super().training_step(batch, batch_idx) + self.alpha * penalty


class Annotated(ForecastLightningModule):
    """A user's module that stores all of its arguments, as is usual with Lightning."""

    def __init__(self, reader, prediction_length, note: str = "", **kwargs) -> None:
        super().__init__(reader, prediction_length, **kwargs)
        self.save_hyperparameters()


SMALL = {"prediction_length": 4, "context_length": 12, "num_batches_per_epoch": 2}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def test_a_module_of_ones_own_is_kept_in_its_checkpoint(univariate, instances, tmp_path):
    data = IrregularDataModule(univariate, **SMALL)
    module = Penalised(data.reader, 4, encoder="gru", hidden_size=8, alpha=0.5)
    trainer = pl.Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    loaded = Penalised.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert loaded.alpha == 0.5
    assert_same_weights(loaded.state_dict(), module.state_dict())
    entries = instances(univariate)
    for one, other in zip(
        module.to_predictor().predict(entries),
        load_predictor(tmp_path / "own.ckpt").predict(entries),
        strict=True,
    ):
        np.testing.assert_array_equal(one.mean, other.mean)


def test_a_module_of_ones_own_may_store_all_of_its_arguments(univariate, tmp_path):
    data = IrregularDataModule(univariate, **SMALL)
    module = Annotated(data.reader, 4, note="first", encoder="gru", hidden_size=8)
    trainer = pl.Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    loaded = Annotated.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert loaded.hparams["note"] == "first"
    weights = load_predictor(tmp_path / "own.ckpt").network.state_dict()
    assert_same_weights(weights, module.network.state_dict())
    pl.Trainer(max_epochs=2, **QUIET).fit(loaded, data, ckpt_path=tmp_path / "own.ckpt")


def test_forecasts_of_a_module_are_those_of_its_weights(univariate, instances):
    data = IrregularDataModule(univariate, **SMALL)
    module = ForecastLightningModule(data.reader, 4, encoder="gru", hidden_size=8)
    entries = instances(univariate)
    loader = DataLoader(entries, batch_size=8, collate_fn=list)
    (predicted,) = pl.Trainer(**QUIET).predict(module, loader)
    np.testing.assert_array_equal(module.predict_step(entries)[0].mean, predicted[0].mean)
    pl.Trainer(max_epochs=1, **QUIET).fit(module, data)
    (expected, *_) = module.to_predictor().predict(entries)
    np.testing.assert_array_equal(module.predict_step(entries)[0].mean, expected.mean)
    assert (expected.mean != predicted[0].mean).all()


class Streamed(IterableDataset):
    """Entries without numbers."""

    def __init__(self, entries: list[dict]) -> None:
        self.entries = entries

    def __iter__(self):
        return iter(self.entries)


def test_forecasts_of_numbered_entries_are_written(univariate, instances, tmp_path):
    data = IrregularDataModule(univariate, **SMALL)
    module = ForecastLightningModule(data.reader, 4, encoder="gru", hidden_size=8)
    entries = instances(univariate)
    trainer = pl.Trainer(**{**QUIET, "callbacks": [ForecastWriter(tmp_path / "forecasts.csv")]})
    trainer.predict(module, DataLoader(entries, batch_size=3, collate_fn=list))
    written = pd.read_csv(tmp_path / "forecasts.csv", dtype={"item_id": str})
    expected = [one.quantile(0.9) for one in module.predict_step(entries)]
    np.testing.assert_allclose(written["0.9"], np.concatenate(expected), rtol=1e-5)
    with pytest.raises(DeltaflowError, match="list"):
        trainer.predict(module, DataLoader(Streamed(entries), batch_size=3, collate_fn=list))


def test_what_has_been_trained_can_be_sent_to_other_processes(univariate):
    """Lightning pickles a data module with its last trainer, to spawn processes for another one."""
    data = IrregularDataModule(univariate, **SMALL)
    module = ForecastLightningModule(data.reader, 4, encoder="gru", hidden_size=8)
    pl.Trainer(max_epochs=1, **QUIET).fit(module, data)
    sent = pickle.loads(pickle.dumps([module, data]))
    assert_same_weights(sent[0].state_dict(), module.state_dict())
    assert sent[1].reader == data.reader


def test_a_learning_rate_that_lightning_has_found_is_used(univariate, tmp_path):
    data = IrregularDataModule(univariate, **{**SMALL, "num_batches_per_epoch": 30})
    module = ForecastLightningModule(data.reader, 4, encoder="gru", hidden_size=8, lr=1e-4)
    trainer = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    found = Tuner(trainer).lr_find(module, data, max_lr=0.01, num_training=30).suggestion()
    assert found not in (None, 1e-4)
    trainer.fit(module, data)
    assert trainer.optimizers[0].param_groups[0]["initial_lr"] == found


class Rates(pl.Callback):
    """Keeps the learning rate of every step."""

    def __init__(self) -> None:
        self.of_steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.of_steps.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_callback_that_finds_a_learning_rate_sets_that_of_training(univariate, tmp_path):
    data = IrregularDataModule(univariate, **{**SMALL, "num_batches_per_epoch": 30})

    def rates_of(lr: float, *callbacks: pl.Callback) -> list[float]:
        module = ForecastLightningModule(data.reader, 4, encoder="gru", hidden_size=8, lr=lr)
        rates = Rates()
        options = {**QUIET, "callbacks": [*callbacks, rates], "default_root_dir": tmp_path}
        pl.Trainer(max_epochs=2, **options).fit(module, data)
        return rates.of_steps

    finder = LearningRateFinder(max_lr=0.01, num_training_steps=30)
    rates = rates_of(1e-4, finder)
    assert finder.optimal_lr is not None
    found = finder.optimal_lr.suggestion()
    assert found not in (None, 1e-4)
    assert rates == rates_of(found)


def test_processes_started_by_lightning_return_the_best_epoch(
    univariate, surprises, instances, make_estimator
):
    """The first epoch is the best one. Of their weights, only the module's come back."""

    def forecast(**options) -> list[np.ndarray]:
        settings = {"max_epochs": 3, "enable_progress_bar": False, "accelerator": "cpu", **options}
        estimator = make_estimator(GRUEstimator, lr=0.03, trainer_kwargs=settings)
        predictor = estimator.train(univariate, validation_data=surprises)
        return [one.quantile(0.3) for one in predictor.predict(instances(univariate))]

    forked = forecast(strategy="ddp_fork", devices=1)
    np.testing.assert_allclose(forked, forecast(), rtol=1e-6)


class Plain(ForecastLightningModule):
    """A module with an optimiser of its own."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_a_subclass_keeps_its_own_optimiser(univariate):
    data = IrregularDataModule(univariate, **SMALL)
    module = Plain(data.reader, 4, encoder="gru", hidden_size=8, lr=0.02)
    rates = Rates()
    pl.Trainer(max_epochs=1, **{**QUIET, "callbacks": [rates]}).fit(module, data)
    assert set(rates.of_steps) == {0.01}


@pytest.mark.parametrize("share", [3, 1.0])
def test_some_batches_can_be_overfitted(share, univariate):
    data = IrregularDataModule(univariate, univariate, **SMALL, batch_size=5)
    module = ForecastLightningModule(data.reader, 4, encoder="gru", hidden_size=8)
    trainer = pl.Trainer(max_epochs=2, overfit_batches=share, **QUIET)
    trainer.fit(module, data)
    assert np.isfinite(trainer.callback_metrics["val_loss"].item())


class Targets(pl.Callback):
    """Keeps the targets of every training batch."""

    def __init__(self) -> None:
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append(batch.target)


@pytest.mark.parametrize(("share", "count"), [(2, 2), (0.5, 3)])
def test_every_epoch_overfits_the_same_batches(share, count, univariate, tmp_path):
    options = {**SMALL, "batch_size": 4, "num_batches_per_epoch": 6}
    step = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    weights = []
    for path in (None, tmp_path / f"step={count + 1}.ckpt"):  # a batch after the first epoch
        data = IrregularDataModule(univariate, univariate, **options)
        first = [batch.target for batch in islice(data.train_dataloader(), count)]
        module = ForecastLightningModule(data.reader, 4, encoder="gru", hidden_size=8, seed=0)
        seen = Targets()
        callbacks = [seen] if path else [seen, step]
        settings = {**QUIET, "enable_checkpointing": path is None, "callbacks": callbacks}
        pl.Trainer(max_epochs=2, overfit_batches=share, **settings).fit(
            module, data, ckpt_path=path
        )
        expected = first[1:] if path else first + first
        assert len(seen.batches) == len(expected)
        assert all(map(torch.equal, seen.batches, expected))
        weights.append(module.state_dict())
    assert_same_weights(*weights)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_any_precision_trains(precision, univariate):
    data = IrregularDataModule(univariate, univariate, **SMALL)
    module = ForecastLightningModule(data.reader, 4, encoder="gru", hidden_size=8)
    trainer = pl.Trainer(max_epochs=1, precision=precision, **QUIET)
    trainer.fit(module, data)
    assert np.isfinite(trainer.callback_metrics["val_mse"].item())


def test_the_loss_is_the_mean_over_all_observed_targets(multivariate):
    # Items with many missing channels, and small last batches, count for less.
    data = IrregularDataModule(
        multivariate, multivariate, prediction_length=4, context_length=12, batch_size=3
    )
    module = ForecastLightningModule(data.reader, data.prediction_length, hidden_size=8).eval()
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (logged,) = trainer.validate(module, data, verbose=False)
    with torch.no_grad():
        totals, counts = zip(*(module.network.loss(b) for b in data.val_dataloader()), strict=True)
    assert len({int(count) for count in counts}) == 3
    assert logged["val_loss"] == pytest.approx(float(sum(totals) / sum(counts)), rel=1e-5)


@pytest.mark.parametrize("head", ["student_t", "quantile"])
def test_a_checkpoint_loads_without_arguments_and_without_objects(
    head, multivariate, instances, tmp_path
):
    data = IrregularDataModule(
        multivariate, prediction_length=4, context_length=12, num_batches_per_epoch=2
    )
    module = ForecastLightningModule(
        data.reader,
        data.prediction_length,
        encoder="resnet_flow",
        encoder_kwargs={"num_layers": 1},
        hidden_size=8,
        distr_output=head,
    )
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)

    loaded = ForecastLightningModule.load_from_checkpoint(path, weights_only=True)
    assert_same_weights(loaded.state_dict(), module.state_dict())
    assert loaded.reader == module.reader
    entries = instances(multivariate)
    for one, other in zip(
        module.to_predictor().predict(entries), loaded.to_predictor().predict(entries), strict=True
    ):
        np.testing.assert_array_equal(one.quantile(0.9), other.quantile(0.9))


def test_a_training_resumes_from_its_checkpoint(univariate, make_estimator, tmp_path, instances):
    settings = {"enable_progress_bar": False, "max_epochs": 3}
    whole = make_estimator(GRUEstimator, trainer_kwargs=settings).train(univariate)

    class StopAfterTwo(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    interrupted = make_estimator(
        GRUEstimator, trainer_kwargs={**settings, "callbacks": [StopAfterTwo()]}
    ).train_model(univariate)
    assert interrupted.trainer.current_epoch == 2
    interrupted.trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed = make_estimator(GRUEstimator, trainer_kwargs=settings).train(
        univariate, ckpt_path=str(tmp_path / "two.ckpt")
    )
    assert_same_weights(resumed.network.state_dict(), whole.network.state_dict())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_resumes_within_an_epoch_as_if_it_had_not_stopped(
    num_workers, univariate, tmp_path
):
    def fit(ckpt_path=None, callbacks=()) -> list[tuple[float, float]]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            data = IrregularDataModule(
                univariate, prediction_length=4, context_length=12, batch_size=4,
                num_batches_per_epoch=4, num_workers=num_workers,
            )  # fmt: skip
            module = ForecastLightningModule(
                data.reader, data.prediction_length, hidden_size=4, dropout=0.5
            )
            losses = Losses()
            trainer = pl.Trainer(
                max_epochs=2, logger=False, enable_progress_bar=False,
                enable_checkpointing=bool(callbacks), callbacks=[losses, *callbacks],
            )  # fmt: skip
            trainer.fit(module, data, ckpt_path=ckpt_path)
        return losses.seen

    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    whole = fit(callbacks=[keep])
    assert len(set(whole)) == 8
    assert fit(tmp_path / "step=3.ckpt") == whole[3:]
    assert fit(tmp_path / "step=6.ckpt") == whole[6:]


@pytest.mark.parametrize("failing", [1, 3, 4])  # the last of the first epoch is batch 3
@pytest.mark.parametrize("hook", ["on_before_backward", "on_before_optimizer_step"])
def test_a_batch_that_failed_before_its_step_is_trained_on_after_resuming(
    hook, failing, univariate, tmp_path
):
    class Fail(pl.Callback):
        """Fails as a full memory does, once so many steps were taken."""

        def on_before_backward(self, trainer, pl_module, loss) -> None:
            self.fail(trainer, "on_before_backward")

        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            self.fail(trainer, "on_before_optimizer_step")

        def fail(self, trainer, here: str) -> None:
            if here == hook and trainer.global_step == failing:
                raise MemoryError

    def fit(callbacks, ckpt_path=None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            data = IrregularDataModule(
                univariate, univariate, prediction_length=4, context_length=12, batch_size=4,
                num_batches_per_epoch=4,
            )  # fmt: skip
            module = ForecastLightningModule(
                data.reader, data.prediction_length, hidden_size=4, dropout=0.5
            )
        trainer = pl.Trainer(
            max_epochs=2, logger=False, enable_progress_bar=False, callbacks=callbacks,
            enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        )  # fmt: skip
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module.state_dict()

    whole, resumed = Losses(), Losses()
    expected = fit([whole])
    keep = ModelCheckpoint(tmp_path, "failed", save_on_exception=True, save_top_k=0)
    with pytest.raises(MemoryError):
        fit([keep, Fail()])
    assert_same_weights(fit([resumed], tmp_path / "failed.ckpt"), expected)
    assert resumed.seen == whole.seen[failing:]


@pytest.mark.parametrize("change", [{"prediction_length": 3}, {"horizon": "1h"}])
def test_training_resumes_with_the_same_windows_only(change, univariate, make_estimator, tmp_path):
    keep = ModelCheckpoint(tmp_path, "kept")
    settings = {"max_epochs": 1, "enable_progress_bar": False, "callbacks": [keep]}
    make_estimator(GRUEstimator, trainer_kwargs=settings).train(univariate)
    other = make_estimator(GRUEstimator, **{"prediction_length": 4, **change})
    with pytest.raises(DeltaflowError, match="with the same prediction_length and horizon"):
        other.train(univariate, ckpt_path=str(tmp_path / "kept.ckpt"))


def test_data_module_that_has_resumed_begins_the_next_training_anew(univariate, tmp_path):
    data = IrregularDataModule(
        univariate, univariate, prediction_length=4, context_length=12, num_batches_per_epoch=3
    )
    module = ForecastLightningModule(data.reader, data.prediction_length, hidden_size=4)
    settings = {"logger": False, "enable_progress_bar": False, "max_epochs": 1}
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    validated = pl.Trainer(**settings)
    validated.validate(module, data, verbose=False)
    validated.save_checkpoint(tmp_path / "untrained.ckpt")
    pl.Trainer(callbacks=[keep], **settings).fit(module, data)
    resumed, anew = Losses(), Losses()
    settings["enable_checkpointing"] = False
    again = pl.Trainer(callbacks=[resumed], **settings)
    again.fit(module, data, ckpt_path=tmp_path / "step=1.ckpt")
    pl.Trainer(callbacks=[anew], **settings).fit(module, data)
    assert (len(resumed.seen), len(anew.seen)) == (2, 3)
    assert [read for _, read in anew.seen[1:]] == [read for _, read in resumed.seen]


class Losses(pl.Callback):
    """Keeps the loss of every batch, and what the batch holds."""

    def __init__(self) -> None:
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append((float(outputs["loss"]), float(batch.values.sum())))


def test_predictor_and_module_turn_into_each_other(trained, univariate, instances, tmp_path):
    predictor = trained("GRUFlowEstimator")
    module = ForecastLightningModule.from_predictor(predictor)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    entries = instances(univariate)
    batches = trainer.predict(module, DataLoader(entries, batch_size=3, collate_fn=list))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load_predictor(tmp_path / "model.ckpt")
    assert loaded.reader == predictor.reader
    for expected, *others in zip(
        predictor.predict(entries), loaded.predict(entries), chain(*batches), strict=True
    ):
        for other in others:
            assert other.item_id == expected.item_id
            np.testing.assert_allclose(other.quantile(0.9), expected.quantile(0.9), rtol=1e-5)


@pytest.mark.parametrize(
    ("context_length", "options", "message"),
    [
        (9, {}, "other data, or with other windows"),
        (12, {"encoder": "gru_d"}, "encoder 'gru', not 'gru_d'"),
        (12, {"network": "joint", "network_kwargs": {}}, "network 'channelwise', not 'joint'"),
        # The weights would fit this one.
        (12, {"network_kwargs": {"num_heads": 4}}, "network_kwargs {'num_heads': 2}, not"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    context_length, options, message, univariate, tmp_path
):
    def module(context_length: int, **options) -> ForecastLightningModule:
        data = IrregularDataModule(univariate, prediction_length=4, context_length=context_length)
        own = {"encoder": "gru", "network": "channelwise", "network_kwargs": {"num_heads": 2}}
        return ForecastLightningModule(
            data.reader, data.prediction_length, hidden_size=4, **{**own, **options}
        )

    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    entries = DataLoader([], collate_fn=list)
    trainer.predict(module(12), entries)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    other = module(context_length, **options)
    with pytest.raises(DeltaflowError, match=message):
        trainer.predict(other, entries, ckpt_path=tmp_path / "model.ckpt")


@pytest.mark.parametrize("head", ["student_t", "quantile"])  # whose parameters are checked, or not
def test_a_loss_that_is_no_number_ends_the_training_with_advice(head, univariate, make_estimator):
    with pytest.raises(DeltaflowError, match=r"train_loss .*in epoch 0: lower the learning rate"):
        make_estimator(GRUEstimator, lr=1e30, distr_output=head).train(univariate)


@pytest.mark.parametrize("encoder", ["gru_flow", "gru"])  # whose norms are decomposed, or not
def test_weights_that_are_no_numbers_end_validation_and_training_with_advice(encoder, univariate):
    windows = IrregularDataModule(univariate, univariate, prediction_length=4, context_length=12)
    model = ForecastLightningModule(
        windows.reader, windows.prediction_length, encoder=encoder, hidden_size=8
    )
    for weights in model.parameters():
        torch.nn.init.constant_(weights, float("nan"))
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(DeltaflowError, match=r"val_loss .*in epoch 0: lower the learning rate"):
        trainer.validate(model, windows.val_dataloader(), verbose=False)
    with pytest.raises(DeltaflowError, match=r"not finite: train again, at a lower learning rate"):
        model.to_predictor()


@pytest.mark.parametrize("encoder", ["gru_flow", "gru"])
@pytest.mark.parametrize("options", [{}, {"sampling": "path"}, {"distr_output": "quantile"}])
def test_a_last_step_that_leaps_too_far_gives_no_forecast(
    encoder, options, univariate, instances, make_estimator
):
    estimator = make_estimator(
        IrregularEstimator, encoder=encoder, lr=1e30, num_batches_per_epoch=1, **options
    )
    predictor = estimator.train(univariate)
    with pytest.raises(
        DeltaflowError, match=r"not a number: train again, at a lower learning rate"
    ):
        list(predictor.predict(instances(univariate)))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_smallest_numbers_can_be_learned_from(scaling, univariate_frame, make_estimator):
    tiny = univariate_frame.assign(HR=5e-324)
    dataset = IrregularDataset.from_long_dataframe(tiny, target="HR")
    future = tiny.groupby("item_id", as_index=False)["timestamp"].max()
    estimator = make_estimator(GRUFlowEstimator, scaling=scaling)
    for predictor in (estimator.train(dataset), HoldPredictor.fit(dataset, 4)):
        answer = predict_df(predictor, tiny, future)
        assert np.isfinite(answer[["predictions", "0.1", "0.9"]]).all(axis=None)


def test_a_training_without_known_end_keeps_its_learning_rate(univariate, make_estimator):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *arguments) -> None:
            trainer.should_stop = trainer.global_step >= 7

    options = {"trainer_kwargs": {"max_epochs": -1, "enable_progress_bar": False}}
    options["trainer_kwargs"]["callbacks"] = Stop()
    trainer = make_estimator(GRUEstimator, lr=0.004, **options).train_model(univariate).trainer
    assert trainer.global_step >= 7
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.004


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"lr": 1.0}}, tmp_path / "other.ckpt")
    with pytest.raises(DeltaflowError, match="not a checkpoint of a ForecastLightningModule"):
        load_predictor(tmp_path / "other.ckpt")
    torch.save({"hyper_parameters": Losses()}, tmp_path / "object.ckpt")
    with pytest.raises(DeltaflowError, match="weights and plain values"):
        load_predictor(tmp_path / "object.ckpt")


def test_training_says_nothing_but_warnings(univariate, make_estimator, caplog):
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)  # not every version of Lightning passes records on
    try:
        make_estimator(GRUEstimator).train(univariate)
        assert not caplog.records
        pl.Trainer(max_epochs=1, logger=False)
        assert caplog.records
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_resumes_in_the_middle_of_an_epoch(
    num_workers, univariate, make_estimator, tmp_path
):
    # Step 5 is the second of three batches of the second epoch. Workers read ahead of them.
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5)
    settings = {"enable_progress_bar": False, "max_epochs": 3}

    def train(callbacks, seed, path=None):
        estimator = make_estimator(
            GRUEstimator,
            trainer_kwargs={**settings, "callbacks": callbacks},
            num_workers=num_workers,
            seed=seed,
        )
        return estimator.train(univariate, ckpt_path=path).network.state_dict()

    whole = train([keep], seed=0)
    # Even the seed of the windows is that of the interrupted training.
    assert_same_weights(train([], seed=1, path=str(tmp_path / "step=5.ckpt")), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_epochs": 3},
            "an option of Lightning's Trainer: give trainer_kwargs={'max_epochs': 3}",
        ),
        ({"num_layers": 2}, "an option of the encoder 'gru_flow': give encoder_kwargs="),
        ({"network": "channelwise", "num_heads": 2}, "of the network 'channelwise': give network_"),
        ({"hiden_size": 4}, "has no argument 'hiden_size': did you mean 'hidden_size'"),
    ],
)
def test_an_argument_that_no_estimator_has_is_refused_with_its_place(options, message):
    with pytest.raises(TypeError, match=message) as caught:
        GRUFlowEstimator(4, **options)
    assert isinstance(caught.value, DeltaflowError)


@pytest.mark.parametrize("name", ["prediction_length", "batch_size", "folds", "seed"])
def test_a_fraction_is_not_rounded_to_a_whole_number(name):
    with pytest.raises(DeltaflowError, match=f"{name} must be a whole number, got 2.5"):
        GRUEstimator(**{"prediction_length": 4, name: 2.5})
    with pytest.raises(DeltaflowError, match="prediction_length must be a whole number"):
        GRUEstimator(2.5)
    assert GRUEstimator(4.0).prediction_length == 4


@pytest.mark.parametrize("cls", [GRUEstimator, HoldEstimator, ResampledEstimator])
def test_a_misspelt_keyword_of_train_is_refused(cls, univariate):
    with pytest.raises(TypeError, match="validation_dta"):
        cls(4).train(univariate, validation_dta=univariate)


def test_keywords_of_gluonts_are_accepted(univariate, trained, make_estimator):
    ignored = {"shuffle_buffer_length": 10, "cache_data": True, "num_workers": 2}
    expected = trained("GRUEstimator").network.state_dict()
    again = make_estimator(GRUEstimator).train(univariate, **ignored)
    assert_same_weights(again.network.state_dict(), expected)
    assert HoldEstimator(4).train(univariate, **ignored).prediction_length == 4


def test_a_predictor_without_a_network_cannot_be_trained_on(univariate, make_estimator):
    hold = HoldPredictor.fit(univariate, 4)
    with pytest.raises(DeltaflowError, match="a HoldPredictor is not a single network"):
        make_estimator(GRUEstimator).train_from(hold, univariate)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_outside_of_their_range_are_refused(seed, univariate, make_estimator):
    lengths = {"prediction_length": 4, "context_length": 12}
    reader = IrregularDataModule(univariate, **lengths).reader
    for make in (
        lambda: make_estimator(GRUEstimator, seed=seed),
        lambda: IrregularDataModule(univariate, **lengths, seed=seed),
        lambda: ForecastLightningModule(reader, 4, seed=seed),
        lambda: split_items(univariate, seed=seed),
    ):
        with pytest.raises(DeltaflowError, match=f"seed must lie between 0 and .* got {seed}"):
            make()


@pytest.mark.parametrize("learn", [GRUEstimator(4).train, lambda data: HoldPredictor.fit(data, 4)])
def test_a_training_set_that_a_split_has_emptied_is_named(learn, univariate):
    training, _ = TimeSplitter(date="1999-12-31").split(univariate)
    with pytest.raises(DataError, match="no item of the training set has an observation; if"):
        learn(training)


def test_durations_reach_the_windows(univariate, make_estimator, trained):
    estimator = make_estimator(GRUEstimator, prediction_length=9, horizon="5h", context="12h")
    data = estimator.create_data_module(univariate)
    assert (data.horizon.duration, data.reader.context) == (18000, 43200)
    again = estimator.create_data_module(univariate, from_predictor=trained("GRUEstimator"))
    assert (again.horizon.duration, again.reader.context) == (18000, 43200)


def test_any_registered_encoder_can_be_named(univariate, make_estimator, instances):
    estimator = make_estimator(
        IrregularEstimator, encoder="resnet_flow", encoder_kwargs={"num_layers": 1}
    )
    predictor = estimator.train(univariate)
    assert "resnet" in repr(predictor)
    assert all(np.isfinite(f.mean).all() for f in predictor.predict(instances(univariate)))


def test_an_option_that_the_encoder_does_not_know_is_refused(univariate, make_estimator):
    estimator = make_estimator(GRUFlowEstimator, encoder_kwargs={"depth": 2})
    with pytest.raises(DeltaflowError, match=r"encoder_kwargs of 'gru_flow': .*depth"):
        estimator.train(univariate)


@pytest.mark.parametrize("option", [{"lr": -1.0}, {"weight_decay": float("nan")}, {"dropout": 2.0}])
def test_options_outside_of_their_range_are_refused(option, univariate, make_estimator):
    (name,) = option
    with pytest.raises(
        DeltaflowError, match=f"{name} must (be at least 0|lie between 0 and 1), got"
    ):
        make_estimator(GRUEstimator, **option).train(univariate)


def test_the_default_dtype_of_torch_does_not_matter(
    univariate, instances, make_estimator, tmp_path
):
    entries = instances(univariate)
    torch.set_default_dtype(torch.float64)
    try:
        predictor = make_estimator(GRUFlowEstimator).train(univariate)
        predictor.serialize(tmp_path)
        forecasts = list(load_predictor(tmp_path).predict(entries))
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(forecasts, predictor.predict(entries), strict=True):
        np.testing.assert_allclose(one.quantile(0.9), other.quantile(0.9), rtol=1e-6)


def test_threads_share_no_random_numbers(univariate, instances, make_estimator):
    entries = instances(univariate)
    estimator = make_estimator(GRUEstimator, sampling="path", num_parallel_samples=5)
    predictor = estimator.train(univariate)

    def samples(_: int) -> np.ndarray:
        return np.stack([forecast.samples for forecast in predictor.predict(entries, seed=0)])

    with ThreadPoolExecutor(4) as pool:
        for drawn in pool.map(samples, range(12)):
            np.testing.assert_array_equal(drawn, samples(0))


def test_a_seed_gives_the_same_weights_in_several_threads(univariate, instances, make_estimator):
    entries = instances(univariate)

    def medians(seed: int) -> np.ndarray:
        predictor = make_estimator(GRUEstimator, seed=seed).train(univariate)
        return np.stack([forecast.quantile(0.5) for forecast in predictor.predict(entries)])

    seeds = [0, 1, 2, 3]
    expected = [medians(seed) for seed in seeds]
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(medians, seeds))
    np.testing.assert_array_equal(found, expected)
    assert torch.equal(torch.get_rng_state(), state)


COUNTS = ("prediction_length", "context_length", "batch_size", "num_batches_per_epoch")


@pytest.mark.parametrize("name", [*COUNTS, "hidden_size", "num_parallel_samples"])
def test_counts_below_one_are_refused(name, univariate, make_estimator):
    with pytest.raises(DeltaflowError, match=f"{name} must be at least 1, got 0"):
        make_estimator(GRUEstimator, **{name: 0})
    if name in COUNTS:
        lengths = {"prediction_length": 4, "context_length": 12}
        with pytest.raises(DeltaflowError, match=f"{name} must be at least 1, got 0"):
            IrregularDataModule(univariate, **{**lengths, name: 0})


def test_calendar_cycles_are_read_by_the_model(univariate, make_estimator, instances):
    predictor = make_estimator(GRUEstimator, seasonality=["day", "week"]).train(univariate)
    assert len(predictor.reader.statistics.covariate_center) == 8
    assert all(np.isfinite(f.mean).all() for f in predictor.predict(instances(univariate)))


def test_a_module_with_a_seed_has_the_same_initial_weights(multivariate):
    data = IrregularDataModule(multivariate, prediction_length=5)

    def weights(seed) -> torch.Tensor:
        module = ForecastLightningModule(data.reader, 5, hidden_size=4, seed=seed)
        return torch.cat([own.flatten() for own in module.parameters()])

    state = torch.get_rng_state()
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert torch.equal(state, torch.get_rng_state())


def test_a_loss_weighs_channels_as_asked(multivariate):
    data = IrregularDataModule(multivariate, prediction_length=5, context_length=20)
    channels = len(data.reader.schema.target)
    counts = np.array(data.reader.statistics.count[:channels], dtype=float)

    def weights(**options) -> np.ndarray:
        module = ForecastLightningModule(
            data.reader, data.prediction_length, hidden_size=4, **options
        )
        weights = module.network.channel_weights.double().numpy()
        assert (weights * counts).sum() == pytest.approx(counts.sum())
        return weights

    np.testing.assert_allclose(weights(), 1.0)
    np.testing.assert_allclose(np.ptp(weights(balance=1.0) * counts), 0.0, atol=1e-3)
    first = weights(channel_weights=[1.0] + [0.0] * (channels - 1))
    assert first[0] > 0
    assert not first[1:].any()
    batch = next(iter(data.train_dataloader()))
    one = ForecastLightningModule(
        data.reader, data.prediction_length, hidden_size=4, seed=0
    ).network
    losses = []
    for own in [*(np.eye(channels) / counts.sum()).tolist(), [1.0 / counts.sum()] * channels]:
        one.channel_weights = torch.tensor(own)
        losses.append(one.loss(batch)[0].item())
    assert sum(losses[:-1]) == pytest.approx(losses[-1], rel=1e-5)
    assert np.isfinite(weights(balance=1e3)).all()
    for wrong in (
        [1.0],
        [-1.0] * channels,
        [0.0] * channels,
        [np.nan] * channels,
        [np.inf] * channels,
    ):
        with pytest.raises(DeltaflowError, match="channel_weights"):
            weights(channel_weights=wrong)
    with pytest.raises(DeltaflowError, match="balance"):
        weights(balance=np.nan)


def test_weights_that_leave_nothing_to_learn_are_refused(univariate, make_estimator):
    with pytest.raises(DeltaflowError, match=r"nothing to learn.*channel_weights \[0.0\]"):
        make_estimator(GRUEstimator, channel_weights=[0.0]).train(univariate)


def test_a_channel_of_weight_zero_is_read_but_not_learned(multivariate, make_estimator, instances):
    predictor = make_estimator(GRUEstimator, channel_weights=[1.0, 0.0]).train(multivariate)
    for forecast in predictor.predict(instances(multivariate)[:2]):
        assert np.isfinite(forecast.quantile(0.5)).all()


KILLED_WORKER = """
import os, signal, sys
import numpy as np
from deltaflow import GRUEstimator, IrregularDataset
from deltaflow.data.windows import TrainingWindows
from deltaflow.tasks import irregular_sine

cut = TrainingWindows.__getitem__

def killed(self, index):
    if index == 10:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
    return cut(self, index)

TrainingWindows.__getitem__ = killed
data = IrregularDataset.from_long_dataframe(irregular_sine(num_series=8))
estimator = GRUEstimator(4, folds=0, batch_size=4, num_workers=2, num_batches_per_epoch=10,
                         trainer_kwargs={"max_epochs": 2, "enable_progress_bar": False})
estimator.train(data)
"""


def test_a_worker_that_dies_is_an_error_and_no_deadlock():
    command = [sys.executable, "-c", KILLED_WORKER]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert re.search(r"DataLoader worker .*(killed by signal|exited unexpectedly)", done.stderr)


def test_a_data_set_in_place_of_a_data_module_is_refused(univariate):
    reader = IrregularDataModule(univariate, prediction_length=4).reader
    model = ForecastLightningModule(reader, 4, hidden_size=8, seed=0)
    loader = DataLoader(list(univariate), batch_size=4, collate_fn=list)
    trainer = pl.Trainer(fast_dev_run=True, accelerator="cpu", logger=False)
    for data, run in ((univariate, trainer.fit), (loader, trainer.fit), (loader, trainer.test)):
        with pytest.raises(DeltaflowError, match=r"give it datamodule=IrregularDataModule\("):
            run(model, data)


def test_a_model_meets_only_data_that_are_read_as_it_was_built(univariate):
    """Otherwise other data would be scaled by their own statistics, and forecast by the model's."""
    trained_on, other = (
        IrregularDataModule(data, data, prediction_length=4, num_batches_per_epoch=1)
        for data in (univariate, univariate.select([0, 1]))
    )
    model = ForecastLightningModule(trained_on.reader, 4, hidden_size=8, seed=0)
    trainer = pl.Trainer(fast_dev_run=True, accelerator="cpu", logger=False)
    for run in (trainer.fit, trainer.validate):
        with pytest.raises(DeltaflowError, match=r"give the data module reader=module\.reader"):
            run(model, datamodule=other)
    again = IrregularDataModule(
        univariate.select([0, 1]), prediction_length=4, reader=model.reader, batch_size=4
    )
    trainer.fit(model, datamodule=again)
