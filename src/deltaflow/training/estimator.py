"""The estimators: GluonTS's interface, trained by Lightning."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from inspect import cleandoc, signature
from typing import Any

import lightning.pytorch as pl
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.dataset.split import TestData

from deltaflow.data.options import DataOptions
from deltaflow.encoders import ENCODERS
from deltaflow.errors import DeltaflowError, UnknownArgumentError, check_registered, check_whole
from deltaflow.forecast.network_predictor import SAMPLING, IrregularPredictor
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.forecast.support import SupportPredictor, Supports
from deltaflow.model.networks import NETWORKS
from deltaflow.model.options import ModelOptions
from deltaflow.options import documents, options_from
from deltaflow.process import one_thread
from deltaflow.randomness import check_seed, seeded_run
from deltaflow.training.folds import train_folds
from deltaflow.training.network_estimator import NetworkEstimator
from deltaflow.training.options import OptimizerOptions
from deltaflow.training.widening import check_irregular, whole_items, widened


def _pointing_to_options(init: Callable[..., None]) -> Callable[..., None]:
    """Make an estimator's constructor report where an unknown argument belongs.

    It also rejects fractions where whole numbers are expected: pydantic would round them.
    """
    parameters = list(signature(init).parameters.values())[1:]
    known = [parameter.name for parameter in parameters]
    whole = {one.name for one in parameters if one.annotation in (int, int | None)}

    @wraps(init)
    def checked(self: "IrregularEstimator", *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known:
                encoder = kwargs.get("encoder") or self.default_encoder
                network = kwargs.get("network") or ModelOptions().network
                raise UnknownArgumentError(
                    f"{type(self).__name__} has no argument {name!r}"
                    + _place_of(name, kwargs[name], known, encoder, network)
                )
        for name, value in {**dict(zip(known, args, strict=False)), **kwargs}.items():
            if name in whole and isinstance(value, float) and not value.is_integer():
                check_whole(0, **{name: value})
        init(self, *args, **kwargs)

    return checked


def _place_of(name: str, value: Any, known: list[str], encoder: str, network: str) -> str:
    """Describe the option group an argument belongs to, or the known argument it resembles."""
    owners = {
        "trainer_kwargs": ("Lightning's Trainer", pl.Trainer),
        "encoder_kwargs": (f"the encoder {encoder!r}", ENCODERS.get(encoder)),
        "network_kwargs": (f"the network {network!r}", NETWORKS.get(network)),
    }
    for group, (owner, function) in owners.items():
        if function is not None and name in signature(function).parameters:
            return f"; it is an option of {owner}: give {group}={{{name!r}: {value!r}}}"
    close = get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}"


FREE = (
    "encoder_kwargs", "network", "balance", "distr_output", "scaling", "dropout", "lr",
    "weight_decay", "batch_size", "num_batches_per_epoch",
)  # fmt: skip
"""The options that are chosen from the data if they are not given, see `plan_for`."""


@documents(DataOptions, ModelOptions, OptimizerOptions)
class IrregularEstimator(NetworkEstimator):
    """Trains any registered encoder to forecast irregular, or ordinary regular, series.

    The options of the data, the model and the optimiser are arguments of their own. The encoder is
    that of the estimator's name, and ``"gru_flow"`` for this class, unless ``encoder`` is given.

    Parameters
    ----------
    prediction_length
        The largest number of queries per forecast.
    sampling, num_parallel_samples
        How several queries are forecast, see `IrregularPredictor`.
    seed
        Seed of weights and windows, which leaves the global random state unchanged. If None, both
        depend on torch's global random state.
    folds
        The number of networks that are trained if no validation data are given, each on all folds
        of the items but one. Each stops when its forecasts of the held-out fold no longer improve,
        and their forecasts are averaged. If None, the number is chosen from the data: 5 for up to
        250 items (3 if they are long); above that, networks that each hold out another tenth of
        the items: 3 of them for up to 1000 items, 1 for more. Options that are not given are chosen
        from the data, too, and a printed line reports them; the page *What training does by
        default* of the documentation says how. 0 trains one network on all items, without
        validation.
    calibrate
        Whether intervals are calibrated on the held-out items, see `ConformalPredictor`. Not done
        with fewer than five held-out items or stretches.
    widening
        Whether intervals widen beyond the lead times of the training data, by the errors on
        held-out items; see `WideningPredictor`. For irregular series only.
    blend
        Whether the forecasts of networks are averaged with simple ones: a `SeasonalPredictor` where
        calendar cycles repeat and, with up to 250 items, a `HoldPredictor`, a Gaussian process and
        a local trend. The weights minimise the loss on held-out items and, by a rehearsal with one
        more network, on the last values of all items; they are the more equal, the fewer items
        there are. Not done for paths.
    supports
        The range of values of each channel. Forecasts stay within it, including means and samples,
        see `SupportPredictor`. ``"recognised"``: a channel that is never negative in the training
        data stays non-negative, one from exactly 0 to exactly 1 stays between them, and one of
        whole numbers gets whole numbers. ``"real"`` leaves forecasts unconstrained. A mapping
        declares channels by name, as ``"real"``, ``"non-negative"``, ``"unit"``, ``"integer"``,
        ``"count"`` or a smallest and a largest value; the others are recognised.
    processes
        The number of processes in which the networks of the folds are trained at the same time,
        with the same result. By default as many as there are processor cores, if training on the
        CPU takes long enough, and ``trainer_kwargs`` contain neither callbacks nor loggers.
    trainer_kwargs
        Arguments of Lightning's ``Trainer``; never modified. By default 50 epochs with gradients
        clipped to a norm of 10, a progress bar, and nothing written to disk. A logger, or a
        ``ModelCheckpoint`` among the callbacks, writes to its usual place.

    Examples
    --------
    >>> from deltaflow.tasks import regular_seasonal
    >>> estimator = IrregularEstimator(
    ...     prediction_length=4, encoder="gru", num_batches_per_epoch=1, folds=1, blend=False,
    ...     trainer_kwargs={"max_epochs": 1, "enable_progress_bar": False})
    >>> predictor = estimator.train(regular_seasonal())
    >>> next(iter(predictor.predict(regular_seasonal()))).mean.shape
    (4,)
    """

    default_encoder = "gru_flow"

    def __init_subclass__(cls) -> None:
        """Add the parameters, which all estimators share, to the docstring of each."""
        super().__init_subclass__()
        shared = cleandoc(IrregularEstimator.__doc__ or "")
        _, heading, rest = shared.partition("Parameters\n")
        parameters = (heading + rest).partition("Examples\n")[0].strip()
        own = cleandoc(cls.__doc__ or "")
        if "Parameters\n" not in own:
            cls.__doc__ = f"{own}\n\n{parameters}\n"

    @_pointing_to_options
    @validated()
    def __init__(
        self,
        prediction_length: int,
        context_length: int | None = None,
        horizon: str | None = None,
        context: str | None = None,
        origins_within: list[str] | None = None,
        thinning: float = 0.0,
        encoder: str | None = None,
        encoder_kwargs: dict[str, Any] | None = None,
        network: str | None = None,
        network_kwargs: dict[str, Any] | None = None,
        scaling: str | None = None,
        balance: float | None = None,
        channel_weights: list[float] | None = None,
        hidden_size: int = 32,
        dropout: float | None = None,
        distr_output: Any = None,
        sampling: str = "marginal",
        num_parallel_samples: int = 100,
        seasonality: list[str] | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        batch_size: int | None = None,
        num_batches_per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        folds: int | None = None,
        calibrate: bool = True,
        widening: bool = False,
        blend: bool = True,
        supports: Supports = "recognised",
        processes: int | None = None,
        trainer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        arguments = {**locals(), "encoder": encoder or self.default_encoder}
        super().__init__()
        check_whole(
            1, prediction_length=prediction_length, num_parallel_samples=num_parallel_samples
        )
        check_whole(0, folds=folds)
        check_whole(1, processes=processes)
        check_seed(seed)
        check_registered("sampling", sampling, SAMPLING)
        self.prediction_length = prediction_length
        self.data = options_from(DataOptions, arguments)
        self.model = options_from(ModelOptions, arguments)
        self.optimizer = options_from(OptimizerOptions, arguments)
        # Given network_kwargs are those of the default network, paths need a distribution, and not
        # every encoder has layers.
        fixed = {
            "network": bool(network_kwargs),
            "distr_output": sampling != "marginal",
            "encoder_kwargs": "num_layers"
            not in signature(ENCODERS[self.model.encoder]).parameters,
        }
        free = [name for name in FREE if arguments[name] is None]
        self.free_options = [name for name in free if not fixed.get(name)]
        self.sampling = sampling
        self.num_parallel_samples = num_parallel_samples
        self.seed = seed
        self.folds = folds
        self.calibrate = calibrate
        self.widening = widening
        self.blend = blend
        self.supports = supports
        self.processes = processes
        self.trainer_kwargs = trainer_kwargs or {}

    @one_thread()
    def train(
        self,
        training_data: Dataset,
        validation_data: Dataset | TestData | None = None,
        *,
        ckpt_path: str | None = None,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
        num_workers: int | None = None,
    ) -> DeltaflowPredictor:
        """Train on a data set and return the predictor.

        Parameters
        ----------
        training_data
            An `IrregularDataset`, or any GluonTS data set.
        validation_data
            Data for validation after each epoch: the last window of each item of a data set, or the
            instances of a GluonTS ``TestData``, such as ``template.generate_instances(…)``. One
            network is then trained, and the weights of the best epoch are kept, see
            `deltaflow.training.engine.train`. If None, items of the training data are held out, see
            `folds`.
        ckpt_path
            A Lightning checkpoint of one network, from which to resume.
        shuffle_buffer_length, cache_data, num_workers
            Accepted because GluonTS's estimators have them, and ignored: windows are drawn at
            random from the whole data set, and workers are an option of the estimator.

        Raises
        ------
        DataError
            If the estimator cannot train on the data; before any training starts.
        """
        if self.widening:
            check_irregular(training_data)
        if validation_data is None and ckpt_path is None and self.folds != 0:
            with seeded_run(self.seed) as seed:
                return train_folds(self, training_data, seed)
        if self.widening and validation_data is None:
            raise DeltaflowError("widening needs held-out items: give validation_data, or folds")
        output = self.train_model(training_data, validation_data, ckpt_path=ckpt_path)
        predictor: DeltaflowPredictor = output.predictor
        if self.widening:
            predictor = widened(predictor, output.data, whole_items(validation_data))  # pyright: ignore[reportArgumentType]
        return self.within_supports(predictor, output.data)

    def train_from(
        self,
        predictor: DeltaflowPredictor,
        training_data: Dataset,
        validation_data: Dataset | TestData | None = None,
        *,
        ckpt_path: str | None = None,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
        num_workers: int | None = None,
    ) -> DeltaflowPredictor:
        """Continue the training of a predictor, with its weights and scaling; see :meth:`train`.

        Raises
        ------
        DeltaflowError
            If the predictor has no network, or one that differs from the estimator's.
        """
        if isinstance(predictor, SupportPredictor):
            predictor = predictor.predictor
        if not isinstance(predictor, IrregularPredictor):
            raise DeltaflowError(
                f"a {type(predictor).__name__} is not a single network to continue: give "
                "train_from a predictor trained with validation_data or folds=0, or train anew"
            )
        output = self.train_model(
            training_data, validation_data, from_predictor=predictor, ckpt_path=ckpt_path
        )
        return self.within_supports(output.predictor, output.data)


class GRUFlowEstimator(IrregularEstimator):
    """`IrregularEstimator` with a GRU flow across the gaps (Biloš et al., 2021, section 3.2)."""

    default_encoder = "gru_flow"


class CouplingFlowEstimator(IrregularEstimator):
    """`IrregularEstimator` with an affine coupling flow across the gaps (Biloš et al., 2021)."""

    default_encoder = "coupling_flow"


class ResNetFlowEstimator(IrregularEstimator):
    """`IrregularEstimator` with a ResNet flow across the gaps (Biloš et al., 2021, section 3.1)."""

    default_encoder = "resnet_flow"


class LinearFlowEstimator(IrregularEstimator):
    """`IrregularEstimator` with layers of oscillators, computed by a parallel scan."""

    default_encoder = "linear_flow"


class GRUEstimator(IrregularEstimator):
    """`IrregularEstimator` with a plain GRU fed Δt: the baseline without evolution."""

    default_encoder = "gru"


class GRUDEstimator(IrregularEstimator):
    """`IrregularEstimator` with GRU-D: values and state decay in the gaps (Che et al., 2018)."""

    default_encoder = "gru_d"


class ODERNNEstimator(IrregularEstimator):
    """`IrregularEstimator` with a Neural ODE across the gaps (Rubanova et al., 2019)."""

    default_encoder = "ode_rnn"


class GRUODEEstimator(IrregularEstimator):
    """`IrregularEstimator` with a GRU-ODE across the gaps (De Brouwer et al., 2019)."""

    default_encoder = "gru_ode"


class NeuralCDEEstimator(IrregularEstimator):
    """`IrregularEstimator` with a Neural CDE along the observations (Kidger et al., 2020)."""

    default_encoder = "neural_cde"
