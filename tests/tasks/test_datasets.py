import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.common import ListDataset, MetaData, TrainDatasets
from gluonts.dataset.jsonl import JsonLinesWriter

from deltaflow import IrregularDataset
from deltaflow.errors import DataError, DeltaflowError, UnknownNameError
from deltaflow.tasks import Columns, Split, load_task
from deltaflow.tasks.datasets import read_dataset
from deltaflow.tasks.task import known_before


@pytest.fixture
def csv(make_frame, tmp_path):
    path = tmp_path / "stays.csv"
    make_frame(("HR", "MAP"), num_items=10).to_csv(path, index=False)
    return str(path)


def last_times(data) -> list[float]:
    return [entry["feat_dynamic_real"][0, entry["target"].shape[-1] - 1] for entry in data]


def test_unseen_items_of_a_file_are_forecast(csv):
    task = load_task(
        csv,
        columns=Columns(target=["HR", "MAP"], feat_static_cat=["ward"]),
        split=Split(after="24h", horizon="12h"),
    )
    assert task.name == "stays"
    assert (len(task.training), len(task.validation), len(task.tests["stays"])) == (6, 2, 2)
    assert max(last_times(task.tests["stays"].input)) < 24
    assert max(last_times(task.training)) > 24
    assert max(last_times(task.training_forecasts.input)) < 24
    for (past, label), entry in zip(task.training_forecasts, task.training, strict=True):
        assert past["item_id"] == entry["item_id"]
        assert np.isfinite(label["target"]).any()


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_items_keep_their_names(suffix, make_frame, tmp_path):
    frame = make_frame(("HR",), num_items=10)
    frame["item_id"] = frame.groupby("item_id").ngroup().map("{:03d}".format)
    path = tmp_path / f"stays.{suffix}"
    frame.to_parquet(path) if suffix == "parquet" else frame.to_csv(path, index=False)
    split = Split(after="24h", horizon="12h", test_share=0.0)
    task = load_task(str(path), columns=Columns(target=["HR"]), split=split)
    assert [entry["item_id"] for entry in task.training] == [f"{n:03d}" for n in range(10)]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_categories_are_text_as_in_the_file(suffix, make_frame, tmp_path):
    frame = make_frame(("HR",), num_items=4)
    frame["ward"] = frame["item_id"].map({"p0": "01", "p1": "1", "p2": "1"})
    frame["site"] = frame["item_id"].map({"p0": 1, "p1": 2, "p2": 10})  # floats because of p3's
    path = tmp_path / f"stays.{suffix}"
    frame.to_parquet(path) if suffix == "parquet" else frame.to_csv(path, index=False)
    columns = Columns(target=["HR"], feat_static_cat=["ward", "site"])
    levels = read_dataset(path, columns).schema.feat_static_cat
    assert levels == {"ward": ("01", "1"), "site": ("1", "10", "2")}


def test_future_of_all_items_of_a_file_is_forecast(csv):
    split = Split(after="24h", horizon="6h", test_share=0)
    task = load_task(csv, columns=Columns(target=["HR"]), split=split)
    assert len(task.training) == len(task.validation) == len(task.tests["stays"]) == 10
    assert task.training.dataset[0]["target"].ndim == 1
    assert max(last_times(task.training)) < 18
    assert max(last_times(task.validation.input)) < 18 <= max(last_times(task.tests["stays"].input))
    assert max(last_times(task.training_forecasts.input)) < 12
    fitted = [entry["feat_dynamic_real"][0] for entry in task.training_forecasts.input]
    assert max(np.nanmax(times) for times in fitted) < 18


def test_last_rows_of_all_items_of_a_file_are_forecast(csv):
    task = load_task(csv, columns=Columns(target=["HR"]), split=Split(last=2))
    whole = load_task(csv, columns=Columns(target=["HR"]), split=Split(last=1))
    assert task.prediction_length == 2
    (past, label), (earlier, validated) = (
        next(iter(task.tests["stays"])),
        next(iter(task.validation)),
    )
    joined = np.concatenate([earlier["target"], validated["target"], label["target"]])
    (past_of_one, last), *_ = whole.tests["stays"]
    np.testing.assert_array_equal(joined, [*past_of_one["target"], *last["target"]])
    np.testing.assert_array_equal(past["target"], joined[:-2])


@pytest.mark.parametrize(
    "split", [{"after": "9h"}, {"after": "13h"}, {"date": "2024-03-01 13:00"}], ids=str
)
def test_what_is_fitted_validated_and_tested_does_not_overlap(split, csv):
    task = load_task(
        csv, columns=Columns(target=["HR"]), split=Split(horizon="8h", test_share=0, **split)
    )
    parts = (task.training_forecasts, task.validation, task.tests["stays"])
    asked = [
        [past["feat_dynamic_real"][0, past["target"].shape[-1] :] for past in part.input]
        for part in parts
    ]
    for fitted, validated, tested in zip(*asked, strict=True):
        times = np.concatenate([fitted, validated, tested])
        assert (np.diff(times[np.isfinite(times)]) > 0).all()
    assert all(np.isfinite(np.concatenate(times)).any() for times in asked)


def test_parquet_is_read(make_frame, tmp_path):
    pytest.importorskip("pyarrow")
    make_frame().to_parquet(tmp_path / "stays.parquet")
    columns, split = Columns(target=["HR"]), Split(after="24h")
    path = str(tmp_path / "stays.parquet")
    assert load_task(path, columns=columns, split=split).prediction_length > 1


