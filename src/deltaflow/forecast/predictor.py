"""The contract of all predictors: schema, forecasts, saving and loading."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count, groupby, tee
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from gluonts.dataset.common import DataEntry, Dataset
from gluonts.model.predictor import Predictor, RepresentablePredictor
from gluonts.torch.util import resolve_device

from deltaflow._version import __version__
from deltaflow.data.matching import Match
from deltaflow.data.schema import Schema, unit_seconds
from deltaflow.data.series import Series, entries_of, is_irregular, matched_series
from deltaflow.errors import DeltaflowError, check_whole
from deltaflow.forecast.forecasts import RealTimeForecast
from deltaflow.randomness import ItemSeeds, check_seed, seeded
from deltaflow.saving import FORMAT, MARKER, check_format, reading, replacing

if TYPE_CHECKING:
    from typing_extensions import Self

F = TypeVar("F", bound=RealTimeForecast)
T = TypeVar("T")

_DESCRIPTION = "predictor.json"
_MEMBER = "__predictor__"
"""The key in a description that refers to the predictor in a numbered subfolder."""


class DeltaflowPredictor(RepresentablePredictor):
    """A GluonTS predictor that knows the schema of its data and is saved without code.

    A subclass has a constructor decorated by GluonTS's ``@validated()``, and implements
    :meth:`predict`. Its arguments are plain values, or predictors, alone or in a list, so that a
    wrapper, such as an ensemble, is saved and loaded together with its members. Everything else,
    such as weights, is saved by :meth:`write_state` and loaded by :meth:`restore`. To be loaded, a
    class must be listed in `PREDICTORS`.

    Parameters
    ----------
    prediction_length
        The number of queries of a GluonTS window. Forecasts may have more or fewer.
    schema
        The schema of the data.
    """

    __version__: str = __version__

    def __init__(self, prediction_length: int, schema: Schema) -> None:
        super().__init__(prediction_length)
        self.schema = schema
        # GluonTS's `validated` has replaced it by one that prints every argument.
        type(self).__repr__ = DeltaflowPredictor.__repr__

    def __repr__(self) -> str:
        inside = [
            f"{count} × {one}" if count > 1 else one for one, count in _counted(self._inside())
        ]
        return f"{type(self).__name__}({', '.join(inside)})"

    def _inside(self) -> list[str]:
        """Return the members or the encoder to print."""
        return [repr(member) for member in self.members]

    @abstractmethod
    def predict(
        self, dataset: Dataset, num_samples: int | None = None, seed: int | None = None
    ) -> Iterator[RealTimeForecast]:
        """Forecast each entry at its query times, in the order of the data set.

        Parameters
        ----------
        dataset
            Entries whose ``feat_dynamic_real`` continues after the last observation with the query
            times. Regular entries are forecast for the next ``prediction_length`` periods.
        num_samples
            Number of samples per series; if None, the most exact kind of forecast available.
        seed
            Seed of the samples, which leaves the global random state unchanged. The samples of an
            item depend neither on the other items of the data set nor on their order.
        """

    def summary(self) -> dict[str, Any]:
        """Return a description in a few plain values; equal members are counted."""
        summary: dict[str, Any] = {
            "predictor": type(self).__name__,
            "target": list(self.schema.target),
            "time": self.schema.time,
            "prediction_length": self.prediction_length,
        }
        if self.members:
            summary["members"] = [
                own if number == 1 else {"count": number, **own}
                for own, number in _counted(member.summary() for member in self.members)
            ]
        return summary

    @cached_property
    def members(self) -> list[DeltaflowPredictor]:
        """The predictors among the arguments, in the order in which they are saved."""
        found: list[DeltaflowPredictor] = []
        _replaced(self._arguments(), found.append)
        return found

    @property
    def draws_paths(self) -> bool:
        """Whether samples are coherent trajectories, see `IrregularPredictor`."""
        return bool(self.members) and all(member.draws_paths for member in self.members)

    def combine(self, forecasts: Sequence[RealTimeForecast], lead: np.ndarray) -> RealTimeForecast:
        """Compute the forecast from those of the `members`, in their order.

        Parameters
        ----------
        forecasts
            The members' forecasts of one item.
        lead
            ``(Q,)`` time from the last observation to each query: seconds, or periods of a regular
            series; NaN for padding.
        """
        raise NotImplementedError(f"a {type(self).__name__} has no members")

    def to(self, device: str | torch.device) -> Self:
        """Move any networks to another device, and return the predictor."""
        for member in self.members:
            member.to(device)
        return self

    def with_unlimited_context(self) -> Self:
        """Return a predictor with the same weights that reads whole series of any length.

        By default, predictors read at most the last ``context_length`` observations, within
        ``context``. Networks with a short context keep it, see `Reader.is_short`: they have never
        seen longer series.
        """
        arguments = _replaced(self._arguments(), lambda member: member.with_unlimited_context())
        return type(self)(**arguments)

    def serialize(self, path: str | Path) -> None:
        """Write the predictor into a directory, which is created if necessary; see `replacing`."""
        content = self.description()
        with replacing(path) as folder:
            Predictor.serialize(self, folder)
            (folder / _DESCRIPTION).write_text(content)
            self.write_state(folder)
            for number, member in enumerate(self.members):
                member.serialize(folder / str(number))

    def description(self) -> str:
        """Return class and arguments as JSON, with numbers in place of the `members`."""
        cls, numbers = type(self), count()

        def plain(value: Any) -> Any:
            if isinstance(value, DeltaflowPredictor):
                return {_MEMBER: next(numbers)}
            if isinstance(value, (np.ndarray, np.generic)):
                return value.tolist()
            raise TypeError(f"{value!r} is not a plain value")

        description = {
            "format": FORMAT,
            "class": f"{cls.__module__}.{cls.__qualname__}",
            "kwargs": self._arguments(),
        }
        return json.dumps(description, default=plain)

    @classmethod
    def deserialize(cls, path: str | Path, device: str = "auto") -> Self:
        """Read a predictor written by :meth:`serialize`."""
        path = Path(path)
        return cls.restore(_read_arguments(path, cls.__name__, device), path, device)

    def write_state(self, folder: Path) -> None:
        """Write any state besides the constructor's arguments; nothing by default."""

    @classmethod
    def restore(cls, arguments: dict[str, Any], folder: Path, device: str) -> Self:
        """Build the predictor from stored arguments and the state of :meth:`write_state`."""
        with reading(folder / _DESCRIPTION):
            return cls(**arguments)

    def _arguments(self) -> Mapping[str, Any]:
        """Return the constructor's arguments, stored by GluonTS's ``validated``."""
        return self.__init_args__  # pyright: ignore[reportAttributeAccessIssue]


