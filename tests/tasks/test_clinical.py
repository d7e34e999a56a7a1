from importlib import resources

import numpy as np
import pandas as pd
import pytest

from deltaflow.tasks import VITALS, clinical_sample

FOLDER = resources.files("deltaflow.tasks") / "clinical_sample"


@pytest.fixture(scope="module")
def sample() -> pd.DataFrame:
    return clinical_sample()


def test_columns_are_those_documented(sample):
    assert list(sample) == ["patient", "minutes", "age", "gender", "icu", *VITALS]
    assert set(sample[["patient", "minutes"]].dtypes) == {np.dtype("int64")}
    assert set(sample[["age", *VITALS]].dtypes) == {np.dtype("float64")}


def test_every_patient_can_be_split_at_hour_24(sample, script):
    late = sample["minutes"] >= 24 * 60
    times = pd.crosstab(sample["patient"], late)
    assert times.shape == (script.NUM_PATIENTS, 2)
    assert times.to_numpy().min() >= script.MIN_TIMES


def test_times_are_sorted_and_unique_within_a_patient(sample):
    index = pd.MultiIndex.from_frame(sample[["patient", "minutes"]])
    assert index.is_monotonic_increasing
    assert index.is_unique
    assert sample["minutes"].between(0, 48 * 60).all()


def test_descriptors_are_constant_and_readable(sample):
    descriptors = sample[["patient", "age", "gender", "icu"]].drop_duplicates()
    assert descriptors["patient"].is_unique
    assert descriptors["age"].between(15, 90).all()
    assert set(descriptors["gender"]) <= {"female", "male", "unknown"}
    assert set(descriptors["icu"]) == {"coronary", "cardiac surgery", "medical", "surgical"}


def test_no_time_is_without_a_value(sample):
    assert sample[list(VITALS)].notna().any(axis="columns").all()


@pytest.mark.parametrize("channel", VITALS)
def test_values_are_plausible(sample, script, channel):
    values = sample[channel].dropna()
    assert len(values) > 1000
    assert values.between(*script.PLAUSIBLE[channel]).all()


def test_each_call_returns_a_table_of_its_own(sample):
    clinical_sample().drop(columns="HR", inplace=True)  # noqa: PD002
    pd.testing.assert_frame_equal(clinical_sample(), sample)


def test_file_is_small_and_carries_its_licence():
    assert len((FOLDER / "vitals.csv.gz").read_bytes()) < 1.5e6
    licence = (FOLDER / "LICENSE.md").read_text(encoding="utf-8")
    for notice in ("ODC-By", "physionet.org/content/challenge-2012", "Silva", "Goldberger"):
        assert notice in licence
