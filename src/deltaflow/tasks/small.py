"""Small real data sets of six to eighty short series, the size that most users have.

The data are not shipped. Each set is a file with a row per item and time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from deltaflow.data import IrregularDataset
from deltaflow.errors import DataError, check_registered
from deltaflow.tasks.task import Task, last_rows


@dataclass(frozen=True)
class SmallSet:
    """A small set: the columns of its file, and how many values of each item are held out.

    Attributes
    ----------
    file
        Name of the file, with the columns ``item_id`` and ``time``.
    target
        Column of the values to forecast.
    held_out
        The number of last values of each item that are forecast.
    time_unit
        Unit of the times. Years and cycles, whose length varies, count as days.
    feat_static_real, feat_static_cat
        Columns that are constant per item: numbers and categories.
    kept
        Share of the rows that are kept, chosen at random.
    """

    file: str
    target: str
    held_out: int
    time_unit: str
    feat_static_real: tuple[str, ...] = ()
    feat_static_cat: tuple[str, ...] = ()
    kept: float = 1.0


SMALL_SETS = {
    "theophylline": SmallSet("theophylline.csv", "conc", 3, "h", feat_static_real=("Wt", "Dose")),
    "indomethacin": SmallSet("indomethacin.csv", "conc", 3, "h"),
    "oxboys": SmallSet("oxboys.csv", "height", 2, "D"),
    "soybean": SmallSet("soybean.csv", "weight", 2, "D", feat_static_cat=("Variety", "Year")),
    "milk": SmallSet("milk.csv", "protein", 4, "W", feat_static_cat=("Diet",)),
    "chick_weight": SmallSet("chick_weight.csv", "weight", 3, "D", feat_static_cat=("Diet",)),
    "ovary": SmallSet("ovary.csv", "follicles", 6, "D"),
    "orthodont": SmallSet("orthodont.csv", "distance", 1, "D", feat_static_cat=("Sex",)),
    "cgm": SmallSet("cgm.csv.gz", "glucose", 24, "min", feat_static_cat=("diagnosis",), kept=0.5),
}
"""Every set by its name.

References
----------
Boeckmann, Sheiner & Beal 1994 (theophylline); Kwan et al. 1976 (indomethacin); Goldstein 1987
(oxboys); Davidian & Giltinan 1995 (soybean); Diggle, Liang & Zeger 1994 (milk); Crowder & Hand 1990
(chick_weight); Pierson & Ginther 1987 (ovary); Potthoff & Roy 1964 (orthodont); Hall et al. 2018
(cgm). All but the last are data sets of R and its package nlme.
"""


def small_set(name: str, path: str | Path) -> IrregularDataset:
    """Read a small set from its file in a folder.

    Parameters
    ----------
    name
        Name of the set in `SMALL_SETS`.
    path
        Folder of the files.

    Raises
    ------
    DataError
        If the folder does not contain the file, or the file lacks a column.
    """
    check_registered("small set", name, SMALL_SETS)
    about = SMALL_SETS[name]
    file = Path(path, about.file)
    if not file.is_file():
        raise DataError(
            f"there is no file {str(file)!r}",
            "give the folder of the small sets as the option path",
            field="path",
        )
    frame = pd.read_csv(file, dtype={"item_id": str, **dict.fromkeys(about.feat_static_cat, str)})
    if "time" in frame and not pd.api.types.is_numeric_dtype(frame["time"]):
        frame["time"] = pd.to_datetime(frame["time"])
    if about.kept < 1:
        frame = frame[np.random.default_rng(0).random(len(frame)) < about.kept]
    return IrregularDataset.from_long_dataframe(
        frame,
        timestamp="time",
        target=about.target,
        time_unit=about.time_unit,
        feat_static_real=about.feat_static_real,
        feat_static_cat=about.feat_static_cat,
    )


def small_task(name: str, path: str | Path) -> Task:
    """Return the task to forecast the last values of every item of a set, see `last_rows`.

    Parameters
    ----------
    name, path
        See `small_set`.
    """
    return last_rows(name, small_set(name, path), SMALL_SETS[name].held_out)
