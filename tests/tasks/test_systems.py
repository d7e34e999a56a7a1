import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from deltaflow.errors import UnknownNameError
from deltaflow.tasks import SYSTEMS, TASKS, WAVES, synthetic_task
from deltaflow.tasks.synthetic import SINK_MATRIX, SPAN, ellipse, lorenz, sink


def times(num_series: int, length: int, end: float) -> np.ndarray:
    return np.sort(np.random.default_rng(0).uniform(0, end, (num_series, length)), axis=1)


def test_sink_is_the_matrix_exponential():
    start = np.random.default_rng(1).normal(size=(3, 2))
    asked = times(3, 5, end=4.0)
    states = sink(start, asked)
    for series in range(3):
        for step in range(5):
            exact = expm(SINK_MATRIX * asked[series, step]) @ start[series]
            np.testing.assert_allclose(states[series, step], exact, rtol=1e-10, atol=1e-12)


def test_ellipse_keeps_its_invariant():
    start = np.random.default_rng(2).uniform(0.1, 1, size=(20, 2))
    states = ellipse(start, times(20, 50, end=40.0))
    first, second = np.moveaxis(states, -1, 0)
    energy = first - np.log(first) + 2 / 3 * (second - np.log(second))
    at_start = start[:, 0] - np.log(start[:, 0]) + 2 / 3 * (start[:, 1] - np.log(start[:, 1]))
    # The solver's tolerance is 1e-9 for the states; the logarithm magnifies it near 0.
    np.testing.assert_allclose(energy, np.tile(at_start[:, None], 50), atol=1e-5)


def test_lorenz_agrees_with_a_finer_solution():
    start = np.random.default_rng(3).normal(size=(4, 3)) + 10
    asked = times(4, 20, end=5.0)
    states = lorenz(start, asked)

    def field(_, state):
        x, y, z = state
        return 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z

    for series in range(4):
        exact = solve_ivp(
            field,
            (0, 5),
            start[series],
            t_eval=asked[series],
            method="DOP853",
            rtol=1e-13,
            atol=1e-13,
        ).y.T
        # Errors grow by e in 1.1 units of time: from 1e-9 by a factor of 100 in five units.
        np.testing.assert_allclose(states[series], exact, atol=1e-5)


@pytest.mark.parametrize("name", [*WAVES, *SYSTEMS])
def test_tests_ask_within_and_beyond_the_trained_lengths(name):
    task = TASKS[name](num_series=15, length=40)
    assert list(task.tests) == [name, f"{name}_beyond"]
    longest = max(entry["feat_dynamic_real"][0, -1] for entry in task.training)
    assert longest < SPAN
    for test, (low, high) in zip(task.tests.values(), ((0, 0.5), (1, 1.5)), strict=True):
        for entry, label in test:
            length = entry["target"].shape[-1]
            elapsed = entry["feat_dynamic_real"][0]
            assert elapsed[length - 1] < SPAN / 2
            asked = elapsed[length:][np.isfinite(elapsed[length:])] - SPAN / 2
            assert ((asked >= low * SPAN) & (asked < high * SPAN)).all()
            assert label["target"].shape[-1] == task.prediction_length


def test_parts_of_a_task_share_no_item():
    task = synthetic_task("sink", num_series=20, length=30)
    parts = [task.training, task.validation.input, *(test.input for test in task.tests.values())]
    names = [{entry["item_id"] for entry in part} for part in parts]
    assert [len(part) for part in names] == [12, 4, 4, 4]
    assert names[2] == names[3]
    assert not names[0] & (names[1] | names[2])
    assert not names[1] & names[2]


def test_seed_decides_a_task():
    targets = [
        np.concatenate([e["target"] for e in synthetic_task("sine", num_series=5, seed=s).training])
        for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(targets[0], targets[1])
    assert len(targets[0]) != len(targets[2]) or (targets[0] != targets[2]).any()


def test_unknown_task_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'sawtooth'"):
        synthetic_task("sawtoth")
