"""Groups of options: frozen dataclasses whose fields are arguments of estimators and modules.

Each option has one name, one default and one check, in its group. Estimators and Lightning modules
keep their flat signatures: `options_from` picks a group from their arguments, ``**vars(group)``
passes it on, and `documents` describes its options once for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from inspect import cleandoc
from typing import Any, TypeVar

from deltaflow.errors import DeltaflowError, check_registered

C = TypeVar("C", bound=type)
G = TypeVar("G")


def options_from(group: type[G], arguments: Mapping[str, Any]) -> G:
    """Return a group of options from arguments by name; None selects the default.

    Parameters
    ----------
    group
        The dataclass.
    arguments
        The arguments; those that are not fields of the group are ignored.
    """
    names = [field.name for field in fields(group)]  # pyright: ignore[reportArgumentType]
    given = {name: arguments[name] for name in names if arguments.get(name) is not None}
    return group(**given)


def with_changes(group: G, changes: Mapping[str, Any], name: str = "the options") -> G:
    """Return a group of options with changed options, also in nested groups.

    Parameters
    ----------
    group
        The options.
    changes
        The new values by name; for a nested group, a mapping of the same kind.
    name
        The name of the group in errors.

    Raises
    ------
    DeltaflowError
        If there is no such option, or the change of a nested group is not a mapping.

    Examples
    --------
    >>> from deltaflow.training.options import TrainingOptions
    >>> with_changes(TrainingOptions(), {"optimizer": {"lr": 0.01}}).optimizer
    OptimizerOptions(lr=0.01, weight_decay=0.0001)
    """
    known = [field.name for field in fields(group)]  # pyright: ignore[reportArgumentType]
    changed = {}
    for option, value in changes.items():
        check_registered(f"option of {name}", option, known)
        inner = getattr(group, option)
        if is_dataclass(inner):
            if not isinstance(value, Mapping):
                raise DeltaflowError(f"{option} of {name} takes options by name, got {value!r}")
            value = with_changes(inner, value, f"{option} of {name}")
        changed[option] = value
    return replace(group, **changed)  # pyright: ignore[reportArgumentType]


def documents(*groups: type) -> Callable[[C], C]:
    """Return a class decorator that describes the options of groups among the parameters."""

    def documented(cls: C) -> C:
        own = _parameters(cls)
        everything = "\n".join([own, *map(_parameters, groups)])
        cls.__doc__ = cleandoc(cls.__doc__ or "").replace(own, everything) if own else cls.__doc__
        return cls

    return documented


def _parameters(cls: type) -> str:
    """Return the section of a docstring that describes the parameters or fields of a class."""
    rest = re.split(r"(?:Parameters|Attributes)\n-+\n", cleandoc(cls.__doc__ or ""), maxsplit=1)
    return rest[1].partition("\n\n")[0] if len(rest) == 2 else ""
