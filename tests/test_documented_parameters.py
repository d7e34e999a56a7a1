"""Whatever the package offers documents its own parameters."""

import inspect
import re
from itertools import chain

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
