"""Temporary changes of process-wide settings: warnings, logging and torch's threads."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LIGHTNING = logging.getLogger("lightning.pytorch.utilities.rank_zero")
"""The logger of Lightning's messages about devices and progress, and of its tips."""

ABOUT_LIBRARIES = (
    ".*LeafSpec.* is deprecated",  # Lightning
    "Total length of `list` across ranks is zero",  # Lightning, if there is nothing to validate
    "Using a non-tuple sequence for multidimensional indexing",  # GluonTS's DeepAR
)
"""Warnings about the code of the libraries, which a user cannot change."""

ABOUT_DATA = (
    ".*does not have many workers",  # windows are cut faster than they are read
    ".*your dataloader is not resumable",  # ours is
    "The number of training batches .* is smaller than the logging interval",
    "GPU available but not used",  # Apple's, which has no float64
    "The dirpath has changed",  # a resumed run continues in the folder of the first one
    "Checkpoint directory .* exists and is not empty",
)
"""Warnings about deliberate settings of deltaflow."""


def ignore_notes() -> None:
    """Ignore, from now on, `ABOUT_LIBRARIES` and Lightning's tips to install other products.

    They say nothing about the user's own code or data.
    """
    for message in ABOUT_LIBRARIES:
        warnings.filterwarnings("ignore", message)
    _LIGHTNING.addFilter(_is_not_a_tip)


@contextmanager
def fewer_warnings() -> Iterator[None]:
    """Ignore, inside the context, warnings about the libraries and about deltaflow's settings."""
    with warnings.catch_warnings():
        ignore_notes()
        for message in ABOUT_DATA:
            warnings.filterwarnings("ignore", message)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore, inside the context, these warnings and Lightning's messages below a warning."""
    level = _LIGHTNING.level
    _LIGHTNING.setLevel(max(logging.WARNING, _LIGHTNING.getEffectiveLevel()))
    try:
        with fewer_warnings():
            yield
    finally:
        _LIGHTNING.setLevel(level)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Make torch use ``count`` threads inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch use one thread inside the context, unless ``OMP_NUM_THREADS`` is set.

    Several threads hardly speed up small networks. They slow them down many times next to another
    busy process, or in a container with fewer processors than its host, where the threads wait for
    each other.
    """
    with threads(torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 1):
        yield


def _is_not_a_tip(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()
