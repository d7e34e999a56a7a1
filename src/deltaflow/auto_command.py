"""The command `deltaflow auto`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from deltaflow.process import one_thread
from deltaflow.tables import as_rich
from deltaflow.tasks.datasets import Columns, read_dataset
from deltaflow.training.auto import PRESETS, AutoEstimator

SHOWN = ["loss", "seconds", "chosen", "encoder", "hidden_size", "dropout", "lr"]
"""The columns of the leaderboard that fit into a terminal."""


@one_thread()
def main(options: Sequence[str]) -> int:
    """Search for the options that suit the series of a file, and save the predictor."""
    parser = argparse.ArgumentParser(
        prog="deltaflow auto",
        description="Search for the options that suit the series of a file, within a time limit, "
        "and save the blend of the best networks. Ctrl-C ends it and keeps the best so far.",
    )
    parser.add_argument("file", type=Path, help="CSV or Parquet file, a row per item and time")
    parser.add_argument("--prediction_length", type=int, required=True, help="queries per forecast")
    parser.add_argument("--time_limit", type=float, help="seconds; by default that of the preset")
    parser.add_argument(
        "--presets",
        choices=PRESETS,
        default="good",
        help="how thorough the search is (%(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("predictor"),
        help="directory of the predictor (%(default)s)",
    )
    parser.add_argument("--seed", type=int, help="seed of the search")
    parser.add_argument(
        "--item_id", default="item_id", help="column of item identifiers (%(default)s)"
    )
    parser.add_argument("--timestamp", default="timestamp", help="column of times (%(default)s)")
    parser.add_argument(
        "--target", nargs="+", default=["target"], help="columns to forecast (target)"
    )
    parser.add_argument("--time_unit", default="h", help="unit of elapsed numbers (%(default)s)")
    for role, what in (
        ("feat_dynamic_real", "covariates known in advance"),
        ("past_feat_dynamic_real", "covariates known for the past only"),
        ("feat_static_real", "numbers that are constant per item"),
        ("feat_static_cat", "categories that are constant per item"),
    ):
        parser.add_argument(f"--{role}", nargs="*", default=[], help=f"columns of {what}")
    given = parser.parse_args(options)
    columns = Columns(**{name: getattr(given, name) for name in vars(Columns())})
    data = read_dataset(given.file, columns)
    estimator = AutoEstimator(
        given.prediction_length, time_limit=given.time_limit, presets=given.presets, seed=given.seed
    )
    predictor = estimator.train(data)
    predictor.serialize(given.output)
    console = Console()
    table = predictor.leaderboard[SHOWN].head(20)
    numbers = table.select_dtypes("float").map("{:.3g}".format)
    console.print(as_rich(table.assign(**numbers).astype(str)))
    console.print(f"Saved in {given.output}: deltaflow.load_predictor reads it.", soft_wrap=True)
    return 0
