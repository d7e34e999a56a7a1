"""What holds for the whole process while something runs: what is not warned of, torch's threads."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LIGHTNING = logging.getLogger("lightning.pytorch.utilities.rank_zero")
"""What Lightning tells by."""

ABOUT_LIBRARIES = (
    ".*LeafSpec.* is deprecated",  # Lightning
    "Total length of `list` across ranks is zero",  # Lightning, if there is nothing to validate
    "Using a non-tuple sequence for multidimensional indexing",  # GluonTS's DeepAR
)
"""Warnings about how the libraries are written, which a user can do nothing about."""

ABOUT_DATA = (
    ".*does not have many workers",  # windows are cut faster than they are read
    ".*your dataloader is not resumable",  # ours is
    "The number of training batches .* is smaller than the logging interval",
    "The dirpath has changed",  # a run that is resumed goes on in the folder of the first
    "Checkpoint directory .* exists and is not empty",
)
"""Warnings about settings of ours that are meant as they are."""


def ignore_notes() -> None:
    """Ignore, from now on, what says nothing about a user's own code or data.

    These are `ABOUT_LIBRARIES`, and the tips to install other products.
    """
    for message in ABOUT_LIBRARIES:
        warnings.filterwarnings("ignore", message)
    _LIGHTNING.addFilter(_is_no_tip)


@contextmanager
def fewer_warnings() -> Iterator[None]:
    """Leave out, inside, what Lightning says about settings that are meant as they are."""
    with warnings.catch_warnings():
        ignore_notes()
        for message in ABOUT_DATA:
            warnings.filterwarnings("ignore", message)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out, inside, these warnings, and what Lightning tells of devices and progress."""
    level = _LIGHTNING.level
    _LIGHTNING.setLevel(max(logging.WARNING, _LIGHTNING.getEffectiveLevel()))
    try:
        with fewer_warnings():
            yield
    finally:
        _LIGHTNING.setLevel(level)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()