class WrappedPredictor(DeltaflowPredictor):
    """The base of predictors that modify the forecasts of another one.

    A subclass implements :meth:`adjusted`.

    Parameters
    ----------
    predictor
        Any predictor of deltaflow.
    """

    def __init__(self, predictor: DeltaflowPredictor) -> None:
        super().__init__(predictor.prediction_length, predictor.schema)
        self.predictor = predictor

    @abstractmethod
    def adjusted(self, forecast: RealTimeForecast, lead: np.ndarray) -> RealTimeForecast:
        """Return the modified forecast; for ``lead``, see `combine`."""

    def combine(self, forecasts: Sequence[RealTimeForecast], lead: np.ndarray) -> RealTimeForecast:
        """Modify the forecast of the predictor; see `DeltaflowPredictor.combine`."""
        (forecast,) = forecasts
        return self.adjusted(forecast, lead)

    def predict(
        self, dataset: Dataset, num_samples: int | None = None, seed: int | None = None
    ) -> Iterator[RealTimeForecast]:
        """Forecast each entry; see `DeltaflowPredictor.predict`."""
        given, entries = tee(entries_of(dataset))
        forecasts = self.predictor.predict(given, num_samples=num_samples, seed=seed)  # pyright: ignore[reportArgumentType]
        for forecast, entry in zip(forecasts, entries, strict=True):
            yield self.adjusted(forecast, leads_of(entry, self.prediction_length))


def leads_of(entry: DataEntry, prediction_length: int) -> np.ndarray:
    """Return the times ``(Q,)`` from the last observation time to the queries, NaN for padding."""
    length = np.shape(entry["target"])[-1]
    times = times_of(entry, prediction_length)
    queries = times[length:]
    return queries - (times[length - 1] if length else queries[:1])


def times_of(entry: DataEntry, prediction_length: int) -> np.ndarray:
    """Return the times of observations and queries since the origin of the entry."""
    if is_irregular(entry):
        return entry["feat_dynamic_real"][0] * unit_seconds(entry["info"]["time_unit"])
    return np.arange(float(np.shape(entry["target"])[-1] + prediction_length))


class ReadEntry(NamedTuple):
    """An entry to forecast, the series read from it, and the match of its names."""

    entry: DataEntry
    series: Series
    found: Match

    @property
    def origin(self) -> Any:
        """The nominal time of the first query."""
        return self.entry["start"] + self.series.length

    def answer(self, forecast: F) -> F:
        """Label a forecast with the entry's item and times, and return it."""
        entry, series, found = self
        forecast.start_date = self.origin
        forecast.item_id, forecast.info = series.item_id, entry.get("info")
        queries = None
        if is_irregular(entry):
            queries = np.array(entry["feat_dynamic_real"][0, np.shape(entry["target"])[-1] :])
        return forecast.labelled(queries, found.target, found.ignored.get("target", ()))


def read_data(
    dataset: Dataset, schema: Schema, prediction_length: int, seasonality: Sequence[str] = ()
) -> Iterator[ReadEntry]:
    """Read the entries of a data set, one after the other; see `series_of`."""
    for entry in entries_of(dataset):
        found, series = matched_series(entry, schema, seasonality, prediction_length)
        yield ReadEntry(entry, series, found)


