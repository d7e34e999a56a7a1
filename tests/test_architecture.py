"""Imports point one way: a module knows nothing of what is built on top of it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import deltaflow

SOURCE = Path(deltaflow.__file__).parent

FLOORS = [
    ["_lazy", "_version", "errors"],
    ["flows"],
    ["options", "process", "randomness", "saving", "tables"],
    ["encoders"],
    ["data", "heads"],
    ["model"],
    ["forecast"],
    ["training"],
    ["tasks"],
    ["compare"],
    ["__init__"],
    ["parsers"],
    ["auto_command", "benchmark", "demo", "lightning_cli", "serve"],
    ["cli"],
    ["__main__"],
]
"""Packages and modules from the ground up; what stands on one floor may not see the other."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name below ``deltaflow``, a package by its ``__init__``."""
    return {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
        for path in SOURCE.rglob("*.py")
    }


def imports_of(path: Path, names: set[str]) -> set[str]:
    """The modules of deltaflow that a file imports, wherever it does, as keys of `modules`."""
    package = path.relative_to(SOURCE.parent).parent.parts
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            parts = name.split(".")
            if parts[0] != "deltaflow":
                continue
            # The longest part of the name that is a module; the package itself otherwise.
            for length in range(len(parts), 0, -1):
                inner = parts[1:length]
                candidates = [".".join(inner), ".".join([*inner, "__init__"])]
                if match := next((c for c in candidates if c in names), None):
                    imported.add(match)
                    break
    return imported


GRAPH = {name: imports_of(path, set(modules())) for name, path in modules().items()}


def floor_of(name: str) -> int:
    room = name.split(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_module_stands_on_a_floor():
    rooms = {room for floor in FLOORS for room in floor}
    assert {name.split(".")[0] for name in GRAPH} <= rooms


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_a_module_imports_nothing_from_above(name):
    room, floor = name.split(".")[0], floor_of(name)
    above = [
        other for other in GRAPH[name] if other.split(".")[0] != room and floor_of(other) >= floor
    ]
    assert not above


def test_no_two_modules_import_each_other():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")
