"""Whatever the package offers documents its own parameters."""

import inspect
import re
from itertools import chain
from typing import ForwardRef

import pytest

import deltaflow
import deltaflow.tasks

OFFERED = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (deltaflow, deltaflow.tasks)
    for name in package.__all__
    if callable(getattr(package, name))
}


@pytest.mark.parametrize("name", OFFERED)
def test_docstring_names_every_parameter(name):
    documented = re.findall(r"^([\w, ]+)$", inspect.getdoc(OFFERED[name]) or "", re.MULTILINE)
    known = set(chain(*(line.split(", ") for line in documented)))
    try:
        parameters = inspect.signature(OFFERED[name]).parameters
    except ValueError:  # a warning's constructor has no signature
        parameters = {}
    assert set(parameters) <= known


@pytest.mark.parametrize("name", OFFERED)
def test_the_types_of_checked_arguments_are_known(name):
    """Otherwise GluonTS's check refuses every value."""
    model = getattr(OFFERED[name].__init__, "Model", None)
    types = [field.type_ for field in model.__fields__.values()] if model else []
    assert not [one for one in types if isinstance(one, ForwardRef)]
