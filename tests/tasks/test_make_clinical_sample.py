import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

DESCRIPTORS = "00:00,RecordID,{0}\n00:00,Age,{1}\n00:00,Gender,{2}\n00:00,ICUType,{3}\n"
HOURLY = "".join(f"{hour:02d}:30,HR,{60 + hour}\n" for hour in range(48))
NOISY = """\
00:10,HR,80
00:10,Temp,0
00:10,Temp,36.5
00:10,Temp,37
00:10,Weight,70
00:20,Temp,-17.8
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    records = {
        2: DESCRIPTORS.format(2, 54, 0, 4) + HOURLY,
        1: DESCRIPTORS.format(1, -1, -1, 2) + NOISY + HOURLY,
        3: DESCRIPTORS.format(3, 70, 1, 1),  # descriptors only
        4: DESCRIPTORS.format(4, 70, 1, 1) + "01:00,HR,70\n",  # nothing after hour 24
    }
    path = tmp_path / "set-a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("set-a/"))
        for patient, rows in records.items():
            text = ("Time,Parameter,Value\n" + rows).encode()
            member = tarfile.TarInfo(f"set-a/{patient}.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return path


@pytest.fixture
def sample(script, archive) -> pd.DataFrame:
    return script.make_sample(archive)


def test_stays_that_cannot_be_split_are_left_out(sample):
    assert sample["patient"].unique().tolist() == [1, 2]


def test_number_of_patients_is_limited(script, archive, monkeypatch):
    monkeypatch.setattr(script, "NUM_PATIENTS", 1)
    assert len(script.make_sample(archive)["patient"].unique()) == 1


def test_values_of_one_time_are_averaged_after_impossible_ones_are_dropped(sample):
    first = sample.iloc[0]
    assert first["minutes"] == 10
    assert first["HR"] == 80
    assert first["Temp"] == pytest.approx(36.75)


def test_a_time_without_plausible_values_gives_no_row(sample):
    assert 20 not in sample["minutes"].to_numpy()


def test_minutes_count_from_admission_to_hour_48(sample):
    second = sample[sample["patient"] == 2]
    np.testing.assert_array_equal(second["minutes"], 60 * np.arange(48) + 30)
    np.testing.assert_array_equal(second["HR"], 60 + np.arange(48))


def test_unknown_descriptors_are_missing_and_codes_become_names(sample):
    descriptors = sample.groupby("patient")[["age", "gender", "icu"]].first()
    assert np.isnan(descriptors.loc[1, "age"])
    assert descriptors.loc[1, ["gender", "icu"]].tolist() == ["unknown", "cardiac surgery"]
    assert descriptors.loc[2].tolist() == [54, "female", "surgical"]


def test_same_archive_gives_same_bytes(script, archive, tmp_path, monkeypatch):
    outputs = [tmp_path / "first.csv.gz", tmp_path / "second.csv.gz"]
    for output in outputs:
        monkeypatch.setattr(sys, "argv", ["script", str(archive), "--output", str(output)])
        script.main()
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    pd.testing.assert_frame_equal(
        pd.read_csv(outputs[0]), script.make_sample(archive), check_dtype=False
    )