def sampled(
    forecasts: Iterable[RealTimeForecast],
    num_samples: int | None,
    seed: int | None,
) -> Iterator[Any]:
    """Yield the forecasts, or ``num_samples`` samples of each; see `DeltaflowPredictor.predict`."""
    check_whole(1, num_samples=num_samples)
    check_seed(seed)
    seeds = ItemSeeds(seed)
    for forecast in forecasts:
        if num_samples:
            with seeded(seeds.of(forecast.item_id, forecast.start_date)):
                forecast = forecast.to_sample_forecast(num_samples)
        yield forecast  # outside of the context, whose random state is not the caller's


def numbers_of(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return a stored argument as an array, or raise a ValueError if it is not finite."""
    numbers = np.array(values, dtype=np.float64)
    if numbers.shape != shape or not np.isfinite(numbers).all():
        raise ValueError(f"{name} are not finite numbers of the shape {shape}")
    return numbers


PREDICTORS: dict[str, type[DeltaflowPredictor]] = {}
"""Every class that `load_directory` builds, by its name. The package registers its own."""


def load_directory(path: str | Path, device: str = "auto") -> DeltaflowPredictor:
    """Load a predictor written by ``serialize``, without executing any stored code.

    Raises
    ------
    DeltaflowError
        If the directory has no predictor listed in `PREDICTORS`, or there is no such device.
    """
    path = Path(path)
    find_device(device)
    try:
        kind = json.loads((path / MARKER).read_text())["type"]
    except Exception as error:  # a damaged or foreign file may cause any error
        raise DeltaflowError(f"{path} holds no predictor ({error})") from error
    name = _last_name(kind)
    if name not in PREDICTORS:
        raise DeltaflowError(
            f"{path} holds a {kind!r}, which is not a predictor of deltaflow; if you trust it, "
            "load it with gluonts.model.predictor.Predictor.deserialize"
        )
    return PREDICTORS[name].deserialize(path, device=device)


def find_device(device: str | torch.device) -> torch.device:
    """Return a torch device by its name, where ``"auto"`` is a GPU if there is one.

    Raises
    ------
    DeltaflowError
        If there is no such device on this machine, or it has no float64.

    Examples
    --------
    >>> find_device("cpu")
    device(type='cpu')
    """
    if str(device).startswith("mps"):
        raise DeltaflowError(
            "the levels of series are kept in float64, which Apple's GPU, 'mps', lacks: choose "
            "'cpu'"
        )
    try:
        found = torch.device(resolve_device(device))
        torch.zeros(1, device=found).item()
    except Exception as error:  # torch raises any: AssertionError without a CUDA build, for one
        reason = shorten(str(error).split(". ")[0], 80)
        raise DeltaflowError(
            f"there is no device {str(device)!r} on this machine ({reason}): choose 'cpu', or "
            "'auto', which takes a GPU if there is one"
        ) from error
    return found


def _counted(values: Iterable[T]) -> Iterator[tuple[T, int]]:
    """Yield the values, each with the number of consecutive equal ones."""
    return ((value, len(list(same))) for value, same in groupby(values))


def _replaced(value: Any, function: Callable[[DeltaflowPredictor], Any]) -> Any:
    """Replace each predictor in plain values by the result of a function."""
    if isinstance(value, DeltaflowPredictor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _replaced(part, function) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(part, function) for part in value]
    return value


def _read_arguments(path: Path, name: str, device: str) -> dict[str, Any]:
    """Read the constructor's arguments from a directory: plain values and predictors.

    Raises
    ------
    DeltaflowError
        If the description is of another class, or asks for another object to be built.
    """
    file = path / _DESCRIPTION

    def built(value: dict[str, Any]) -> Any:
        if "__kind__" in value:
            raise DeltaflowError(
                f"{file} asks for an object {value.get('class')!r}; a deltaflow predictor has "
                "plain values only"
            )
        if _MEMBER not in value:
            return value
        if type(number := value[_MEMBER]) is not int:
            raise DeltaflowError(f"{file} names no subfolder: {number!r}")
        return load_directory(path / str(number), device)

    with reading(file):
        stored = json.loads(file.read_text(), object_hook=built)
        described = isinstance(stored, dict) and _last_name(stored.get("class")) == name
        if not described or stored.get("args"):
            raise DeltaflowError(f"{file} does not describe a {name}")
        check_format(stored.get("format"), file)
        if not isinstance(stored.get("kwargs"), dict):
            raise DeltaflowError(f"{file} holds no arguments of a {name}")
        return stored["kwargs"]


def _last_name(name: Any) -> str | None:
    """Return the last name of a dotted path, so that a class may move between modules."""
    return name.rpartition(".")[-1] if isinstance(name, str) else None
