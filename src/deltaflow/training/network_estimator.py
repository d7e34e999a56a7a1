"""Creating and training a single network of an estimator's options."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import lightning.pytorch as pl
from gluonts.dataset.common import Dataset
from gluonts.dataset.split import TestData
from gluonts.model.estimator import Estimator

from deltaflow.data import IrregularDataModule, Reader
from deltaflow.data.options import DataOptions
from deltaflow.data.schema import read_seconds
from deltaflow.errors import DeltaflowError
from deltaflow.forecast.loading import read_checkpoint
from deltaflow.forecast.network_predictor import IrregularPredictor
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.forecast.support import SupportPredictor, Supports, supports_of
from deltaflow.heads import is_centred, is_discrete, make_output
from deltaflow.model.options import ModelOptions
from deltaflow.process import one_thread
from deltaflow.randomness import seeded_run
from deltaflow.training import engine
from deltaflow.training.lightning_module import ForecastLightningModule, difference
from deltaflow.training.options import OptimizerOptions

if TYPE_CHECKING:
    from typing_extensions import Self


class TrainOutput(NamedTuple):
    """The result of a training run."""

    trained_net: ForecastLightningModule
    trainer: pl.Trainer
    predictor: IrregularPredictor

    @property
    def data(self) -> IrregularDataModule:
        """The data module of the training run."""
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]


class NetworkEstimator(Estimator):
    """Creates and trains single networks: what `IrregularEstimator` does once or several times.

    Attributes
    ----------
    data, model, optimizer
        The arguments of an `IrregularEstimator` in groups.
    free_options
        The names of the options that are chosen from the data.
    prediction_length, sampling, num_parallel_samples, seed, folds, calibrate, widening, blend
        Arguments of an `IrregularEstimator`, and so are ``supports``, ``processes`` and
        ``trainer_kwargs``.
    """

    data: DataOptions
    model: ModelOptions
    optimizer: OptimizerOptions
    free_options: list[str]
    prediction_length: int
    sampling: str
    num_parallel_samples: int
    seed: int | None
    folds: int | None
    calibrate: bool
    widening: bool
    blend: bool
    supports: Supports
    processes: int | None
    trainer_kwargs: dict[str, Any]

    def with_settings(self, **settings: Any) -> Self:
        """Return the same estimator with other arguments."""
        return type(self)(**{**self.__init_args__, **settings})  # pyright: ignore[reportAttributeAccessIssue]

    def within_supports(
        self, predictor: DeltaflowPredictor, data: IrregularDataModule
    ) -> DeltaflowPredictor:
        """Constrain a predictor to the supports of the data that it was trained on."""
        series, target = data.training_windows.data, predictor.schema.target
        return SupportPredictor.of(predictor, supports_of(self.supports, series, target))

    @one_thread()
    def train_model(
        self,
        training_data: Dataset,
        validation_data: Dataset | TestData | None = None,
        from_predictor: IrregularPredictor | None = None,
        ckpt_path: str | None = None,
    ) -> TrainOutput:
        """Train, and return the module, the trainer and the predictor."""
        if ckpt_path is not None:
            read_checkpoint(ckpt_path)  # safely: Lightning could execute code
        with seeded_run(self.seed) as seed:
            data = self.create_data_module(training_data, validation_data, from_predictor, seed)
            module = self.create_lightning_module(data)
            if from_predictor is not None:
                output = from_predictor.distr_output
                stored = {**from_predictor.network_arguments, "distr_output": output}
                if problem := difference(stored, module.hparams):
                    raise DeltaflowError(
                        f"the predictor {problem}; give the estimator the options that it was "
                        "trained with, or train a new one"
                    )
                module.network.load_state_dict(from_predictor.network.state_dict())
            trainer = engine.train(module, data, self.trainer_kwargs, ckpt_path)
        return TrainOutput(module, trainer, self.create_predictor(module))

    def create_data_module(
        self,
        training_data: Dataset,
        validation_data: Dataset | TestData | None = None,
        from_predictor: IrregularPredictor | None = None,
        seed: int = 0,
        reader: Reader | None = None,
        validation_origins: Literal["last", "spread"] = "last",
    ) -> IrregularDataModule:
        """Check the data, and return the Lightning data module for training."""
        output = make_output(self.model.distr_output)
        known = reader
        if from_predictor is not None:
            known = replace(
                from_predictor.reader,
                context_length=self.data.context_length_for(self.prediction_length),
                context=read_seconds(self.data.context, "context"),
            )
        data = IrregularDataModule(
            training_data,
            validation_data,
            prediction_length=self.prediction_length,
            **vars(self.data),
            centred=is_centred(output),
            seed=seed,
            reader=known,
            validation_origins=validation_origins,
        )
        if is_discrete(output):
            data.check_counts()
        if self.supports != "recognised":  # to raise errors before training
            supports_of(self.supports, data.training_windows.data, data.reader.schema.target)
        return data

    def create_lightning_module(self, data: IrregularDataModule) -> ForecastLightningModule:
        """Return a new Lightning module for the data."""
        return ForecastLightningModule(
            data.reader, data.prediction_length, **vars(self.model), **vars(self.optimizer)
        )

    def create_predictor(self, module: ForecastLightningModule) -> IrregularPredictor:
        """Return the predictor of a trained module."""
        return module.to_predictor(
            sampling=self.sampling,
            num_parallel_samples=self.num_parallel_samples,
            batch_size=self.data.batch_size,
        )
