"""Seeds: parts have seeds of their own, and whoever is seeded leaves no trace."""

import random

import numpy as np
import pytest
import torch

from deltaflow import DeltaflowError
from deltaflow.randomness import check_seed, derived_seed, seeded, seeded_run


def states() -> tuple:
    numpy = np.random.get_state()  # noqa: NPY002
    return random.getstate(), numpy[1].tobytes(), numpy[2:], torch.get_rng_state().numpy().tobytes()


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002


def test_a_seeded_run_repeats_itself_and_leaves_no_trace():
    before = states()
    drawn = []
    for seed in (3, 3, 4):
        with seeded_run(seed) as used:
            assert used == seed
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])
    with pytest.raises(ZeroDivisionError), seeded_run(3):
        draw()[0] / 0
    assert states() == before


def test_a_seed_means_what_it_means_to_torch():
    with seeded(3):
        drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))


def test_without_a_seed_a_run_follows_the_random_state():
    with seeded(7), seeded_run(None) as one:
        first = float(torch.rand(()))
    with seeded(7), seeded_run(None) as other:
        assert (other, float(torch.rand(()))) == (one, first)


def test_parts_and_parts_of_parts_have_seeds_of_their_own():
    seeds = [0, 1, 2**32 - 1]
    parts = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    derived = [derived_seed(seed, *part) for seed in seeds for part in parts]
    derived += [derived_seed(derived_seed(0, 0), 0), *seeds]
    assert len(set(derived)) == len(derived)
    for seed in derived:
        check_seed(seed)
    with pytest.raises(DeltaflowError, match="seed must lie between 0 and 4294967295, got -1"):
        check_seed(-1)
    for seed in (1.5, "a"):
        with pytest.raises(DeltaflowError, match="seed must be a whole number"):
            check_seed(seed)
