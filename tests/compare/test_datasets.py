import numpy as np
import pytest
from gluonts.dataset.common import MetaData, TrainDatasets
from gluonts.dataset.jsonl import JsonLinesWriter

from deltaflow.compare import Columns, Split, run_comparison
from deltaflow.compare.datasets import load_task
from deltaflow.errors import DataError, DeltaflowError, UnknownNameError
from deltaflow.tasks import regular_seasonal


@pytest.fixture
def csv(make_frame, tmp_path):
    path = tmp_path / "stays.csv"
    make_frame(("HR", "MAP"), num_items=10).to_csv(path, index=False)
    return str(path)


def last_times(data) -> list[float]:
    return [entry["feat_dynamic_real"][0, entry["target"].shape[-1] - 1] for entry in data]


def test_unseen_items_of_a_file_are_forecast(csv, tiny):
    config = tiny(
        columns=Columns(target=["HR", "MAP"], feat_static_cat=["ward"]),
        split=Split(after="24h", horizon="12h"),
    )
    task = load_task(csv, config)
    assert task.name == "stays"
    assert (len(task.training), len(task.validation), len(task.tests["stays"])) == (6, 2, 2)
    assert max(last_times(task.tests["stays"].input)) < 24
    assert max(last_times(task.training)) > 24
    assert max(last_times(task.training_forecasts.input)) < 24
    for (past, label), entry in zip(task.training_forecasts, task.training, strict=True):
        assert past["item_id"] == entry["item_id"]
        assert np.isfinite(label["target"]).any()


def test_future_of_all_items_of_a_file_is_forecast(csv, tiny):
    config = tiny(
        columns=Columns(target=["HR"]), split=Split(after="24h", horizon="6h", test_share=0)
    )
    task = load_task(csv, config)
    assert len(task.training) == len(task.validation) == len(task.tests["stays"]) == 10
    assert task.training.dataset[0]["target"].ndim == 1
    assert max(last_times(task.training)) < 18
    assert max(last_times(task.validation.input)) < 18 <= max(last_times(task.tests["stays"].input))
    assert max(last_times(task.training_forecasts.input)) < 12
    fitted = [entry["feat_dynamic_real"][0] for entry in task.training_forecasts.input]
    assert max(np.nanmax(times) for times in fitted) < 18


def test_parquet_is_read(make_frame, tmp_path, tiny):
    pytest.importorskip("pyarrow")
    make_frame().to_parquet(tmp_path / "stays.parquet")
    config = tiny(columns=Columns(target=["HR"]), split=Split(after="24h"))
    assert load_task(str(tmp_path / "stays.parquet"), config).prediction_length > 1


def test_gluonts_data_set_is_compared(tmp_path, tiny):
    series = regular_seasonal(num_series=6, length=72)
    shorter = [{**entry, "target": entry["target"][:-6]} for entry in series]
    stored = TrainDatasets(MetaData(freq="h", prediction_length=6), shorter, series)
    stored.save(str(tmp_path / "hourly"), JsonLinesWriter())
    runs = run_comparison(tiny(dataset=str(tmp_path / "hourly"), dataset_kwargs={}, epochs=1))
    assert [run["status"] for run in runs] == ["finished", "finished"]
    example = runs[1]["examples"]["hourly"][0]
    assert example["times"] == list(np.arange(66.0, 72.0))
    assert example["time_unit"] == "periods"


@pytest.mark.parametrize(
    ("dataset", "split", "error", "message"),
    [
        ("sawtoth", {}, UnknownNameError, "did you mean 'sawtooth'"),
        ("nowhere/x.csv", {}, DataError, "no file or folder"),
        ("{csv}", {}, DataError, "needs a forecast origin"),
        ("{csv}", {"after": "24h", "test_share": 0}, DataError, "need a horizon"),
        ("{folder}/x.txt", {}, DataError, "no file of .csv"),
        ("lorenz", {}, DeltaflowError, "unexpected keyword argument 'paths'"),
    ],
)
def test_what_is_no_data_set_is_refused(dataset, split, error, message, csv, tmp_path, tiny):
    (tmp_path / "x.txt").touch()
    config = tiny(dataset_kwargs={"paths": 1}, columns=Columns(target=["HR"]), split=Split(**split))
    with pytest.raises(error, match=message):
        load_task(dataset.format(csv=csv, folder=tmp_path), config)
