"""A search for the options that suit a data set, within a time limit."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.model.estimator import Estimator
from lightning.pytorch.callbacks import Timer
from rich.console import Console

from deltaflow.errors import DeltaflowError, check_registered, check_whole, needing
from deltaflow.forecast.auto import AutoPredictor
from deltaflow.forecast.ensemble import EnsemblePredictor
from deltaflow.forecast.held_out import HeldOut, Pairs
from deltaflow.forecast.hold import HoldPredictor
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.forecast.support import Supports
from deltaflow.process import one_thread
from deltaflow.randomness import check_seed, seeded_run
from deltaflow.training.blend import Member, compared_loss, finish
from deltaflow.training.estimator import IrregularEstimator
from deltaflow.training.folds import Folds
from deltaflow.training.network_estimator import NetworkEstimator
from deltaflow.training.plan import TRIED, planned
from deltaflow.training.runs import Run, processes_for, train_all

if TYPE_CHECKING:
    import optuna

SHARE_OF_SEARCH = 0.85
"""The share of the time limit after which training ends."""


ALIKE = 1.25
"""Networks whose loss is at most so many times that of the defaults on the same fold are blended
with them: such differences are a matter of chance, and diverse networks average well."""


class Preset(NamedTuple):
    """How thorough a search is.

    Attributes
    ----------
    time_limit
        The default time limit in seconds.
    others
        For each fold, the largest number of networks in the blend besides that of the defaults.
    encoders, networks, hidden_sizes
        The choices that are tried.
    """

    time_limit: float
    others: int
    encoders: tuple[str, ...]
    networks: tuple[str, ...]
    hidden_sizes: tuple[int, ...]


PRESETS: dict[str, Preset] = {
    "fast": Preset(60, 1, ("gru_flow", "gru"), ("joint",), (16, 32)),
    "good": Preset(300, 2, ("gru_flow", "gru", "linear_flow"), ("joint",), (16, 32, 64)),
    "best": Preset(
        1800,
        3,
        ("gru_flow", "coupling_flow", "resnet_flow", "linear_flow", "gru", "gru_d"),
        ("joint", "channelwise"),
        (16, 32, 64, 128),
    ),
}
"""Every preset by its name."""


class AutoEstimator(Estimator):
    """Searches for the options that suit a data set, and blends the best networks.

    The search first trains a network with the default options on each fold, whose settings are
    chosen as in `IrregularEstimator`, and then networks with options proposed by Optuna's TPE,
    several at the same time if there are several processors. Each is evaluated on its held-out
    fold, by its quantile loss relative to that of a `HoldPredictor`. The networks of the defaults,
    and the best of the others unless they are much worse on the same fold, are blended with simple
    forecasts and calibrated on their held-out items, as in `IrregularEstimator`, after the same
    rehearsal. Ctrl-C ends the search and keeps the best networks so far.

    Needs the extra ``auto``.

    Parameters
    ----------
    prediction_length
        The largest number of queries per forecast.
    time_limit
        Seconds that training may take in total, kept to within 10 % and 10 seconds; by default 60,
        300 or 1800, depending on the preset.
    presets
        ``"fast"``, ``"good"`` or ``"best"``: the options that are tried, and the number of networks
        in the blend, see `PRESETS`.
    context_length, horizon, context
        The context and the horizon, see `IrregularEstimator`.
    supports
        The range of values of each channel, see `IrregularEstimator`.
    seed
        Seed of the search, of weights and of windows. The number of networks that are tried still
        depends on the speed of the machine.
    verbose
        Whether to print a line for each network.

    Examples
    --------
    >>> from deltaflow.tasks import irregular_sine
    >>> from deltaflow import AutoEstimator, IrregularDataset
    >>> data = IrregularDataset.from_long_dataframe(irregular_sine())
    >>> predictor = AutoEstimator(8, time_limit=120).train(data)  # doctest: +SKIP
    >>> predictor.leaderboard  # doctest: +SKIP
    """

    @validated()
    def __init__(
        self,
        prediction_length: int,
        time_limit: float | None = None,
        presets: str = "good",
        context_length: int | None = None,
        horizon: str | None = None,
        context: str | None = None,
        supports: Supports = "recognised",
        seed: int | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        check_whole(1, prediction_length=prediction_length)
        check_seed(seed)
        check_registered("preset", presets, PRESETS)
        if time_limit is not None and not time_limit > 0:
            raise DeltaflowError(f"time_limit must be a positive number of seconds: {time_limit}")
        with needing("auto"):
            import optuna  # noqa: F401
        self.preset = PRESETS[presets]
        self.prediction_length = prediction_length
        self.time_limit = self.preset.time_limit if time_limit is None else time_limit
        self.supports = supports
        self.seed = seed
        self.verbose = verbose
        self.fixed = {"context_length": context_length, "horizon": horizon, "context": context}

    @one_thread()
    def train(
        self,
        training_data: Dataset,
        validation_data: Dataset | None = None,
        *,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
        num_workers: int | None = None,
    ) -> AutoPredictor:
        """Search, and return the blend of the best networks; the other arguments are ignored.

        Raises
        ------
        DataError
            If an estimator cannot train on the data.
        DeltaflowError
            If there are fewer than two items to train on, or no network was trained in time.
        """
        end = time.monotonic() + SHARE_OF_SEARCH * self.time_limit
        with seeded_run(self.seed) as seed:
            search = _Search(self, training_data, seed, end)
            with _interruptible() as pressed:
                search.run(pressed)
            return search.result()


class _Trial(NamedTuple):
    """A trained network, its held-out values, its loss on them, and the seconds that it took."""

    options: dict[str, Any]
    fold: int
    predictor: DeltaflowPredictor
    pairs: Pairs
    loss: float
    seconds: float


class _Search:
    """The networks tried so far.

    Parameters
    ----------
    auto
        The estimator with the settings of the search.
    training_data
        The data.
    seed
        Seed of the search.
    end
        The end of the search, by the monotonic clock.
    """

    def __init__(self, auto: AutoEstimator, training_data: Dataset, seed: int, end: float) -> None:
        self.auto, self.seed, self.end, self.fixed = auto, seed, end, dict(auto.fixed)
        self.folds = Folds(self._estimator({}), training_data, seed)
        if len(self.folds.usable) < 2:
            raise DeltaflowError(
                "a search needs held-out items, and there are fewer than two items: train an "
                "IrregularEstimator"
            )
        network = self.folds.plan.settings.get("network")
        self.networks = (network,) if network else auto.preset.networks
        self.simple = self.folds.simple_forecasts(self.folds.examples)
        self.num_folds = len(self.folds.plan.left_out)
        examples = [self.folds.prepare(0, self.folds.estimator, 0)] * self.num_folds
        self.processes = min(self.num_folds, processes_for(examples))
        self.hold = HoldPredictor.fit(self.folds.examples, auto.prediction_length)
        self.rehearsed: HeldOut | None = None
        self.trials: list[_Trial] = []
        self.console = Console(stderr=True)

    def run(self, pressed: threading.Event) -> None:
        """Try one network after the other, until the time is up or Ctrl-C was pressed."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=self.seed % 2**32, n_startup_trials=6, multivariate=True
        )
        study = optuna.create_study(sampler=sampler)
        default = self._default_options()
        self._choose_settings(default, pressed)
        for _ in range(len(self.trials), self.num_folds):  # the default options on every fold
            study.enqueue_trial(default)
        while not pressed.is_set() and self._has_time():
            due = self.num_folds - len(self.trials)  # networks with the default options
            size = min(due, self.processes) if due > 0 else self.processes
            trials = [study.ask() for _ in range(size)]
            losses = self._try([self._proposed(trial) for trial in trials])
            for trial, loss in zip(trials, losses, strict=True):
                study.tell(trial, loss)
            may_rehearse = self.folds.enough and self._has_time()
            if len(self.trials) == self.num_folds and may_rehearse:
                estimator = self._in_time(self.folds.estimator.with_settings(**self.fixed))
                if rehearsal := self.folds.rehearsal(estimator):
                    rehearsal.run.train()
                    self.rehearsed = self.folds.rehearsed(estimator, rehearsal)

    def _choose_settings(self, default: dict[str, Any], pressed: threading.Event) -> None:
        """Choose settings as estimators do, and keep the networks of the first folds."""
        for settings, suits in self.folds.alternatives():
            trials: list[list[_Trial]] = [self.trials, []]
            given = [self.fixed, {**self.fixed, **settings}]
            try:
                for self.trials, self.fixed in zip(trials, given, strict=True):
                    while len(self.trials) < TRIED and not pressed.is_set() and self._has_time():
                        self._try([default] * min(TRIED - len(self.trials), self.processes))
            finally:  # also after Ctrl-C
                members = [[Member(one.predictor, one.pairs) for one in own] for own in trials]
                tried = all(len(own) == TRIED for own in trials)
                chosen = int(tried and suits(members[1], members[0]))
                self.trials, self.fixed = trials[chosen], given[chosen]

    def result(self) -> AutoPredictor:
        """Blend and calibrate the best networks."""
        if not self.trials:
            raise DeltaflowError(
                "the search ended before the first network was trained: give it more time by "
                "time_limit"
            )
        # Networks of one fold are one member: each held-out item counts once.
        best = {trial.fold: self._best(trial.fold) for trial in self.trials}
        members = [
            Member(EnsemblePredictor.of([trial.predictor for trial in own]), own[0].pairs)
            for own in best.values()
        ]
        folds = self.folds
        blend = finish(members, self.simple, self.rehearsed, folds.supports, folds.calibrate)
        chosen = {id(trial) for own in best.values() for trial in own}
        rows = [
            {
                **trial.options,
                "fold": trial.fold,
                "loss": round(trial.loss, 4),
                "seconds": round(trial.seconds, 1),
                "chosen": id(trial) in chosen,
            }
            for trial in self.trials
        ]
        self._tell(f"Blended the best {len(chosen)} of {len(self.trials)} networks.")
        return AutoPredictor(blend.predictor, rows)

    def _best(self, fold: int) -> list[_Trial]:
        """Return the network of a fold with the default options, and the best of the others."""
        default, *others = [trial for trial in self.trials if trial.fold == fold]
        alike = [trial for trial in others if trial.loss <= ALIKE * default.loss]
        best = sorted(alike, key=lambda trial: trial.loss)
        return [default, *best[: self.auto.preset.others]]

    def _default_options(self) -> dict[str, Any]:
        """Return the default values of the options that are searched for."""
        default = self.folds.estimator
        options = {**vars(default.model), **vars(default.optimizer), "network": self.networks[0]}
        searched = "encoder", "network", "hidden_size", "dropout", "weight_decay", "lr"
        return {name: options[name] for name in searched}

    def _proposed(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Return the options to try next.

        The scaling is not searched for, but chosen as in `IrregularEstimator`: with a scaling by
        the level of an item, a network may do well on held-out items, whose times it has seen in
        training, and fail at later times.
        """
        preset = self.auto.preset
        return {
            "encoder": trial.suggest_categorical("encoder", preset.encoders),
            "network": trial.suggest_categorical("network", self.networks),
            "hidden_size": trial.suggest_categorical("hidden_size", preset.hidden_sizes),
            "dropout": trial.suggest_categorical("dropout", [0.1, 0.0, 0.3]),
            "weight_decay": trial.suggest_float("weight_decay", 1e-3, 0.1, log=True),
            "lr": trial.suggest_float("lr", 1e-3, 1e-2, log=True),
        }

    def _try(self, options: Sequence[dict[str, Any]]) -> list[float]:
        """Train networks, each on the next fold, at the same time.

        Returns
        -------
        list of float
            Their losses, relative to that of the default options on the same fold.
        """
        begun, first = time.monotonic(), len(self.trials)
        estimators = [
            planned(self._in_time(self._estimator(own)), self.folds.plan) for own in options
        ]
        runs = [
            self.folds.prepare(number % self.num_folds, estimator, number)
            for number, estimator in enumerate(estimators, first)
        ]
        train_all(runs, self.processes)
        seconds = time.monotonic() - begun
        for own, estimator, run in zip(options, estimators, runs, strict=True):
            self._judge(own, estimator, run, seconds)
        return [self._relative_loss(trial) for trial in self.trials[first:]]

    def _judge(
        self, options: dict[str, Any], estimator: NetworkEstimator, run: Run, seconds: float
    ) -> None:
        """Add a trained network to the trials, with its loss on its held-out fold."""
        fold = len(self.trials) % self.num_folds
        member = self.folds.member(fold, estimator, run)
        held_out = HeldOut.of([member.predictor, self.hold], member.pairs, self.hold.schema)
        loss = compared_loss(held_out, len(self.hold.schema.target))
        self.trials.append(_Trial(options, fold, *member, loss, seconds))
        best = min(trial.loss for trial in self.trials)
        given = {name: value for name, value in self.fixed.items() if value}
        words = ", ".join(f"{name} {_short(value)}" for name, value in {**options, **given}.items())
        self._tell(
            f"{len(self.trials)}: {loss:.3f} × hold's quantile loss in {seconds:.0f} s ({words}); "
            f"best {best:.3f}, {max(self._remaining(), 0):.0f} s left"
        )

    def _relative_loss(self, trial: _Trial) -> float:
        """Return the loss relative to that of the defaults; folds are not equally hard."""
        default = next(other.loss for other in self.trials if other.fold == trial.fold)
        share = trial.loss / max(default, 1e-12)
        return share if math.isfinite(share) else 1e9

    def _estimator(self, options: dict[str, Any]) -> IrregularEstimator:
        given = {**self.fixed, **options}
        return IrregularEstimator(self.auto.prediction_length, supports=self.auto.supports, **given)

    def _in_time(self, estimator: NetworkEstimator) -> NetworkEstimator:
        """Return an estimator whose training ends when the search does."""
        timer = Timer(duration=timedelta(seconds=max(self._remaining(), 1.0)), verbose=False)
        given = {"enable_progress_bar": False, "callbacks": [timer]}
        return estimator.with_settings(trainer_kwargs=given)

    def _remaining(self) -> float:
        return self.end - time.monotonic()

    def _has_time(self) -> bool:
        """Return whether another network can probably be trained in time."""
        if not self.trials:
            return self._remaining() > 0
        return self._remaining() > 0.7 * float(np.median([one.seconds for one in self.trials]))

    def _tell(self, line: str) -> None:
        if self.auto.verbose:
            self.console.print(line, highlight=False, soft_wrap=True)


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """End the block at Ctrl-C without an error, and set the event.

    Lightning ends the process at Ctrl-C, and ignores the next one. And the exception may be
    swallowed where it is raised, for example in a destructor.
    """
    pressed = threading.Event()

    def stop(*_: object) -> None:
        pressed.set()
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, stop) if is_main else None
    try:
        yield pressed
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)
