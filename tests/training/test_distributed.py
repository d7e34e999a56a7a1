"""Two processes train as one does: the same batches, losses and weights, no window twice."""

import os
import runpy
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).with_name("train_distributed.py")


@pytest.fixture(scope="module", params=["module", "estimator"])
def runs(request, tmp_path_factory) -> tuple[dict, list[dict]]:
    """What one process saw, and what each of two did, started as a user starts them."""
    directory = tmp_path_factory.mktemp(request.param)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory), request.param],
        cwd=directory,
        env=inherited,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    with torch.random.fork_rng():
        alone = runpy.run_path(str(SCRIPT))["train"](request.param, devices=1)
    both = [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return alone, both


@pytest.mark.parametrize("stage", ["training", "validation"])
def test_each_batch_is_split_without_repeats(stage, runs):
    alone, both = runs
    assert len(alone[stage]) == len(both[0][stage]) == len(both[1][stage])
    for whole, *shares in zip(alone[stage], both[0][stage], both[1][stage], strict=True):
        assert Counter(whole) == Counter(chain(*shares))
        assert 0 <= len(shares[0]) - len(shares[1]) <= 1
    assert [len(share[-1]) for share in (alone[stage], both[0][stage], both[1][stage])] in (
        [1, 1, 0],  # fewer windows than processes
        [5, 3, 2],  # random windows: every batch is full
    )


def test_sliding_windows_are_seen_once_per_epoch(runs):
    alone, both = runs
    if len(alone["training"]) == 8:
        pytest.skip("the estimator draws random windows")
    shares = list(zip(both[0]["training"], both[1]["training"], strict=True))
    epochs = [list(chain(*chain(*shares[i : i + 10]))) for i in (0, 10)]
    assert all(len(epoch) == len(set(epoch)) == 46 for epoch in epochs)
    assert set(epochs[0]) == set(epochs[1])
    assert epochs[0] != epochs[1]


def test_losses_and_weights_follow_a_single_process(runs):
    alone, both = runs
    # Sums in another order: a few roundings of float64, which training amplifies a little.
    mean = np.mean([rank["losses"] for rank in both], axis=0)
    np.testing.assert_allclose(mean, alone["losses"], rtol=1e-11)
    for rank in both:
        np.testing.assert_allclose(rank["logged"], alone["losses"], rtol=1e-11)
        for step, (one, other) in enumerate(zip(alone["weights"], rank["weights"], strict=True)):
            for left, right in zip(one, other, strict=True):
                torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-11, msg=f"step {step}")


def test_validation_loss_is_that_of_a_single_process(runs):
    alone, both = runs
    for rank in both:
        np.testing.assert_allclose(
            rank["validation_losses"], alone["validation_losses"], rtol=1e-11
        )


def test_all_processes_end_with_the_same_model(runs):
    alone, both = runs
    for one, *others in zip(*(run["final_weights"] for run in (alone, *both)), strict=True):
        for other in others:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_scores_of_a_task_are_those_of_a_single_process(runs):
    alone, both = runs
    if alone["judged"] is None:
        pytest.skip("the estimator learns from data sets, not from tasks")
    assert {"val_mse", "val_mae[HR]"} <= set(alone["judged"][0])
    assert {"test_loss", "test_coverage_80[Urine]"} <= set(alone["judged"][1])
    for rank in both:
        for mine, expected in zip(rank["judged"], alone["judged"], strict=True):
            assert mine == pytest.approx(expected, rel=1e-11)


def test_statistics_are_those_of_the_whole_training_set(runs):
    alone, both = runs
    assert alone["statistics"] == both[0]["statistics"] == both[1]["statistics"]
