"""The shipped sample of real data: vital signs of 300 intensive-care stays."""

from importlib import resources

import pandas as pd

from deltaflow.data import IrregularDataset, TimeSplitter
from deltaflow.tasks.task import Task, unseen_items

VITALS = {
    "HR": "beats/min",
    "SysABP": "mmHg",
    "DiasABP": "mmHg",
    "MAP": "mmHg",
    "NISysABP": "mmHg",
    "NIDiasABP": "mmHg",
    "Temp": "°C",
    "Urine": "mL",
    "GCS": "points",
}
"""Channels of :func:`clinical_sample` and their units, under the names of the source: heart rate;
arterial blood pressure, systolic, diastolic and mean; the same by cuff ("non-invasive"), systolic
and diastolic; body temperature; urine output; Glasgow Coma Score."""


def clinical_sample() -> pd.DataFrame:
    """Return the first 48 hours of 300 intensive-care stays, each vital sign as it was measured.

    One row per stay and time, sorted by both; about 59 rows per stay at uneven gaps, and half of
    the values present. Every stay has ten rows or more on each side of hour 24.

    =========  =======  ====================================================================
    column     dtype    content
    =========  =======  ====================================================================
    `patient`  int64    record number of the stay
    `minutes`  int64    time since admission, from 0 to 2880
    `age`      float64  years
    `gender`   str      "female", "male" or "unknown"
    `icu`      str      "coronary", "cardiac surgery", "medical", "surgical" or "unknown"
    `VITALS`   float64  one column per channel, NaN where it was not measured at that time
    =========  =======  ====================================================================

    The data come from the PhysioNet/CinC Challenge 2012 under ODC-By 1.0; attribution and changes
    are listed in `clinical_sample/LICENSE.md` beside this module.

    References
    ----------
    Predicting in-hospital mortality of ICU patients: The PhysioNet/Computing in Cardiology
    Challenge 2012 (Silva et al., 2012)
    https://physionet.org/content/challenge-2012/1.0.0/
    PhysioBank, PhysioToolkit, and PhysioNet (Goldberger et al., 2000)

    Examples
    --------
    >>> sample = clinical_sample()
    >>> sample["patient"].nunique()
    300
    >>> sample[["minutes", "gender", "HR", "Temp"]].head(3)
       minutes gender    HR  Temp
    0       73   male   NaN   NaN
    1       78   male  73.0  34.7
    2       83   male  84.0  34.7
    """
    path = resources.files("deltaflow.tasks") / "clinical_sample" / "vitals.csv.gz"
    with path.open("rb") as file:
        return pd.read_csv(file, compression="gzip", dtype=dict.fromkeys(["age", *VITALS], float))


def clinical_dataset() -> IrregularDataset:
    """Return the clinical sample as a data set: a channel per vital sign, an item per stay."""
    return IrregularDataset.from_long_dataframe(
        clinical_sample(),
        item_id="patient",
        timestamp="minutes",
        time_unit="min",
        target=list(VITALS),
        feat_static_real=["age"],
        feat_static_cat=["gender", "icu"],
    )


def clinical_task(seed: int = 0) -> Task:
    """Return the task to forecast hours 24 to 48 of unseen patients from the hours before.

    A fifth of the patients are for the test, and a fifth of the others for validation.

    Parameters
    ----------
    seed
        Seed of the random choice of patients.
    """
    splitter = TimeSplitter(after="24h", horizon="24h")
    return unseen_items("clinical_sample", clinical_dataset(), splitter, seed=seed)
