import numpy as np
import pandas as pd
import pytest

from deltaflow.errors import DataError, DeltaflowError
from deltaflow.tasks import load_task, physiome_ode_task
from deltaflow.tasks.physiome_ode import (
    NOISE,
    Trajectories,
    joint_gradient_deviation,
    observed_values,
    read_trajectories,
)

NUM_SERIES, NUM_TIMES, NUM_CHANNELS = 40, 31, 12


@pytest.fixture
def trajectories():
    """Sines whose frequency and size differ between series; the last two channels hardly change."""
    random = np.random.default_rng(0)
    times = np.linspace(0, 6, NUM_TIMES)
    speed = np.linspace(3, 0.1, NUM_CHANNELS) * random.uniform(0.5, 1.5, (NUM_SERIES, 1))
    values = np.sin(speed[:, None, :] * times[:, None]) + 5
    return Trajectories(values, times, joint_gradient_deviation(values))


@pytest.fixture
def folder(tmp_path, trajectories):
    values, times, scores = trajectories
    np.savez(tmp_path / "sines.npz", x=values, t=times, scores=scores)
    (tmp_path / "files").mkdir()
    columns = [f"v{channel}" for channel in range(NUM_CHANNELS)]
    for number, own in enumerate(values):
        frame = pd.DataFrame(own, columns=columns).assign(t=times)
        frame.to_parquet(tmp_path / "files" / f"ts-data-{number}.parquet")
    return tmp_path


def test_archive_and_files_hold_the_same(folder):
    archive, files = read_trajectories("sines", folder), read_trajectories("files", folder)
    for one, other in zip(archive, files, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_values_are_standardised_noisy_and_a_fifth_of_them_is_kept(trajectories):
    values = observed_values(trajectories, np.random.default_rng(3))
    order = np.random.default_rng(3).permutation(NUM_SERIES)
    clean = trajectories.states[order]
    clean = (clean - clean.mean((0, 1))) / clean.std((0, 1))
    late = trajectories.times > 3
    hard = np.argsort(trajectories.scores)[2:]
    observed = np.isfinite(values)
    assert observed[:, ~late].mean() == pytest.approx(0.2, abs=0.02)
    assert observed[:, late][..., hard].mean() == pytest.approx(0.2, abs=0.02)
    assert (values - clean)[observed].std() == pytest.approx(NOISE, rel=0.1)


def test_channels_of_low_scores_are_not_forecast(trajectories):
    values = observed_values(trajectories, np.random.default_rng(0))
    asked = np.isfinite(values[:, trajectories.times > 3]).any((0, 1))
    np.testing.assert_array_equal(
        np.flatnonzero(~asked), np.sort(np.argsort(trajectories.scores)[:2])
    )


def test_series_far_from_all_others_are_left_out(trajectories):
    values = trajectories.states.copy()
    values[7, 3, 0] = 1e4
    kept = observed_values(trajectories._replace(states=values), np.random.default_rng(0))
    assert len(kept) == NUM_SERIES - 1


def test_the_second_half_of_unseen_series_is_forecast(folder, trajectories):
    task = load_task("physiome_ode:sines:1", {"path": str(folder)})
    (test,) = task.tests.values()
    items = [
        {entry["item_id"] for entry in part}
        for part in (task.training, task.validation.input, test.input)
    ]
    assert [len(part) for part in items] == [28, 8, 4]
    assert not set.intersection(*items)
    values = observed_values(trajectories, np.random.default_rng(1))
    for past, label in test:
        own = values[int(past["item_id"])]
        rows = np.isfinite(own).any(1)
        times = trajectories.times / 6
        early, late = own[rows & (times <= 0.5)], own[rows & (times > 0.5)]
        np.testing.assert_array_equal(past["target"].T, early)
        np.testing.assert_array_equal(label["target"].T[: len(late)], late)
        assert np.isnan(label["target"].T[len(late) :]).all()


def test_folds_differ_and_can_be_drawn_again(folder):
    tasks = [physiome_ode_task("sines", folder, fold=fold) for fold in (0, 0, 1)]
    first, again, other = (np.concatenate([e["target"].ravel() for e in t.training]) for t in tasks)
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or not np.array_equal(first, other, equal_nan=True)


def test_what_is_missing_is_named(folder):
    with pytest.raises(DataError, match=r"there is neither .*nothing\.npz"):
        load_task("physiome_ode:nothing", {"path": str(folder)})
    with pytest.raises(DeltaflowError, match="fold of 'physiome_ode:sines:one' is a number from 0"):
        load_task("physiome_ode:sines:one", {"path": str(folder)})
    with pytest.raises(DeltaflowError, match=r"dataset_kwargs of 'physiome_ode:sines'.*path"):
        load_task("physiome_ode:sines")


def test_trajectories_of_other_times_are_refused(folder):
    file = folder / "files" / "ts-data-5.parquet"
    pd.read_parquet(file).assign(t=lambda frame: 2 * frame["t"]).to_parquet(file)
    with pytest.raises(DataError, match=r"ts-data-5\.parquet has other times or variables"):
        read_trajectories("files", folder)


def test_evenly_changing_variables_score_zero():
    times = np.linspace(0, 1, 9)[None, :, None]
    same_wave = np.repeat(np.sin(9 * times), 5, axis=0)
    lines = np.arange(1, 6)[:, None, None] * times
    scores = joint_gradient_deviation(np.concatenate([same_wave, lines], axis=2))
    np.testing.assert_allclose(scores, 0, atol=1e-12)
