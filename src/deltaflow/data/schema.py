"""The schema of a data set: its channels, covariates, categories and kind of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, fields
from numbers import Number, Real
from typing import Any, ClassVar, Literal, overload

import pandas as pd
from pandas.api.types import is_numeric_dtype

from deltaflow.errors import DataError

TIME_UNITS = ("W", "D", "h", "min", "s", "ms", "us", "ns")
"""The units of elapsed time, by their pandas names."""

TICKS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Ticks per second of the units in which pandas counts timestamps and durations."""


LARGEST = 1e100
"""The largest absolute value: float64 computes with its square without overflow."""

LONGEST = 1e18
"""The longest elapsed time in seconds, 3e10 years: float64 computes with it without overflow."""

_SECONDS = {unit: pd.Timedelta(1, unit=unit).value / 1e9 for unit in TIME_UNITS}


def unit_seconds(time_unit: str) -> float:
    """Return the length of a time unit in seconds.

    >>> unit_seconds("h")
    3600.0
    """
    if time_unit not in TIME_UNITS:
        raise DataError(
            f"unknown time unit {time_unit!r}",
            f"choose one of {', '.join(TIME_UNITS)}",
            field="time_unit",
        )
    return _SECONDS[time_unit]


def nanoseconds(time: pd.Timestamp | pd.Timedelta) -> int:
    """Return a duration, or a timestamp without a time zone, as an exact number of nanoseconds.

    pandas itself cannot represent more than 292 years in nanoseconds.

    >>> nanoseconds(pd.Timestamp("1000-01-01")) < -(2**63)
    True
    """
    return int(time.asm8.astype("int64")) * (10**9 // TICKS_PER_SECOND[time.unit])


def elapsed_time(ticks: Any, resolution: str, unit: float) -> Any:
    """Convert a number of ticks, or an array of them, to units of ``unit`` seconds.

    Float64 rounds more than once in the conversion. Numbers that are compared with the times of an
    entry must therefore be converted by this function, like the times of the entry.

    >>> elapsed_time(90_000, "ms", 3600.0)
    0.025
    """
    return ticks / float(TICKS_PER_SECOND[resolution]) / unit


Duration = str | pd.Timedelta
"""A duration in pandas notation, such as ``"24h"``."""


def read_duration(value: Duration, field: str) -> pd.Timedelta:
    """Read a duration, which must not be negative; ``field`` names it in an error.

    >>> read_duration("36h", "horizon")
    Timedelta('1 days 12:00:00')
    """
    try:
        # A number without a unit would be nanoseconds.
        duration = None if str(value).strip("+-.0123456789 ") == "" else pd.Timedelta(value)
    except (ValueError, TypeError):
        duration = None
    if duration is None or not duration >= pd.Timedelta(0):
        raise DataError(f"{value!r} is not a duration", "give one such as '24h'", field=field)
    return duration


Span = str | float | pd.Timedelta
"""A length of time: a duration such as ``"24h"``, or a number if times are elapsed numbers."""


def read_span(value: Any, field: str, times: pd.Series) -> Any:
    """Read a `Span` in the type of a time column: a number, or a duration.

    >>> read_span(36, "horizon", pd.Series([0, 12, 24]))
    36.0
    """
    if not is_numeric_dtype(times):
        return in_unit_of(times, read_duration(value, field))
    if not isinstance(value, Real) or not float(value) >= 0:
        raise DataError(
            f"{value!r} is not a length of time in the numbers of {times.name!r}",
            "give a number, in their unit",
            field=field,
        )
    return float(value)


def in_unit_of(times: pd.Series, duration: pd.Timedelta) -> pd.Timedelta:
    """Return a duration that can be added to timestamps outside the range of nanoseconds, too."""
    return duration if times.dt.unit == "ns" else duration.as_unit("us")


def read_date(value: str | pd.Timestamp, field: str) -> pd.Timestamp:
    """Read a date, with or without a time of day.

    >>> read_date("2024-01-01 08:00", "date")
    Timestamp('2024-01-01 08:00:00')
    """
    try:
        # A number would be nanoseconds since 1970.
        date = pd.NaT if isinstance(value, Number) else pd.Timestamp(value)
    except (ValueError, TypeError):
        date = pd.NaT
    if not isinstance(date, pd.Timestamp):
        raise DataError(f"{value!r} is not a date", "give one such as '2024-01-01'", field=field)
    return date


@overload
def read_seconds(value: Duration, field: str) -> float: ...
@overload
def read_seconds(value: Duration | None, field: str) -> float | None: ...
def read_seconds(value, field):
    """Return a positive duration in seconds; None stays None.

    >>> read_seconds("36h", "horizon")
    129600.0
    """
    if value is None:
        return None
    seconds = read_duration(value, field).total_seconds()
    if seconds == 0:
        raise DataError("the duration is zero", "give one such as '24h'", field=field)
    return seconds


def read_range(value: Sequence[Duration] | None, field: str) -> tuple[float, float] | None:
    """Return a pair of durations, the earlier one first, in seconds; None stays None.

    >>> read_range(("0h", "36h"), "origins_within")
    (0.0, 129600.0)
    """
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sized) or len(value) != 2:
        raise DataError(f"{value!r} is not a range", "give an earliest and a latest time",
                        field=field)  # fmt: skip
    first, last = (read_duration(part, field).total_seconds() for part in value)
    if last < first:
        raise DataError(f"{last} s lies before {first} s", "give the earlier time first",
                        field=field)  # fmt: skip
    return first, last


