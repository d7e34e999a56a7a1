"""What the figures of a comparison show of its runs."""

import numpy as np
import pandas as pd
import pytest

from deltaflow.compare import figures
from deltaflow.compare.table import COLUMNS


def run(encoder: str, past: list[list[float]], future: list[list[float]], **options) -> dict:
    """A run whose only test has one example, ``(D, T)`` read and ``(D, Q)`` measured later."""
    flat = np.zeros_like(future).tolist()
    example = {
        "item": "p1",
        "channels": [f"c{number}" for number in range(len(past))],
        "time_unit": "h",
        "past_times": list(range(len(past[0]))),
        "past": past,
        "times": [10 + query for query in range(len(future[0]))],
        "future": future,
        **dict.fromkeys(["low", "median", "high"], flat),
    }
    return {"encoder": encoder, "dataset": "d", "examples": {"test": [example]}, **options}


def titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_the_channels_drawn_are_those_measured_most_before_and_after():
    nan = np.nan
    past = [[1.0, 2, 3], [nan, nan, 3], [1, 2, 3], [nan, 2, 3], [1, 2, 3], [nan, nan, nan]]
    future = [[nan, nan], [1, 2], [1, 2], [nan, 2], [nan, 2], [1, 2]]
    figure = figures.forecasts([run("a", past, future), run("b", past, future)], "test")
    assert titles(figure) == ["p1 · c2", "p1 · c1", "p1 · c3", "p1 · c4"]
    assert [axes.get_ylabel() for axes in figure.axes[::4]] == ["a", "b"]
    read = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    np.testing.assert_array_equal(read["past"], [3.0])
    np.testing.assert_array_equal(read["actual"], future[1])


def test_each_encoder_is_drawn_once_from_its_first_seed():
    first, second = run("a", [[1.0]], [[2.0]]), run("a", [[3.0]], [[4.0]])
    figure = figures.forecasts([first, second], "test")
    (axes,) = figure.axes
    assert [line.get_ydata()[0] for line in axes.lines] == [0, 1, 2]


@pytest.mark.parametrize("examples", [{}, {"test": []}, {"another": [{}]}])
def test_a_test_without_examples_has_no_figure(examples):
    assert figures.forecasts([{"encoder": "a", "examples": examples}], "test") is None


def test_calibration_is_what_is_covered_beyond_the_nominal_share():
    covered = {"coverage_50": 0.53, "coverage_80": 0.79, "coverage_95": 0.95}
    scores = pd.DataFrame(
        [("d", "gru", seed, name, value + (-1) ** seed / 100)
         for name, value in covered.items() for seed in (0, 1)],
        columns=COLUMNS,
    )  # fmt: skip
    *intervals, _ = figures.calibration(scores, "d").axes[0].lines
    assert [line.get_xdata()[0] for line in intervals] == pytest.approx([3, -1, 0], abs=1e-9)
    assert figures.calibration(scores, "another") is None
