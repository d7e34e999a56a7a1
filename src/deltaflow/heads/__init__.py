"""Heads: networks that turn the state at a query into a distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gluonts.torch.distributions as gluonts_distributions
from gluonts.core import serde
from gluonts.torch.distributions import NegativeBinomialOutput, NormalOutput, Output, StudentTOutput

from deltaflow.errors import DeltaflowError, check_registered
from deltaflow.heads.head import Head, has_quantiles, is_centred, is_discrete
from deltaflow.heads.quantile import MeanQuantileOutput, MonotoneQuantileOutput

__all__ = [
    "HEADS",
    "Head",
    "MeanQuantileOutput",
    "MonotoneQuantileOutput",
    "describe_output",
    "has_quantiles",
    "is_centred",
    "is_discrete",
    "make_output",
]

DECILES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def make_output(description: str | Mapping[str, Any] | Output) -> Output:
    """Return a GluonTS output, given its registered name or its `describe_output` description.

    Raises
    ------
    UnknownNameError
        If no head of this name is registered.
    DeltaflowError
        If a description names neither an output of GluonTS nor one of deltaflow, or has other
        arguments than that; or if the output brings a projection of its own, like GluonTS's
        implicit quantile network.

    Examples
    --------
    >>> type(make_output("student_t")).__name__
    'StudentTOutput'
    """
    output = description
    if isinstance(description, str):
        check_registered("head", description, HEADS)
        output = HEADS[description]()
    elif isinstance(description, Mapping):
        name, arguments = description.get("output"), description.get("arguments", {})
        cls = _known_class(str(name))
        if cls is None:
            raise DeltaflowError(f"{name!r} is not an output of gluonts.torch.distributions")
        try:
            output = cls(**arguments)
        except (TypeError, ValueError) as error:
            problem = f"{arguments!r} are not the arguments of a {name} ({error})"
            raise DeltaflowError(problem) from error
    if not isinstance(output, Output):
        raise DeltaflowError(
            f"{output!r} is not a head: give the name of one, or an output such as StudentTOutput()"
        )
    if type(output).get_args_proj is not Output.get_args_proj:
        raise DeltaflowError(
            f"{type(output).__name__} computes the arguments of its distribution by layers of its "
            "own (get_args_proj), which heads do not use: choose another output, such as "
            "'mean_quantile'"
        )
    return output


def _known_class(name: str) -> type[Output] | None:
    """Return the output class of this name in GluonTS or deltaflow; None if there is none."""
    own = {cls.__name__: cls for cls in (MonotoneQuantileOutput, MeanQuantileOutput)}
    cls = own.get(name) or getattr(gluonts_distributions, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, Output) else None


def describe_output(output: str | Mapping[str, Any] | Output) -> str | dict[str, Any]:
    """Return a head as plain, JSON-compatible values, from which `make_output` rebuilds it.

    Examples
    --------
    >>> describe_output(MonotoneQuantileOutput([0.1, 0.9]))
    {'output': 'MonotoneQuantileOutput', 'arguments': {'quantiles': [0.1, 0.9]}}
    """
    make_output(output)
    if not isinstance(output, Output):
        return output if isinstance(output, str) else dict(output)
    arguments = {
        key: value for key, value in getattr(output, "__init_args__", {}).items() if key != "self"
    }
    cls = type(output)
    if "__kind__" in serde.dump_json(arguments) or _known_class(cls.__name__) is not cls:
        raise DeltaflowError(
            f"an output of class {cls.__name__} cannot be stored with a model: give one of "
            "gluonts.torch.distributions, or register yours in deltaflow.heads.HEADS and give its "
            "name"
        )
    return {"output": cls.__name__, "arguments": arguments}


HEADS: dict[str, Callable[[], Output]] = {
    "student_t": StudentTOutput,
    "normal": NormalOutput,
    "negative_binomial": NegativeBinomialOutput,
    "quantile": lambda: MonotoneQuantileOutput(DECILES),
    "mean_quantile": lambda: MeanQuantileOutput(sorted([0.025, 0.25, 0.75, 0.975, *DECILES])),
}
"""Every head by its name: a function that returns a GluonTS output. The quantiles of ``quantile``
are the deciles, to which ``mean_quantile`` adds the quartiles and the central 95 % interval."""