ROLES = (
    "target", "feat_dynamic_real", "past_feat_dynamic_real", "feat_static_real", "feat_static_cat",
)  # fmt: skip
"""The fields of an entry whose rows have names."""


@dataclass(frozen=True, eq=False)
class Schema:
    """The names and kinds of everything in a data set.

    Every entry of an irregular data set carries it in its ``info``. A predictor keeps the schema of
    its training data, and matches other data to it by name, see `Match`. Two schemas are equal if
    all names, and the levels of every category, are the same and in the same order.

    Attributes
    ----------
    target
        Names of the D target channels, in the order of the rows of ``target``.
    univariate
        Whether ``target`` has the shape ``(T,)`` instead of ``(D, T)``.
    time
        ``"timestamp"``: real dates; ``"elapsed"``: plain numbers counted in ``time_unit``;
        ``"regular"``: an ordinary GluonTS data set, whose time is counted in periods.
    time_unit
        Unit of the elapsed times; the frequency for a regular data set.
    time_zone
        Name of the time zone of the timestamps, if they have one.
    feat_dynamic_real
        Names of the covariates known in advance (without the elapsed time of row 0).
    past_feat_dynamic_real
        Names of the covariates known for the past only.
    feat_static_real
        Names of the static real features.
    feat_static_cat
        The levels of each static categorical feature, by its name.
    said
        The warnings already given about data matched to this schema. Neither compared nor stored.
    """

    said: ClassVar[set[tuple[str, str]]]

    target: tuple[str, ...]
    univariate: bool
    time: Literal["timestamp", "elapsed", "regular"]
    time_unit: str
    time_zone: str | None = None
    feat_dynamic_real: tuple[str, ...] = ()
    past_feat_dynamic_real: tuple[str, ...] = ()
    feat_static_real: tuple[str, ...] = ()
    feat_static_cat: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # JSON and YAML have lists, which cannot be hashed and do not equal tuples.
        for role in ROLES[:-1]:
            object.__setattr__(self, role, tuple(getattr(self, role)))
        levels = {name: tuple(own) for name, own in self.feat_static_cat.items()}
        object.__setattr__(self, "feat_static_cat", levels)
        object.__setattr__(self, "said", set())

    def __eq__(self, other: object) -> bool:
        # Comparing only the mappings would ignore the order of the categories.
        return self is other or (
            isinstance(other, Schema)
            and all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self))
            and list(self.feat_static_cat) == list(other.feat_static_cat)
        )

    def __hash__(self) -> int:
        return hash((self.target, self.feat_dynamic_real, self.past_feat_dynamic_real, self.time))

    def warn_with(self, other: Schema) -> None:
        """Share the warnings already given with another schema."""
        object.__setattr__(self, "said", other.said)

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as plain, JSON-compatible values."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        plain["feat_static_cat"] = {k: list(v) for k, v in self.feat_static_cat.items()}
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Schema:
        """Rebuild a schema from the plain values of :meth:`to_dict`, and check it.

        Raises
        ------
        ValueError, TypeError, KeyError or AttributeError
            If it is not a schema.
        """
        schema = cls(
            **{
                **plain,
                **{role: _names(plain[role]) for role in ROLES[:-1]},
                "feat_static_cat": {k: _names(v) for k, v in plain["feat_static_cat"].items()},
            }
        )
        channels = len(schema.target)
        fits = channels == 1 if schema.univariate else channels > 0
        if not isinstance(schema.univariate, bool) or not fits:
            raise ValueError(f"{channels} channels cannot have univariate={schema.univariate!r}")
        if schema.time not in ("timestamp", "elapsed", "regular"):
            raise ValueError(f"{schema.time!r} is not a kind of time")
        if schema.time != "regular":
            unit_seconds(schema.time_unit)
        if not isinstance(schema.time_zone, (str, type(None))):
            raise ValueError(f"{schema.time_zone!r} is not a time zone")
        return schema


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{value!r} is not a list of names")
    if len(set(value)) < len(value):
        raise ValueError(f"a name occurs twice in {value!r}")
    return tuple(value)
