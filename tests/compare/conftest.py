from functools import partial
from pathlib import Path

import pytest

from deltaflow.compare import CompareConfig, compare
from deltaflow.options import with_changes

TINY = {
    "encoders": ["gru"],
    "seeds": [0],
    "data": {
        "dataset": "sine",
        "dataset_kwargs": {"num_series": 15, "length": 30},
        "batch_size": 4,
        "num_batches_per_epoch": 2,
    },
    "model": {"hidden_size": 4},
    "trainer": {"max_epochs": 2},
}


def tiny_comparison(output: Path, **changes) -> CompareConfig:
    """A comparison that takes a second, with some options changed."""
    tiny = with_changes(CompareConfig(), {**TINY, "output": output})
    return with_changes(tiny, changes)


@pytest.fixture
def tiny(tmp_path: Path):
    """`tiny_comparison`, as a function of the changed options."""
    return partial(tiny_comparison, tmp_path / "comparison")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished comparison, one row of which has failed."""
    config = tiny_comparison(
        tmp_path_factory.mktemp("comparison"),
        encoders=["gru", "broken"],
        variants={"broken": {"model": {"encoder": "gru", "encoder_kwargs": {"depth": 3}}}},
        seeds=[0, 1],
        trainer={"max_epochs": 1},
    )
    compare(config)
    return config.output
