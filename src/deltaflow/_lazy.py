"""Packages whose public names are imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy(
    package: str, names: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Type checkers read the same names from imports that they alone execute.

    Parameters
    ----------
    package
        The ``__name__`` of the package.
    names
        The names that each module of the package provides.
    submodules
        Modules that are themselves attributes of the package.
    """
    homes = {name: module for module, provided in names.items() for name in provided}

    def get(name: str) -> Any:
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)  # later uses find it without this function
        return value

    def names_of_package() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *submodules})

    return get, names_of_package, sorted(homes)
