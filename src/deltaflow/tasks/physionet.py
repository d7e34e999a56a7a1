"""PhysioNet/CinC Challenge 2012: intensive-care stays, with every value at its measurement time.

The data are not shipped. Download `set-a.tar.gz`, `set-b.tar.gz` and `set-c.tar.gz` from
https://physionet.org/content/challenge-2012/1.0.0/ (ODC-By 1.0) into one folder.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry

from deltaflow.data import IrregularDataset, TimeSplitter
from deltaflow.errors import DataError
from deltaflow.saving import replacing_file
from deltaflow.tasks.task import Task, task_after

DESCRIPTORS = ("Age", "Gender", "Height", "ICUType", "Weight")
"""Parameters recorded at 00:00, -1 if unknown. Their values are years, 0 for female or 1 for male,
cm, a type from 1 to 4, and kg."""

# fmt: off
PARAMETERS = (
    *DESCRIPTORS,
    "Albumin", "ALP", "ALT", "AST", "Bilirubin", "BUN", "Cholesterol", "Creatinine", "DiasABP",
    "FiO2", "GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "Mg", "MAP", "MechVent", "Na",
    "NIDiasABP", "NIMAP", "NISysABP", "PaCO2", "PaO2", "pH", "Platelets", "RespRate", "SaO2",
    "SysABP", "Temp", "TroponinI", "TroponinT", "Urine", "WBC",
)
# fmt: on
"""The 41 parameters, in the order of the challenge's description."""


def read_physionet2012(
    path: str | Path, sets: Sequence[str] = ("a", "b"), cache: str | Path | None = None
) -> pd.DataFrame:
    """Read sets of records in the official text format.

    Several values of one parameter at the same time are averaged. Otherwise, values and times are
    not changed. A record that does not begin at 00:00 gets an empty first row there.

    Parameters
    ----------
    path
        Folder that holds the sets, each as `set-a.tar.gz` or as a folder `set-a` of text files.
    sets
        Names of the sets to read.
    cache
        Folder for a copy of each set, so that its text files are read only once. None for no copy.

    Returns
    -------
    pandas.DataFrame
        A row per record and time, sorted by set, record and time. The columns are `record` (int64),
        `minutes` since admission (int64), and the 41 `PARAMETERS` (float64, NaN where not
        measured).

    Raises
    ------
    DataError
        If a set is not in the folder, or holds no records.

    References
    ----------
    Silva et al., *Predicting in-hospital mortality of ICU patients: The PhysioNet/Computing in
    Cardiology Challenge 2012*, 2012.
    """
    return pd.concat([_read_set(Path(path), name, cache) for name in sets], ignore_index=True)


def physionet2012(
    path: str | Path, sets: Sequence[str] = ("a", "b"), cache: str | Path | None = None
) -> IrregularDataset:
    """Return :func:`read_physionet2012` as a data set: an item per record, a channel per parameter.

    A parameter that was never measured in these sets is left out.

    Parameters
    ----------
    path, sets, cache
        See :func:`read_physionet2012`.
    """
    frame = read_physionet2012(path, sets, cache)
    return IrregularDataset.from_long_dataframe(
        frame,
        item_id="record",
        timestamp="minutes",
        target=[name for name in PARAMETERS if frame[name].notna().any()],
        time_unit="min",
    )


def physionet2012_task(
    path: str | Path, sets: Sequence[str] = ("a", "b"), cache: str | Path | None = None
) -> Task:
    """Return the forecasting task of the literature: hours 24 to 48 from the hours before.

    Records are split into 60 % training, 20 % validation and 20 % test by :func:`split_records`.
    Errors of a parameter are divided by its range over the training and validation records, so that
    their averages over channels can be compared with the literature.

    Parameters
    ----------
    path, sets, cache
        See :func:`read_physionet2012`.

    References
    ----------
    Zhang et al., *Irregular Multivariate Time Series Forecasting: A Transformable Patching Graph
    Neural Networks Approach*, 2024.
    """
    data = physionet2012(path, sets, cache)
    training, validation, test = (data.select(part) for part in split_records(len(data)))
    splitter = TimeSplitter(after="24h")
    # A training window of one day must also have room for its queries, wherever it begins.
    length = max(splitter.prediction_length(data), *map(_most_in_a_day, data))
    seen = [*training, *validation]
    low = np.fmin.reduce([np.fmin.reduce(entry["target"], axis=1) for entry in seen])
    high = np.fmax.reduce([np.fmax.reduce(entry["target"], axis=1) for entry in seen])
    name, scale = "physionet2012", np.where(high > low, high - low, 1.0)
    return task_after(name, splitter, training, validation, {name: test}, length, scale)


