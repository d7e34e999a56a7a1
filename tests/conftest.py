"""Small irregular data and tiny trained predictors, shared by all tests of a session.

Nothing here is drawn from a global random state, so tests give the same result in any order.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, settings

import deltaflow
from deltaflow import IrregularDataset, IrregularEstimator, errors

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

# What hypothesis draws: the same few examples in the suite, and with `--hypothesis-profile fuzz`
# many, other ones each time.
slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
settings.register_profile(
    "suite", deadline=None, suppress_health_check=slow, derandomize=True, max_examples=40
)
settings.register_profile(
    "fuzz", settings.get_profile("suite"), derandomize=False, max_examples=2000, print_blob=True
)
settings.load_profile("suite")

SLOW = {
    "test_any_frame", "test_any_schema", "test_auto", "test_baselines", "test_batches",
    "test_benchmark", "test_cli", "test_conformal", "test_demo", "test_distributed",
    "test_ensemble", "test_estimator_laws", "test_examples", "test_folds",
    "test_forecasts_of_heads", "test_fused", "test_gaussian_process", "test_gluonts_tools",
    "test_hold", "test_imports", "test_interrupted_fit", "test_learning", "test_lightning_cli",
    "test_live_laws", "test_ode_laws", "test_predict_df", "test_process", "test_readme",
    "test_regular_data", "test_report", "test_run", "test_runs", "test_saving", "test_support",
    "test_trained_laws", "test_training", "test_widening",
}  # fmt: skip
"""Modules of tests that train, or start processes, for seconds: without them, by
``-m "not slow"``, the rest answers within a minute on two cores."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)


TRAINER = {"max_epochs": 1, "enable_progress_bar": False}


def irregular_frame(
    channels: tuple[str, ...] = ("HR",), num_items: int = 8, length: int = 20, seed: int = 0
) -> pd.DataFrame:
    """A long frame at whole seconds, two hours apart on average.

    With several channels, about a third of the values is missing, but never a whole row.
    Beside the channels stand ``dose`` (known in advance), ``lab`` (past only), ``age`` and
    ``ward`` (static).
    """
    random = np.random.default_rng(seed)
    parts = []
    for item in range(num_items):
        seconds = (1 + random.exponential(7200.0, length)).cumsum().astype(int)
        level = random.normal(80.0, 10.0, len(channels))
        waves = np.sin(seconds[:, None] / 20000.0 + np.arange(len(channels)))
        values = level + 5 * waves + random.normal(size=waves.shape)
        if len(channels) > 1:
            missing = random.random(values.shape) < 0.4
            missing[np.arange(length), random.integers(len(channels), size=length)] = False
            values[missing] = np.nan
        lab = np.where(random.random(length) < 0.5, np.nan, random.normal(size=length))
        parts.append(
            pd.DataFrame(
                {
                    "item_id": f"p{item}",
                    "timestamp": pd.Timestamp("2024-03-01") + pd.to_timedelta(seconds, unit="s"),
                    **dict(zip(channels, values.T, strict=True)),
                    "dose": random.normal(size=length),
                    "lab": lab,
                    "age": 50.0 + item,
                    "ward": "icu" if item % 2 else "er",
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def tiny_estimator(cls: type[IrregularEstimator], **options) -> IrregularEstimator:
    """An estimator that trains in a fraction of a second."""
    settings = {
        "prediction_length": 4,
        "context_length": 12,
        "hidden_size": 8,
        "batch_size": 8,
        "num_batches_per_epoch": 3,
        "seed": 0,
        "folds": 0,
        "supports": "real",
        "trainer_kwargs": dict(TRAINER),
    }
    return cls(**{**settings, **options})


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let files have so many bytes: beyond them, writing fails as on a full disk."""
    resource = pytest.importorskip("resource")
    limit, largest = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, largest))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, largest))


CHANNELS = ("HR", "MAP")
MULTIVARIATE = {
    "target": list(CHANNELS),
    "feat_dynamic_real": ["dose"],
    "past_feat_dynamic_real": ["lab"],
    "feat_static_real": ["age"],
    "feat_static_cat": ["ward"],
}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    """What one test was warned of is not left out in the next."""
    monkeypatch.setattr(errors, "_SAID", set())


@pytest.fixture(scope="session")
def make_frame():
    """`irregular_frame`, as a function."""
    return irregular_frame


@pytest.fixture(scope="session")
def make_estimator():
    """`tiny_estimator`, as a function."""
    return tiny_estimator


@pytest.fixture(scope="session")
def little_room():
    """`room_for`, as a function."""
    return room_for


@pytest.fixture(scope="session")
def roles() -> dict[str, list[str]]:
    """The roles of the columns of the multivariate frame."""
    return MULTIVARIATE


@pytest.fixture
def univariate_frame() -> pd.DataFrame:
    return irregular_frame()


@pytest.fixture
def multivariate_frame() -> pd.DataFrame:
    return irregular_frame(CHANNELS)


@pytest.fixture(scope="session")
def univariate() -> IrregularDataset:
    return IrregularDataset.from_long_dataframe(irregular_frame(), target="HR")


@pytest.fixture(scope="session")
def multivariate() -> IrregularDataset:
    return IrregularDataset.from_long_dataframe(irregular_frame(CHANNELS), **MULTIVARIATE)


@pytest.fixture(scope="session")
def datasets(univariate, multivariate) -> dict[str, IrregularDataset]:
    return {"univariate": univariate, "multivariate": multivariate}


@pytest.fixture(scope="session")
def trained(datasets):
    """A function ``(estimator class, kind of data) -> predictor`` that trains each pair once."""
    predictors = {}

    def get(cls: type[IrregularEstimator] | str, kind: str = "univariate"):
        cls = getattr(deltaflow, cls) if isinstance(cls, str) else cls
        if (cls, kind) not in predictors:
            predictors[cls, kind] = tiny_estimator(cls).train(datasets[kind])
        return predictors[cls, kind]

    return get


@pytest.fixture(scope="session")
def instances():
    """A function ``(data set, number of queries) -> entries`` that end with their queries."""

    def get(dataset: IrregularDataset, count: int = 4) -> list[dict]:
        from gluonts.dataset.split import split

        _, template = split(dataset, offset=-count)
        return list(template.generate_instances(count).input)

    return get
