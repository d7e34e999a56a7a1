from functools import partial
from pathlib import Path

import pytest

from deltaflow.compare import CompareConfig, Variant, compare


def tiny_comparison(output: Path, **changes) -> CompareConfig:
    """A comparison that takes a second, with some settings changed."""
    settings = {
        "dataset": "sine",
        "dataset_kwargs": {"num_series": 15, "length": 30},
        "encoders": ["gru"],
        "seeds": [0],
        "output": output,
        "hidden_size": 4,
        "epochs": 2,
        "num_batches_per_epoch": 2,
        "batch_size": 4,
    }
    return CompareConfig(**{**settings, **changes})


@pytest.fixture
def tiny(tmp_path: Path):
    """`tiny_comparison`, as a function of the changed settings."""
    return partial(tiny_comparison, tmp_path / "comparison")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished comparison, one row of which has failed."""
    config = tiny_comparison(
        tmp_path_factory.mktemp("comparison"),
        encoders=["gru", "broken"],
        variants={"broken": Variant("gru", {"depth": 3})},
        seeds=[0, 1],
        epochs=1,
    )
    compare(config)
    return config.output
