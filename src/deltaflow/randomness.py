"""Seeds, and random numbers that leave the caller's random state alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch

from deltaflow.errors import DeltaflowError

_ONE_AT_A_TIME = RLock()
"""Torch's random state is shared by all threads."""


def check_seed(seed: int | None) -> None:
    """Raise unless torch, NumPy and Lightning all take a seed.

    >>> check_seed(-1)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    DeltaflowError: seed must lie between 0 and 4294967295, got -1
    """
    if seed is not None and not 0 <= seed < 2**32:
        raise DeltaflowError(f"seed must lie between 0 and {2**32 - 1}, got {seed}")


def derived_seed(seed: int, *part: int) -> int:
    """Return the seed of one part of what ``seed`` stands for, such as one batch of an epoch.

    The seeds of different parts, and of parts of parts, are independent: none is close to another
    seed that a user would choose.

    >>> derived_seed(0, 1) == derived_seed(1, 0)
    False
    """
    sequence = np.random.SeedSequence(seed, spawn_key=part)
    return int(sequence.generate_state(1)[0])


@contextmanager
def seeded(seed: int | None, device: str | torch.device = "cpu") -> Iterator[None]:
    """Seed torch inside, on the CPU and on ``device``, and restore its random state afterwards.

    If ``seed`` is None, torch's random state is used, and moves on.
    """
    if seed is None:
        yield
        return
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
