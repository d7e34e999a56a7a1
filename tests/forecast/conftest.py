"""A stored predictor, and an object that betrays whether it was unpickled."""

from pathlib import Path

import pytest


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path) -> Canary:
    return Canary(tmp_path / "touched")


@pytest.fixture
def directory(trained, tmp_path) -> Path:
    trained("GRUEstimator").serialize(tmp_path / "predictor")
    return tmp_path / "predictor"
