"""Make the clinical sample that deltaflow ships from set A of the PhysioNet/CinC Challenge 2012.

    python scripts/make_clinical_sample.py set-a.tar.gz

The archive is the official one: https://physionet.org/content/challenge-2012/1.0.0/

**Channels.** The time-dependent parameters with more than 50,000 values in set A, that is, at least
one value every four hours in an average stay, except three: `Weight` (hardly ever changes), `NIMAP`
(follows from the two other cuff pressures) and `RespRate` (recorded in only a quarter of the
stays).

**Values.** Those outside `PLAUSIBLE` are dropped; after that, several values of one channel in one
minute are averaged.

**Stays.** `NUM_PATIENTS` drawn without replacement, with a fixed seed, from those that have at
least `MIN_TIMES` observation times in their first 24 hours and as many from hour 24 on, so that
every one of them can be split there.
"""

import argparse
import gzip
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd

# Values that a living patient can have, in the units of the channels. The ranges are wide on
# purpose: they should catch detached probes, flushed lines and typing errors (0 °C, 0 mmHg), but no
# values of the severely ill.
PLAUSIBLE = {
    "HR": (20, 250),  # beats/min
    "SysABP": (30, 280),  # mmHg
    "DiasABP": (10, 180),  # mmHg
    "MAP": (20, 200),  # mmHg
    "NISysABP": (30, 280),  # mmHg
    "NIDiasABP": (10, 180),  # mmHg
    "Temp": (25, 45),  # °C
    "Urine": (0, 3000),  # mL
    "GCS": (3, 15),  # points, the range of the scale itself
}
GENDER = {0: "female", 1: "male"}
ICU = {1: "coronary", 2: "cardiac surgery", 3: "medical", 4: "surgical"}

NUM_PATIENTS = 300
MIN_TIMES = 10
SPLIT = 24 * 60  # minutes
SEED = 2012

OUTPUT = Path(__file__).parents[1] / "src/deltaflow/tasks/clinical_sample/vitals.csv.gz"


def read_records(archive: Path) -> pd.DataFrame:
    """Read every record of the archive into long form: `patient, minutes, parameter, value`."""
    records = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None and member.name.endswith(".txt"):
                records[int(Path(member.name).stem)] = pd.read_csv(file)

    frame = pd.concat(records, names=["patient"]).reset_index("patient")
    clock = frame.pop("Time").str.split(":", expand=True).astype(int)  # HH:MM, up to 48:00
    frame["minutes"] = 60 * clock[0] + clock[1]
    return frame.rename(columns=str.lower)


def descriptors(records: pd.DataFrame) -> pd.DataFrame:
    """Static descriptors by `patient`: `age, gender, icu`; -1 becomes NaN or "unknown"."""
    names = ["Age", "Gender", "ICUType"]
    rows = records[records["parameter"].isin(names)]
    table = rows.pivot_table(index="patient", columns="parameter", values="value")
    table = table.reindex(columns=names)
    return pd.DataFrame(
        {
            "age": table["Age"].where(table["Age"] >= 0),
            "gender": table["Gender"].map(GENDER.get).fillna("unknown"),
            "icu": table["ICUType"].map(ICU.get).fillna("unknown"),
        }
    )


def vital_signs(records: pd.DataFrame) -> pd.DataFrame:
    """Plausible values in wide form, sorted by `(patient, minutes)`, one column per channel."""
    bounds = pd.DataFrame(PLAUSIBLE, index=pd.Index(["low", "high"])).T
    values = records.join(bounds, on="parameter", how="inner")
    values = values[values["value"].between(values["low"], values["high"])]
    return values.pivot_table(
        index=["patient", "minutes"], columns="parameter", values="value", aggfunc="mean"
    ).reindex(columns=list(PLAUSIBLE))


def choose_patients(vitals: pd.DataFrame) -> np.ndarray:
    """Draw `NUM_PATIENTS` stays (all, if fewer) with `MIN_TIMES` times on each side of `SPLIT`."""
    late = vitals.index.get_level_values("minutes") >= SPLIT
    times = pd.crosstab(vitals.index.get_level_values("patient"), late)
    times = times.reindex(columns=[False, True], fill_value=0)
    eligible = times.index[(times >= MIN_TIMES).all(axis="columns")]
    size = min(NUM_PATIENTS, len(eligible))
    return np.random.default_rng(SEED).choice(eligible, size=size, replace=False)


def make_sample(archive: Path) -> pd.DataFrame:
    """One row per observation time: `patient, minutes, age, gender, icu`, then the channels."""
    records = read_records(archive)
    vitals = vital_signs(records)
    chosen = vitals.index.isin(choose_patients(vitals), level="patient")
    sample = descriptors(records).join(vitals[chosen], how="inner").reset_index()
    static = ["patient", "minutes", "age", "gender", "icu"]
    return sample.reindex(columns=static + list(PLAUSIBLE))


def write_sample(sample: pd.DataFrame, output: Path) -> None:
    """Write a compressed CSV without a time stamp, so that the same sample gives the same bytes."""
    text = sample.to_csv(index=False, float_format="%g", lineterminator="\n")
    output.write_bytes(gzip.compress(text.encode(), mtime=0))


def main() -> None:
    """Read the command line and make the sample."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="the official set-a.tar.gz")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: %(default)s")
    arguments = parser.parse_args()

    sample = make_sample(arguments.archive)
    write_sample(sample, arguments.output)
    print(f"{arguments.output}: {sample['patient'].nunique()} patients, {len(sample)} rows")


if __name__ == "__main__":
    main()
