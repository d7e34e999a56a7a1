"""What an import loads, and that every public name is where it is said to be."""

import ast
import importlib
import importlib.resources
import pydoc
import subprocess
import sys

import pytest

import deltaflow

HEAVY = ("gluonts", "lightning", "pandas", "scipy", "torchcde", "torchdiffeq", "torchmetrics")

LOADED = """
import sys
import deltaflow
print(*sys.modules)
import deltaflow.flows, deltaflow.encoders
print(*sys.modules)
"""


def test_flows_and_encoders_import_torch_alone():
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    top, flows = (set(line.split()) for line in done.stdout.splitlines())
    assert not top & {*HEAVY, "torch", "numpy"}
    assert not flows & set(HEAVY)
    assert "torch" in flows


lazy_package = pytest.mark.parametrize(
    "package", ["deltaflow", "deltaflow.data", "deltaflow.tasks"]
)


@lazy_package
def test_every_public_name_can_be_imported(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == module.__all__
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


@lazy_package
def test_a_name_is_that_of_the_module_that_the_stub_names(package):
    module = importlib.import_module(package)
    stub = ast.parse(importlib.resources.files(package).joinpath("__init__.pyi").read_text())
    for node in stub.body[1:]:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name  # or a type checker would take it for private
            home = importlib.import_module(node.module)
            assert getattr(module, alias.name) is getattr(home, alias.name)


def test_help_shows_lazy_names():
    text = pydoc.render_doc(deltaflow, renderer=pydoc.plaintext)
    assert "class GRUFlowEstimator" in text
    assert "predict_df(" in text


def test_packages_are_attributes():
    assert deltaflow.flows.GRUFlow(3).dim == 3
