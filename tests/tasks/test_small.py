import numpy as np
import pandas as pd
import pytest

from deltaflow.data import IrregularDataset
from deltaflow.errors import DataError, UnknownNameError
from deltaflow.tasks import TASKS, load_task
from deltaflow.tasks.small import SMALL_SETS, small_set, small_task


def frame_of(name: str, lengths: list[int]) -> pd.DataFrame:
    """A file of the form of a small set, whose values count up within each item."""
    about = SMALL_SETS[name]
    rows = [(f"i{item}", row) for item, length in enumerate(lengths) for row in range(length)]
    frame = pd.DataFrame(rows, columns=["item_id", "time"])
    frame[about.target] = frame["time"] + 10.0 * frame["item_id"].str[1:].astype(int)
    for column in about.feat_static_real:
        frame[column] = 1.5
    for column in about.feat_static_cat:
        frame[column] = frame["item_id"].map(lambda item: f"of {item}")
    if name == "cgm":
        frame["time"] = pd.Timestamp("2014-02-03") + pd.to_timedelta(5 * frame["time"], unit="min")
    return frame


@pytest.fixture
def folder(tmp_path):
    for name, about in SMALL_SETS.items():
        frame_of(name, [220, 200] if name == "cgm" else [28, 25]).to_csv(
            tmp_path / about.file, index=False
        )
    return tmp_path


@pytest.mark.parametrize("name", SMALL_SETS)
def test_the_last_values_of_each_item_are_held_out(folder, name):
    task = load_task(f"small:{name}", {"path": str(folder)})
    data, held_out = small_set(name, folder), SMALL_SETS[name].held_out
    assert task.prediction_length == held_out
    for entry, (past, label) in zip(data, task.tests[name], strict=True):
        np.testing.assert_array_equal(label["target"], entry["target"][-held_out:])
        np.testing.assert_array_equal(past["target"], entry["target"][:-held_out])
        assert past["feat_dynamic_real"].shape == (1, entry["target"].shape[-1])


@pytest.mark.parametrize("name", SMALL_SETS)
def test_what_is_judged_is_neither_learned_from_nor_validated(folder, name):
    task = load_task(f"small:{name}", {"path": str(folder)})
    for entry, (past, label), (seen, _) in zip(
        task.training, task.validation, task.tests[name], strict=True
    ):
        np.testing.assert_array_equal(entry["target"], past["target"])
        known = np.concatenate([past["target"], label["target"]])
        np.testing.assert_array_equal(known, seen["target"])


def test_static_features_are_read_by_their_kind(folder):
    assert small_set("theophylline", folder).schema.feat_static_real == ("Wt", "Dose")
    assert list(small_set("soybean", folder).schema.feat_static_cat) == ["Variety", "Year"]


def test_items_that_are_too_short_to_be_forecast_are_learned_from(tmp_path):
    frame_of("milk", [17, 3]).to_csv(tmp_path / "milk.csv", index=False)
    task = small_task("milk", tmp_path)
    assert isinstance(task.training, IrregularDataset)
    assert [len(entry["target"]) for entry in task.training] == [17 - 8, 3]
    assert [entry["item_id"] for entry in task.tests["milk"].input] == ["i0"]


def test_half_of_the_glucose_values_are_dropped_the_same_ones_each_time(folder):
    once, again = (small_set("cgm", folder) for _ in range(2))
    rows = sum(len(entry["target"]) for entry in once)
    assert 160 < rows < 260  # of 420
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one["feat_dynamic_real"], other["feat_dynamic_real"])


def test_every_set_is_a_named_task():
    assert {f"small:{name}" for name in SMALL_SETS} <= set(TASKS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"milk\.csv"):
        small_task("milk", tmp_path)
    with pytest.raises(UnknownNameError, match="silk"):
        small_task("silk", tmp_path)


def test_a_set_of_series_too_short_to_be_judged_is_refused(tmp_path):
    frame_of("milk", [12, 2]).to_csv(tmp_path / "milk.csv", index=False)
    with pytest.raises(DataError, match="no item has more than 12 rows"):
        small_task("milk", tmp_path)
