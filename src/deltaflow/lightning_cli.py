"""`deltaflow fit`, `validate`, `test` and `predict`: Lightning's own command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from deltaflow.errors import DeltaflowError, check_whole
from deltaflow.forecast.loading import read_checkpoint
from deltaflow.forecast.writer import ForecastWriter
from deltaflow.heads import is_centred, is_discrete, make_output
from deltaflow.parsers import OneLineErrors
from deltaflow.process import fewer_warnings, one_thread
from deltaflow.randomness import check_seed
from deltaflow.saving import replacing_file
from deltaflow.tasks import TaskDataModule
from deltaflow.training import engine
from deltaflow.training.lightning_module import ForecastLightningModule
from deltaflow.training.options import OptimizerOptions, WeightAveragingOptions


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint next to its destination, and then renames it.

    Lightning writes into the system's temporary directory and moves the file from there: between
    two file systems that is a copy, which a full disk truncates.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save a checkpoint; if that fails, the previous one stays."""
        content = BytesIO()  # so that a full disk is an OSError, as elsewhere
        torch.save(checkpoint, content)
        with replacing_file(path) as file:
            file.write_bytes(content.getbuffer())


class Parser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser, with errors in one line."""


class ForecastCLI(LightningCLI):
    """`LightningCLI` for a `ForecastLightningModule` on a `TaskDataModule`.

    Besides `data`, `model` and `trainer` there are `optimizer`, `early_stopping` and
    `weight_averaging`, as in a comparison; `best` and `last`, which keep the checkpoints
    `best.ckpt` and `last.ckpt` in `<trainer.default_root_dir>/checkpoints`; and `forecasts`, which
    writes the forecasts of `predict`. Unless `trainer.logger` is set, logs are CSV files, and
    TensorBoard files if it is installed.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks and the optimiser, and link dependent options."""
        parser.add_class_arguments(OptimizerOptions, "optimizer")
        for option in fields(OptimizerOptions):
            parser.link_arguments(f"optimizer.{option.name}", f"model.{option.name}")
        parser.add_class_arguments(WeightAveragingOptions, "weight_averaging")
        for name in ("best", "last"):
            parser.add_lightning_class_args(ModelCheckpoint, name)
            parser.set_defaults({f"{name}.filename": name, f"{name}.enable_version_counter": False})
            parser.link_arguments("trainer.default_root_dir", f"{name}.dirpath", _checkpoints)
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(ForecastWriter, "forecasts")
        parser.set_defaults({"best.monitor": "val_loss", "early_stopping.monitor": "val_loss"})
        parser.link_arguments("seed_everything", "data.seed", int)
        parser.link_arguments(
            "model.distr_output", "data.centred", lambda head: is_centred(make_output(head))
        )
        for name in ("reader", "prediction_length"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the given arguments, even if the process was started with others."""
        self.config = parser.parse_args(args)
        given = self.config[self.config.subcommand]
        check_seed(given.seed_everything)
        check_whole(1, check_val_every_n_epoch=given.trainer.check_val_every_n_epoch)
        if given.best.save_top_k not in (0, 1) and given.best.filename == "best":
            raise DeltaflowError(
                f"best.save_top_k={given.best.save_top_k} would write all of them to best.ckpt, "
                "the latest over the best: give best.filename, such as '{epoch}', too"
            )
        if given.data.reader is not None:
            raise DeltaflowError("data.reader is that of a checkpoint: give --ckpt_path instead")

    def _parse_ckpt_path(self) -> None:
        """Leave this to `before_instantiate_classes`, since the `reader` is not an option."""

    def before_instantiate_classes(self) -> None:
        """Take hyperparameters and scaling from the checkpoint, if there is one.

        `best` and `last` are the checkpoints in the folder of the run. `fit` from `last` starts a
        new training run if there is no such checkpoint yet.
        """
        config = self.config[str(self.subcommand)]
        folder = Path(_checkpoints(config.trainer.default_root_dir))
        path = config.ckpt_path
        if path in ("best", "last"):
            path = str(folder / f"{path}.ckpt")
            if self.subcommand == "fit" and not Path(path).exists():
                path = None
        config.ckpt_path = path
        if self.subcommand == "fit" and not config.trainer.fast_dev_run:
            _refuse_to_overwrite(folder, path)
        if path is None:
            if self.subcommand != "fit":
                raise DeltaflowError("give the trained model by --ckpt_path PATH")
            return
        if "weights_only" in config:  # since Lightning 2.6
            config.weights_only = True
        stored = dict(read_checkpoint(path)["hyper_parameters"])
        config.data.reader = stored.pop("reader")
        del stored["prediction_length"]  # that of the data
        for name, value in stored.items():
            config.model[name] = value
            if name in config.optimizer:
                config.optimizer[name] = value

    def after_instantiate_classes(self) -> None:
        """Keep the scaling out of the stored configuration: it belongs to the checkpoint."""
        self.config[str(self.subcommand)].data.reader = None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Return the trainer, with the default loggers unless the configuration names some."""
        config = self._get(self.config_init, "trainer")
        if config["logger"] in (None, True):
            table = CSVLogger(config["default_root_dir"] or ".", flush_logs_every_n_steps=10)
            loggers: list[Logger] = [table]
            if find_spec("tensorboard"):
                loggers.append(TensorBoardLogger(table.save_dir, version=table.version))
            kwargs["logger"] = loggers
        kwargs["accelerator"] = engine.usable_accelerator(config["accelerator"])
        if config["plugins"] is None:
            kwargs["plugins"] = [AtomicCheckpoints()]
        averaging = self._get(self.config_init, "weight_averaging").decay
        if averaging is not None and self.subcommand == "fit":
            given = config["callbacks"] or []
            given = given if isinstance(given, list) else [given]
            kwargs["callbacks"] = [*given, engine.moving_average(averaging)]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Check that the data of a count distribution are counts."""
        if is_discrete(self.model.network.head.output):
            self.datamodule.check_counts()


def _checkpoints(root: Any) -> str:
    return str(Path(root or ".") / "checkpoints")


def _refuse_to_overwrite(folder: Path, ckpt_path: str | None) -> None:
    """Raise an error if `fit` would overwrite the checkpoints of another training run."""
    resumes = ckpt_path is not None and Path(ckpt_path).parent.resolve() == folder.resolve()
    if not resumes and any((folder / f"{name}.ckpt").exists() for name in ("best", "last")):
        raise DeltaflowError(
            f"{folder} holds the checkpoints of another training run: resume it by --ckpt_path "
            "last, or choose another folder by --trainer.default_root_dir"
        )


def run(command: str, options: Sequence[str]) -> int:
    """Run one command of Lightning's command line, and return its exit status."""
    with fewer_warnings(), one_thread():
        ForecastCLI(
            ForecastLightningModule,
            TaskDataModule,
            args=[command, *options],
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={"prog": "deltaflow"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # the module keeps plain hyperparameters itself
        )
    return 0
