import numpy as np
import pytest

from deltaflow import DataError
from deltaflow.tasks import Columns, Split, TaskDataModule, load_task

SINE = {"num_series": 15, "length": 30}


def test_windows_are_those_of_the_task():
    data = TaskDataModule("sine", SINE, context_length=8)
    task = load_task("sine", SINE)
    assert data.prediction_length == task.prediction_length
    validated = list(data.val_dataloader().dataset.windows)
    assert len(validated) == len(task.validation)
    for window, (_, label) in zip(validated, task.validation, strict=True):
        known = np.isfinite(label["target"])
        asked = window.series.values[window.queries, 0]
        np.testing.assert_array_equal(asked, label["target"][known])
    assert len(data.predict_dataloader().dataset) == len(data.test_dataloader().dataset.windows)


@pytest.mark.parametrize("loader", ["val_dataloader", "test_dataloader"])
def test_horizon_of_training_does_not_shorten_what_is_judged(loader):
    task = load_task("clinical_sample")
    judged = task.validation if loader == "val_dataloader" else task.tests["clinical_sample"]
    data = TaskDataModule("clinical_sample", horizon="6h")
    labels = sum(int(batch.target_observed.sum()) for batch in getattr(data, loader)())
    assert labels == sum(int(np.isfinite(label["target"]).sum()) for _, label in judged)


def test_every_test_of_a_task_can_be_named():
    tests = list(load_task("sine", SINE).tests)
    assert len(tests) > 1
    sizes = {
        name: sum(batch.query_delta_t.sum().item() for batch in data.test_dataloader())
        for name in tests
        for data in [TaskDataModule("sine", SINE, test=name)]
    }
    assert len(set(sizes.values())) == len(tests)


def test_known_scaling_is_kept():
    known = TaskDataModule("sine", SINE).reader
    other = TaskDataModule("sine", {**SINE, "seed": 3}, reader=known.to_dict())
    assert other.reader == known != TaskDataModule("sine", {**SINE, "seed": 3}).reader


def test_longer_horizon_than_trained_for_is_judged(make_frame, tmp_path):
    make_frame(num_items=10).to_csv(tmp_path / "stays.csv", index=False)
    columns, path = Columns(target=["HR"]), str(tmp_path / "stays.csv")
    short = TaskDataModule(path, columns=columns, split=Split(after="12h", horizon="6h"))
    longer = load_task(path, columns=columns, split=Split(after="12h", horizon="24h"))
    assert longer.prediction_length > short.prediction_length
    asked = short.reader.collate(list(short.labelled(longer.validation))).target_observed
    labels = sum(np.isfinite(label["target"]).sum() for _, label in longer.validation)
    assert asked.shape[1] > short.prediction_length
    assert asked.sum() == labels


def test_forecasts_without_labels_cannot_be_validated(make_frame, tmp_path):
    frame = make_frame(num_items=10)
    last = frame.groupby("item_id")["timestamp"].transform("max")
    frame.assign(HR=frame["HR"].where(frame["timestamp"] < last)).to_csv(tmp_path / "stays.csv")
    data = TaskDataModule(
        str(tmp_path / "stays.csv"),
        columns=Columns(target=["HR"]),
        split=Split(after="99h", horizon="6h"),
    )
    with pytest.raises(DataError, match="none of the forecasts to evaluate has an observed"):
        data.setup("fit")
    data.setup("predict")
