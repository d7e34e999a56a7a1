"""The errors and warnings that deltaflow raises on purpose."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np


class DeltaflowError(Exception):
    """Base class of every error that deltaflow raises on purpose."""

    def __reduce__(self):
        # Worker processes send exceptions by pickle, which would call __init__ with the message.
        return _restored, (type(self), str(self), self.__dict__)


def _restored(cls: type[DeltaflowError], message: str, attributes: dict) -> DeltaflowError:
    error = cls.__new__(cls, message)
    error.__dict__.update(attributes)
    return error


class DataError(DeltaflowError, ValueError):
    """Bad input data; the message names the item, the field, the position and the remedy.

    Parameters
    ----------
    problem
        The problem and, where it helps, what was expected.
    remedy
        What the caller can do about it.
    item, field, position
        Where it is wrong: the item's identifier, the field or column, and the row (its index
        label in a DataFrame, its number in an array). Leave out what does not apply.
    frame
        The argument with the faulty DataFrame, if a call takes several.

    Examples
    --------
    >>> str(DataError("is not a number", "convert it", item="A", field="HR", position=3))
    "item 'A', field 'HR', row 3: is not a number; convert it"
    """

    def __init__(
        self,
        problem: str,
        remedy: str = "",
        *,
        item: object = None,
        field: str | None = None,
        position: object = None,
        frame: str | None = None,
    ) -> None:
        self.problem, self.remedy = problem, remedy
        self.item, self.field, self.position, self.frame = item, field, position, frame
        where = [] if frame is None else [frame]
        where += [
            f"{name} {value.item() if isinstance(value, np.generic) else value!r}"
            for name, value in (("item", item), ("field", field), ("row", position))
            if value is not None
        ]
        message = f"{', '.join(where)}: {problem}" if where else problem
        super().__init__(f"{message}; {remedy}" if remedy else message)


@contextmanager
def located(*, item: object = None, frame: str | None = None) -> Iterator[None]:
    """Add the item, or the argument with the DataFrame, to the errors raised inside.

    >>> with located(frame="future_df"):  # doctest: +IGNORE_EXCEPTION_DETAIL
    ...     raise DataError("is not a number", field="HR")
    Traceback (most recent call last):
    DataError: future_df, field 'HR': is not a number
    """
    try:
        yield
    except DataError as error:
        raise DataError(
            error.problem,
            error.remedy,
            item=error.item if item is None else item,
            field=error.field,
            position=error.position,
            frame=error.frame if frame is None else frame,
        ) from error.__cause__


class UnknownNameError(DeltaflowError, ValueError):
    """A name that is not registered, such as a misspelt encoder.

    Parameters
    ----------
    concept
        The kind of the name, such as an encoder.
    name
        The unknown name.
    registered
        The names that are registered.

    Examples
    --------
    >>> str(UnknownNameError("encoder", "gru_flo", ["gru", "gru_flow"]))
    "unknown encoder 'gru_flo': did you mean 'gru_flow'? Registered: 'gru', 'gru_flow'"
    """

    def __init__(self, concept: str, name: object, registered: Iterable[Any]) -> None:
        from difflib import get_close_matches

        names = sorted(registered)
        close = get_close_matches(str(name), names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        listed = ", ".join(map(repr, names))
        super().__init__(f"unknown {concept} {name!r}: {hint}Registered: {listed}")


def check_registered(concept: str, name: object, registered: Collection[Any]) -> None:
    """Raise an `UnknownNameError` unless a name is registered."""
    if name not in registered:
        raise UnknownNameError(concept, name, registered)


class UnknownArgumentError(DeltaflowError, TypeError):
    """An argument that the function does not take, for example because it is misspelt."""


def check_at_least(least: float, **values: float | None) -> None:
    """Raise an error that names the argument if a value is less than ``least``, or not finite.

    >>> check_at_least(0, balance=-1.0)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    DeltaflowError: balance must be at least 0, got -1.0
    """
    for name, value in values.items():
        if value is not None and not (_is_finite(value) and value >= least):
            raise DeltaflowError(f"{name} must be at least {least:g}, got {value}")


def check_whole(least: int, **values: float | None) -> None:
    """Raise an error that names the argument if a value is not a whole number, or too small.

    >>> check_whole(1, batch_size=2.5)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    DeltaflowError: batch_size must be a whole number, got 2.5
    """
    for name, value in values.items():
        if value is not None and not isinstance(value, Integral):
            raise DeltaflowError(f"{name} must be a whole number, got {value!r}")
    check_at_least(least, **values)


def check_between(least: float, most: float, **values: float | None) -> None:
    """Raise an error that names the argument if a value is not between two others.

    >>> check_between(0, 1, dropout=1.5)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    DeltaflowError: dropout must lie between 0 and 1, got 1.5
    """
    for name, value in values.items():
        if value is not None and not (_is_finite(value) and least <= value <= most):
            raise DeltaflowError(f"{name} must lie between {least:g} and {most:g}, got {value}")


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))


@contextmanager
def needing(extras: str) -> Iterator[None]:
    """Report which extras to install if an import inside the context fails.

    >>> with needing("plot"):  # doctest: +IGNORE_EXCEPTION_DETAIL
    ...     import matplotlib_that_is_missing
    Traceback (most recent call last):
    DeltaflowError: matplotlib_that_is_missing is needed here: pip install 'deltaflow[plot]'
    """
    try:
        yield
    except ImportError as error:
        raise DeltaflowError(
            f"{error.name} is needed here: pip install 'deltaflow[{extras}]'"
        ) from error


class DeltaflowWarning(UserWarning):
    """A problem that was handled, but that the user should know about."""


_SAID: set[tuple[str, str]] = set()


def warn_once(
    message: str, names: Iterable[str] = ("",), said: set[tuple[str, str]] | None = None
) -> None:
    """Warn about the user's data, once for each message and each name behind it.

    Python forgets which warnings it has shown whenever the filters change, as in every training
    run, so each model of the same data would repeat the warning. The set ``said`` of given warnings
    is kept for the whole process, or by the caller.
    """
    said = _SAID if said is None else said
    new = sorted(name for name in names if (message, name) not in said)
    if new:
        warnings.warn(message + ", ".join(new), DeltaflowWarning, stacklevel=3)
        said.update((message, name) for name in new)
