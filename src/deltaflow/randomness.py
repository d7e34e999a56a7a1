"""Seeds, and random draws that do not disturb the caller's random state."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from numbers import Integral
from threading import RLock
from typing import overload
from zlib import crc32

import numpy as np
import torch

from deltaflow.errors import DeltaflowError

ONE_AT_A_TIME = RLock()
"""All threads share torch's random state, so only one at a time may replace it."""

_ONE_RUN = RLock()
"""Held by the thread whose seeded run goes on; only `seeded` draws may come in between."""


def check_seed(seed: int | None) -> None:
    """Raise an error unless torch, NumPy and Lightning all accept the seed.

    >>> check_seed(-1)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    DeltaflowError: seed must lie between 0 and 4294967295, got -1
    """
    if seed is not None and not isinstance(seed, Integral):
        raise DeltaflowError(f"seed must be a whole number, got {seed!r}")
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


class ItemSeeds:
    """The seeds of the items of one call, which depend neither on other items nor on their order.

    Items with the same name and origin get different seeds, in the order in which they come.

    >>> seeds, others = ItemSeeds(0), ItemSeeds(0)
    >>> others.of("b", 3) == seeds.of("b", 3)
    True
    >>> others.of("b", 3) == seeds.of("a", 3)
    False
    """

    def __init__(self, seed: int | None) -> None:
        self._seed, self._met = seed, Counter[int]()

    def of(self, item_id: str | None, origin: object) -> int | None:
        """Return the seed of an item's forecast from one origin; None if the call has no seed."""
        if self._seed is None:
            return None
        key = crc32(f"{item_id} {origin}".encode())
        self._met[key] += 1
        return derived_seed(self._seed, key, self._met[key])


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
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=devices):
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
    torch's. Threads share these states, so their seeded runs take turns.
    """
    if seed is None:
        yield int(torch.randint(2**31, ()))
        return
    forked = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
    with _ONE_RUN, ExitStack() as ends:
        with ONE_AT_A_TIME:  # the end of another thread's draws would undo the seed
            states = random.getstate(), np.random.get_state()  # noqa: NPY002
            ends.enter_context(forked)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
        try:
            yield seed
        finally:
            with ONE_AT_A_TIME:
                ends.close()
                random.setstate(states[0])
                np.random.set_state(states[1])  # noqa: NPY002
