"""Seeds, and random draws that do not disturb the caller's random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import overload

import numpy as np
import torch

from deltaflow.errors import DeltaflowError

_ONE_AT_A_TIME = RLock()
"""All threads share torch's random state, so only one at a time may replace it."""


def check_seed(seed: int | None) -> None:
    """Raise an error unless torch, NumPy and Lightning all accept the seed.

    >>> check_seed(-1)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    DeltaflowError: seed must lie between 0 and 4294967295, got -1
    """
    if seed is not None and not 0 <= seed < 2**32:
        raise DeltaflowError(f"seed must lie between 0 and {2**32 - 1}, got {seed}")


@overload
def derived_seed(seed: int, *part: int) -> int: ...
@overload
def derived_seed(seed: int | None, *part: int) -> int | None: ...
def derived_seed(seed, *part):
    """Return the seed of one part of a seeded computation, such as one batch of an epoch.

    The numbers in ``part`` identify it: ``(epoch, batch)``, for example. Different parts get
    independent seeds, which are also independent of those that a user is likely to choose. None
    stays None.

    >>> derived_seed(0, 1) == derived_seed(1, 0)
    False
    """
    if seed is None:
        return None
    sequence = np.random.SeedSequence(seed, spawn_key=part)
    return int(sequence.generate_state(1)[0])


@contextmanager
def seeded(seed: int | None, device: str | torch.device = "cpu") -> Iterator[None]:
    """Seed torch inside the context, on the CPU and ``device``, and restore its state afterwards.

    If ``seed`` is None, torch's random state is neither seeded nor restored.
    """
    if seed is None:
        yield
        return
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=devices):
        if device.type == "cpu":
            # torch.manual_seed would prepare the seeds of all other devices, which takes longer
            # than anything else here.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        yield


@contextmanager
def seeded_run(seed: int | None) -> Iterator[int]:
    """Seed Python, NumPy and torch inside, on all devices, and restore their states afterwards.

    Yields the seed. If it is None, all random states are used and advanced; the seed is drawn from
    torch's.
    """
    if seed is None:
        yield int(torch.randint(2**31, ()))
        return
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield seed
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