@pytest.mark.parametrize(
    ("dataset", "split", "error", "message"),
    [
        ("sawtoth", {}, UnknownNameError, "did you mean 'sawtooth'"),
        ("nowhere/x.csv", {}, DataError, "no file or folder"),
        ("{csv}", {}, DataError, "needs one forecast origin"),
        ("{csv}", {"after": "8h", "last": 2}, DataError, "needs one forecast origin"),
        ("{csv}", {"last": 0}, DeltaflowError, "split.last must be at least 1"),
        ("{csv}", {"last": 1000}, DataError, "no item has more than 3000 rows"),
        ("{csv}", {"after": "24h", "test_share": 0}, DataError, "needs a horizon"),
        ("{csv}", {"after": "8h", "horizon": "8h", "test_share": 0}, DataError, "nothing is left"),
        ("{folder}/x.txt", {}, DataError, "is not a .csv"),
        ("lorenz", {}, DeltaflowError, "unexpected keyword argument 'paths'"),
    ],
)
def test_what_is_no_data_set_is_refused(dataset, split, error, message, csv, tmp_path):
    (tmp_path / "x.txt").touch()
    path = dataset.format(csv=csv, folder=tmp_path)
    with pytest.raises(error, match=message):
        load_task(path, {"paths": 1}, Columns(target=["HR"]), Split(**split))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "'dataset': x.csv cannot be read"),
        ("x.csv", b"\xe5\x00\xff", "'dataset': x.csv cannot be read"),
        ("x.csv", b"item_id,timestamp,HR\na,yesterday?,1\n",
         "'timestamp': holds a value that is not a timestamp"),
        ("x.csv", b"item_id,timestamp,HR\na,2024-01-01,1\na,2024-01-01T12:00Z,1\n",
         "'timestamp': holds a value that is not a timestamp|time zones are mixed"),
        ("x.csv", b"item_id,timestamp,HR\na,03/04/2024 08:00,1\na,04/04/2024 08:00,1\n",
         "'timestamp': '03/04/2024 08:00' may be read month first or day first"),
        ("x.csv", b"item_id,timestamp,HR\na,,1\na,03/04/2024 08:00,1\n",
         "'timestamp': '03/04/2024 08:00' may be read month first or day first"),
        ("x.csv.gz", gzip.compress(b"item_id,timestamp,HR\na,2024-01-01,1\n", mtime=0)[:-9],
         "'dataset': x.csv.gz cannot be read"),
        ("x.parquet", b"no Parquet at all", "'dataset': x.parquet cannot be read"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(name, content, message, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_task(str(path), columns=Columns(target=["HR"]), split=Split(after="1h"))


@pytest.mark.parametrize(
    "days",
    [
        ("03/31/2024", "04/01/2024"),
        ("31/03/2024", "01/04/2024"),
        ("31 Mar 2024", "1 Apr 2024"),
        ("2024-03-31", "2024-04-01"),
        ("04/04/2024", "05/05/2024"),
    ],
)
def test_dates_that_can_be_read_in_one_way_are_read(days, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("item_id,timestamp,target\n" + "".join(f"a,{day},1\n" for day in days))
    (entry,) = read_dataset(path, Columns())
    expected = 31 * 24 if days[0] == "04/04/2024" else 24
    assert entry["feat_dynamic_real"].tolist() == [[0, expected]]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
@pytest.mark.filterwarnings("error")
def test_times_across_a_change_of_the_clocks_are_read_as_written(suffix, zone, tmp_path):
    """Where pandas writes offsets that differ, and fractions of some seconds alone."""
    times = ["2024-03-31 00:30", "2024-03-31 01:30:00.5", "2024-03-31 04:00"]
    times = pd.to_datetime(times, format="ISO8601", utc=True).tz_convert(zone)
    frame = pd.DataFrame({"item_id": "a", "timestamp": times, "target": [1.0, 2.0, 3.0]})
    path = tmp_path / f"x{suffix}"
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    dataset = read_dataset(path, Columns())
    expected = IrregularDataset.from_long_dataframe(frame)
    kept = zone == "UTC" or suffix == ".parquet"
    assert dataset.schema.time_zone == (zone if kept or zone is None else "UTC")
    (own,), (other,) = dataset, expected
    np.testing.assert_array_equal(own["feat_dynamic_real"], other["feat_dynamic_real"])
    assert own["info"]["time_origin"] == other["info"]["time_origin"]


@pytest.mark.parametrize(
    ("given", "names", "univariate"),
    [("HR", ("HR",), True), ("[HR]", ("HR",), True), ("[HR, MAP]", ("HR", "MAP"), False)],
)
def test_targets_on_the_command_line_are_a_name_or_a_list(given, names, univariate, csv):
    parser = pytest.importorskip("jsonargparse").ArgumentParser()
    parser.add_class_arguments(Columns)
    columns = Columns(**vars(parser.parse_args(["--target", given])))
    schema = read_dataset(Path(csv), columns).schema
    assert (schema.target, schema.univariate) == (names, univariate)


def test_a_file_needs_a_target(csv):
    with pytest.raises(DataError, match="no target is named"):
        load_task(csv, columns=Columns(target=[]), split=Split(after="24h"))


@pytest.mark.parametrize("names", [{}, {"item_id": "the same"}])
def test_all_entries_of_a_gluonts_data_set_are_known_whatever_their_names(names, tmp_path):
    series = [np.arange(20.0 + number) for number in range(4)]
    entries = [{"start": "2024-01-01", "target": one, **names} for one in series]
    data = ListDataset(entries, freq="D")
    stored = TrainDatasets(MetaData(freq="D", prediction_length=3), data, data)
    stored.save(str(tmp_path / "daily"), JsonLinesWriter())
    known = known_before(load_task(str(tmp_path / "daily")))
    assert [len(entry["target"]) for entry in known] == [len(one) for one in series]