def _most_in_a_day(entry: DataEntry) -> int:
    """Return the largest number of times in 24 hours of a record."""
    minutes = entry["feat_dynamic_real"][0]
    ends = np.searchsorted(minutes, minutes + 24 * 60, side="right")
    return int((ends - np.arange(len(minutes))).max())


def split_records(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split records 0 … count - 1 into training, validation and test, as the literature does.

    The split is that of scikit-learn's `train_test_split(records, train_size=0.8, random_state=42)`
    into seen and test. The first three quarters of the seen records, in that order, are for
    training.

    >>> [len(part) for part in split_records(8000)]
    [4800, 1600, 1600]
    """
    order = np.random.RandomState(42).permutation(count)
    tested = count - int(0.8 * count)
    test, seen = order[:tested], order[tested:]
    training = int(0.75 * len(seen))
    return seen[:training], seen[training:], test


def _read_set(folder: Path, name: str, cache: str | Path | None) -> pd.DataFrame:
    """Read one set, or its copy in the cache."""
    places = [folder / f"set-{name}{suffix}" for suffix in (".tar.gz", ".tar", "")]
    source = next((place for place in places if place.exists()), None)
    if source is None:
        raise DataError(
            f"{folder} does not contain set {name!r}",
            f"download set-{name}.tar.gz from physionet.org/content/challenge-2012 into it",
            field="sets",
        )
    if cache is None:
        return _parsed(_records(source))
    stat = source.stat()
    about = f"{source.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    digest = hashlib.sha256(about.encode()).hexdigest()[:12]
    kept = Path(cache) / f"physionet2012-{name}-{digest}-table.npz"
    if not kept.exists():
        with replacing_file(kept) as file:
            np.savez_compressed(file, _parsed(_records(source)).to_numpy())
    with np.load(kept) as arrays:
        frame = pd.DataFrame(arrays["arr_0"], columns=["record", "minutes", *PARAMETERS])
    return frame.astype({"record": "int64", "minutes": "int64"})


def _records(source: Path) -> Iterator[tuple[int, bytes]]:
    """Yield record number and text of each file of a set, in no particular order."""
    if source.is_dir():
        for file in source.glob("*.txt"):
            yield int(file.stem), file.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and member.name.endswith(".txt"):
                yield int(Path(member.name).stem), file.read()


def _parsed(records: Iterator[tuple[int, bytes]]) -> pd.DataFrame:
    """Parse the texts of a set together, and average values of the same time."""
    texts = {number: text.partition(b"\n")[2].strip() + b"\n" for number, text in sorted(records)}
    if not texts:
        raise DataError("the set has no records", "unpack it again: files are named 132539.txt",
                        field="sets")  # fmt: skip
    rows = pd.read_csv(
        io.BytesIO(b"".join(texts.values())),
        names=["time", "parameter", "value"],
        dtype={"time": "category", "parameter": "category", "value": float},
    )
    clock = rows["time"].cat.categories.to_series().str.split(":", expand=True).astype(int)
    rows["minutes"] = (60 * clock[0] + clock[1]).to_numpy()[rows["time"].cat.codes]
    rows["record"] = np.repeat([*texts], [text.count(b"\n") for text in texts.values()])
    keys = ["record", "minutes", "parameter"]
    measured = rows.groupby(keys, observed=True)["value"].mean().unstack("parameter")
    # Every record begins at 00:00, if necessary with an empty row. RecordID is not a parameter.
    begins = pd.MultiIndex.from_product([texts, [0]], names=keys[:2])
    table = measured.reindex(measured.index.union(begins), columns=pd.Index(PARAMETERS))
    return table.reset_index()
