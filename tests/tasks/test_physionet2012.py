import io
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deltaflow.errors import DataError
from deltaflow.tasks import (
    PARAMETERS,
    physionet,
    physionet2012,
    physionet2012_task,
    read_physionet2012,
)

RECORDS = {
    20: "00:00,RecordID,20\n00:00,Age,54\n00:00,Weight,-1\n00:07,HR,80\n00:07,HR,90\n"
    "00:07,Temp,36.5\n30:15,HR,88\n48:00,Urine,0\n",
    3: "01:30,HR,70\n25:00,HR,71\n",
}


def text(rows: str) -> bytes:
    return ("Time,Parameter,Value\n" + rows).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Set a as an archive, set b as a folder."""
    with tarfile.open(tmp_path / "set-a.tar.gz", "w:gz") as archive:
        for number, rows in RECORDS.items():
            member = tarfile.TarInfo(f"set-a/{number}.txt")
            member.size = len(text(rows))
            archive.addfile(member, io.BytesIO(text(rows)))
    (tmp_path / "set-b").mkdir()
    for number in range(100, 110):
        values = "".join(f"{hour:02d}:00,HR,{number - 40 + hour}\n" for hour in range(0, 48, 6))
        rows = f"00:00,RecordID,{number}\n00:00,Age,{number}\n{values}"
        (tmp_path / "set-b" / f"{number}.txt").write_bytes(text(rows))
    return tmp_path


def test_every_measurement_stands_at_its_time(folder):
    frame = read_physionet2012(folder, sets=["a"])
    assert list(frame) == ["record", "minutes", *PARAMETERS]
    assert frame["record"].tolist() == [3, 3, 3, 20, 20, 20, 20]
    assert frame["minutes"].tolist() == [0, 90, 1500, 0, 7, 1815, 2880]
    np.testing.assert_array_equal(frame["HR"], [np.nan, 70, 71, np.nan, 85, 88, np.nan])
    assert frame["Temp"].dropna().tolist() == [36.5]
    assert frame["Urine"].dropna().tolist() == [0]


def test_values_of_one_time_are_averaged_and_unknown_descriptors_kept(folder):
    second = read_physionet2012(folder, sets=["a"]).set_index(["record", "minutes"]).loc[20]
    assert second.loc[7, "HR"] == 85
    assert second.loc[0, "Weight"] == -1


def test_record_that_starts_later_gets_an_empty_first_row(folder):
    first = read_physionet2012(folder, sets=["a"]).iloc[0]
    assert (first["record"], first["minutes"]) == (3, 0)
    assert first[list(PARAMETERS)].isna().all()


def test_parameters_are_in_the_order_of_the_challenge():
    assert len(PARAMETERS) == len(set(PARAMETERS)) == 41
    assert PARAMETERS[:6] == ("Age", "Gender", "Height", "ICUType", "Weight", "Albumin")
    assert PARAMETERS[-1] == "WBC"


def test_cache_gives_the_same_without_reading_again(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = read_physionet2012(folder, cache=cache)
    monkeypatch.setattr(physionet, "_parsed", None)
    pd.testing.assert_frame_equal(read_physionet2012(folder, cache=cache), first)


def test_missing_set_is_refused(folder):
    with pytest.raises(DataError, match=r"does not contain set 'c'; download set-c\.tar\.gz"):
        read_physionet2012(folder, sets=["c"])
    (folder / "set-c").mkdir()
    with pytest.raises(DataError, match="the set has no records"):
        read_physionet2012(folder, sets=["c"])


def test_sets_become_one_data_set(folder):
    data = physionet2012(folder)
    assert [entry["item_id"] for entry in data][:3] == ["3", "20", "100"]
    assert data.schema.target == ("Age", "Weight", "HR", "Temp", "Urine")
    assert data[0]["target"].shape == (5, 3)


def test_split_is_that_of_scikit_learn():
    selection = pytest.importorskip("sklearn.model_selection")
    seen, test = selection.train_test_split(range(123), train_size=0.8, random_state=42)
    training, validation = selection.train_test_split(seen, train_size=0.75, shuffle=False)
    for own, other in zip(physionet.split_records(123), (training, validation, test), strict=True):
        assert own.tolist() == list(other)


def test_task_forecasts_the_second_day_in_units_of_the_range(folder):
    task = physionet2012_task(folder, sets=["b"])
    (test,) = task.tests.values()
    for past, label in test:
        assert past["target"].shape == (2, 4)
        assert np.isfinite(label["target"]).sum() == 4
    for past, label in task.training_forecasts:
        assert past["target"].shape == (2, 4)
        assert np.isfinite(label["target"]).sum() == 4
    ages = [entry["target"][0, 0] for entry in (*task.training, *task.validation.input)]
    assert task.scale[0] == np.ptp(ages)
