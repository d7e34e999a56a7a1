"""Series in an Arrow file are those that were written, bit for bit, and are read one by one."""

import json
import pickle
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from gluonts.dataset.split import split

from deltaflow import (
    ArrowDataset,
    DataError,
    DeltaflowWarning,
    GRUEstimator,
    HoldPredictor,
    IrregularDataModule,
    IrregularDataset,
    TimeSplitter,
    parquet_to_arrow,
    split_items,
    split_items_by,
    write_arrow,
)
from deltaflow.data import arrow, statistics

KINDS = ["univariate", "multivariate"]


@pytest.fixture
def stored(request, datasets, tmp_path):
    """A function ``kind -> ArrowDataset``, with several record batches in the file."""

    def write(kind: str) -> ArrowDataset:
        path = tmp_path / f"{kind}.arrow"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(arrow, "_BATCH_NUMBERS", 400)
            write_arrow(path, iter(datasets[kind]))
        return ArrowDataset(path)

    return write


def assert_same_entries(left, right) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_equal(one, other)
        for name, value in one.items():
            assert type(other[name]) is type(value)
            assert getattr(other[name], "dtype", None) == getattr(value, "dtype", None)


@pytest.mark.parametrize("kind", KINDS)
def test_entries_come_back_as_they_were(kind, stored, datasets):
    dataset = stored(kind)
    assert_same_entries(datasets[kind], dataset)
    assert dataset.schema == datasets[kind].schema
    assert len(pa.ipc.open_file(str(dataset.path)).schema) >= 6
    assert pa.ipc.open_file(str(dataset.path)).num_record_batches > 1
    np.testing.assert_equal(dataset[-1], datasets[kind][-1])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_entries_with_queries_and_elapsed_numbers_come_back(tmp_path):
    frame = pd.DataFrame({"t": [0.1, 0.7, 3.1], "HR": [80, 82, None]})
    (entry,) = IrregularDataset.from_long_dataframe(frame, item_id=None, timestamp="t", target="HR")
    entry["feat_dynamic_real"] = np.array([[0.1, 0.7, 3.1, 5.0, np.nan]])
    write_arrow(tmp_path / "one.arrow", [entry])
    assert_same_entries([entry], ArrowDataset(tmp_path / "one.arrow"))


def test_arrays_are_views_of_the_file(stored):
    entry = stored("multivariate")[3]
    for name in ("target", "feat_dynamic_real", "past_feat_dynamic_real"):
        assert not entry[name].flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            entry[name][0] = 0


def test_items_can_be_chosen_sliced_and_sent_to_a_process(stored, datasets):
    dataset, expected = stored("multivariate"), datasets["multivariate"]
    assert_same_entries(expected[2:7:2], dataset[2:7:2])
    assert_same_entries(expected.select([5, 1, 5]), dataset[1:].select([4, 0, 4]))
    mask = np.arange(len(dataset)) % 2 == 1
    assert_same_entries(expected.select(mask), dataset.select(mask))
    sent = pickle.dumps(dataset.select([3, 1]))
    assert len(sent) < 2000
    assert_same_entries(expected.select([3, 1]), pickle.loads(sent))
    for one, other in zip(split_items(expected), split_items(dataset), strict=True):
        assert_same_entries(one, other)
    parts = split_items_by(dataset, "ward")
    assert {name: len(part) for name, part in parts.items()} == {"er": 4, "icu": 4}


def test_times_in_float32_are_refused(univariate, tmp_path):
    entry = univariate[0]
    entry["feat_dynamic_real"] = entry["feat_dynamic_real"].astype(np.float32)
    with pytest.raises(DataError, match="float32 merges seconds"):
        write_arrow(tmp_path / "new.arrow", [univariate[1], entry])
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def test_a_file_with_float32_times_is_refused(stored):
    path = stored("univariate").path
    table = pa.ipc.open_file(str(path)).read_all()
    place = table.schema.get_field_index("feat_dynamic_real")
    smaller = table["feat_dynamic_real"].cast(pa.large_list(pa.float32()))
    rewrite(path, table.set_column(place, "feat_dynamic_real", smaller))
    with pytest.raises(
        DataError, match=r"'feat_dynamic_real': is stored as .*float.*keeps float64"
    ):
        ArrowDataset(path)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_read_or_refused_but_never_read_beyond_its_end(seed, stored):
    path = stored("multivariate").path
    content, random = bytearray(path.read_bytes()), np.random.default_rng(seed)
    if seed % 4:
        content[random.integers(len(content))] ^= 1 << random.integers(8)
    else:
        del content[random.integers(len(content)) :]
    damaged = path.with_suffix(".damaged")
    damaged.write_bytes(content)
    with suppress(DataError):
        HoldPredictor.fit(ArrowDataset(damaged), 4)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("target", lambda rows: [None, *rows[1:]], "holds nulls"),
        ("target", lambda rows: [[None, *rows[0][1:]], *rows[1:]], "holds nulls"),
        ("target", lambda rows: [rows[0][1:], *rows[1:]], "cannot be divided among 2 channels"),
        ("start", lambda rows: [None, *rows[1:]], "holds nulls"),
    ],
)
def test_a_file_of_other_lists_is_refused(field, change, message, stored):
    path = stored("multivariate").path
    table = pa.ipc.open_file(str(path)).read_all()
    place = table.schema.get_field_index(field)
    column = pa.array(change(table[field].to_pylist()), type=table.schema.field(field).type)
    rewrite(path, table.set_column(place, table.schema.field(field), column))
    with pytest.raises(DataError, match=message) as caught:
        list(ArrowDataset(path))
    assert caught.value.field == field


@pytest.mark.parametrize("role", ["target", "time", "feat_static_cat", "univariate", "time_zone"])
@pytest.mark.parametrize("value", [None, 1, "HR", [1], [], {"a": "b"}])
def test_a_file_of_no_schema_is_refused(role, value, stored):
    if role == "time_zone" and value in (None, "HR"):
        return
    path = stored("multivariate").path
    table = pa.ipc.open_file(str(path)).read_all()
    metadata = json.loads(table.schema.metadata[b"deltaflow"])
    metadata["schema"][role] = value
    rewrite(path, table.replace_schema_metadata({b"deltaflow": json.dumps(metadata)}))
    with pytest.raises(DataError, match="not an Arrow file of series"):
        ArrowDataset(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.arrow"
    path.write_text("no Arrow")
    with pytest.raises(DataError, match="not an Arrow file of series"):
        ArrowDataset(path)
    rewrite(path, pa.table({"a": [1]}))
    with pytest.raises(DataError, match="not an Arrow file of series"):
        ArrowDataset(path)
    for other in (tmp_path, tmp_path / "missing.arrow"):
        with pytest.raises(DataError, match="not an Arrow file of series"):
            ArrowDataset(other)


def test_what_is_no_irregular_series_of_one_schema_is_not_written(
    univariate, multivariate, tmp_path
):
    path = tmp_path / "new.arrow"
    with pytest.raises(DataError, match="no entries"):
        write_arrow(path, [])
    with pytest.raises(DataError, match="regular"):
        write_arrow(path, [{"start": pd.Period("2024", "D"), "target": np.ones(3)}])
    renamed = IrregularDataset.from_long_dataframe(
        pd.DataFrame({"item_id": "x", "timestamp": [0.0, 1.0], "BP": 1.0}), target="BP"
    )
    with pytest.raises(DataError, match="item 'x', field 'info'"):
        write_arrow(path, chain(univariate, renamed))
    assert not path.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_learns_the_same_from_a_file(kind, stored, datasets, make_estimator):
    predictors = [
        make_estimator(GRUEstimator).train(data, validation_data=data)
        for data in (datasets[kind], stored(kind))
    ]
    weights = [predictor.network.state_dict() for predictor in predictors]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert predictors[0].reader == predictors[1].reader


def test_windows_are_cut_from_the_file_after_a_split_too(stored, univariate):
    dataset = stored("univariate")
    lengths = {"prediction_length": 3, "context_length": 8}
    splitter = TimeSplitter(after="24h", horizon="6h")
    for cut in (splitter.split, lambda data: split(data, offset=-4)):
        from_file = IrregularDataModule(cut(dataset)[0], dataset, **lengths, batch_size=4)
        in_memory = IrregularDataModule(cut(univariate)[0], univariate, **lengths, batch_size=4)
        assert isinstance(from_file.training_windows.data, ArrowDataset)
        assert isinstance(from_file.validation_windows.data, ArrowDataset)
        assert len(pickle.dumps(from_file.training_windows)) < 10_000
        for loader in ("train_dataloader", "val_dataloader"):
            loaders = [getattr(data, loader)() for data in (from_file, in_memory)]
            for one, other in zip(*loaders, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_forecasts_from_a_file_are_the_same(stored, univariate):
    dataset = stored("univariate")
    splitter = TimeSplitter(after="24h", horizon="6h")
    length = splitter.prediction_length(dataset)
    assert length == splitter.prediction_length(univariate)
    predictor = HoldPredictor.fit(dataset, length)
    for one, other in zip(
        *(
            predictor.predict(splitter.split(data)[1].generate_instances(length).input)
            for data in (dataset, univariate)
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(one.quantile(0.9), other.quantile(0.9))


def test_statistics_do_not_depend_on_the_chunks(stored, monkeypatch):
    dataset = stored("multivariate")
    lengths = {"prediction_length": 3, "context_length": 8}
    whole = IrregularDataModule(dataset, **lengths).reader.statistics.to_dict()
    monkeypatch.setattr(statistics, "_CHUNK_ROWS", 30)
    chunked = IrregularDataModule(dataset, **lengths).reader.statistics.to_dict()
    assert whole != chunked
    for name, value in whole.items():
        np.testing.assert_allclose(chunked[name], value, rtol=1e-12, err_msg=name)


def long_parquet(frame: pd.DataFrame, path) -> None:
    frame.to_parquet(path, row_group_size=33)


@pytest.fixture
def small_batches(monkeypatch):
    """Parquet is read in batches that cut through the items."""
    from pyarrow import parquet

    read = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        parquet.ParquetFile, "iter_batches", lambda *args, **options: read(*args, 7, **options)
    )


def test_a_long_parquet_file_becomes_series(
    multivariate_frame, multivariate, roles, small_batches, tmp_path
):
    long_parquet(multivariate_frame, tmp_path / "long.parquet")
    parquet_to_arrow(tmp_path / "long.parquet", tmp_path / "series.arrow", **roles)
    assert_same_entries(multivariate, ArrowDataset(tmp_path / "series.arrow"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: pd.concat([frame[10:], frame[:1]]), "item 'p0'.*are not contiguous"),
        (lambda frame: frame.iloc[::-1], "item 'p7'.*not sorted"),
        (lambda frame: frame.drop(columns="HR"), "field 'HR': the Parquet file has no such column"),
        (
            lambda frame: frame.assign(timestamp=np.float32(1) + np.arange(160, dtype="float32")),
            "float32",
        ),
    ],
)
def test_bad_parquet_files_are_refused(change, message, univariate_frame, small_batches, tmp_path):
    long_parquet(change(univariate_frame), tmp_path / "long.parquet")
    with pytest.raises(DataError, match=message):
        parquet_to_arrow(tmp_path / "long.parquet", tmp_path / "series.arrow", target="HR")
    assert not (tmp_path / "series.arrow").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"target": []}, "no target is named"),
        ({"target": "HR", "feat_dynamic_real": ["HR"]}, "'HR': is named as target and again as"),
        ({"target": "HR", "feat_static_cat": ["item_id"]}, "'item_id': is named"),
    ],
)
def test_columns_of_a_parquet_file_have_one_role(columns, message, univariate_frame, tmp_path):
    long_parquet(univariate_frame, tmp_path / "long.parquet")
    with pytest.raises(DataError, match=message):
        parquet_to_arrow(tmp_path / "long.parquet", tmp_path / "series.arrow", **columns)
    assert not (tmp_path / "series.arrow").exists()


def test_items_without_windows_are_passed_over(tmp_path):
    frame = pd.DataFrame(
        {"item_id": ["a", "b", "b", "b"], "timestamp": [0.0, 0, 1, 2], "target": [1.0, 1, 2, 3]}
    )
    write_arrow(tmp_path / "few.arrow", IrregularDataset.from_long_dataframe(frame))
    with pytest.warns(DeltaflowWarning, match="1 of 2 items"):
        data = IrregularDataModule(
            ArrowDataset(tmp_path / "few.arrow"), prediction_length=1, context_length=2
        )
    assert len(data.training_windows) == 1


def test_names_of_items_are_stored_as_text(univariate, tmp_path):
    write_arrow(tmp_path / "series.arrow", [{**univariate[0], "item_id": 7}])
    assert ArrowDataset(tmp_path / "series.arrow")[0]["item_id"] == "7"


@pytest.mark.parametrize("entry", [7, {"start": 0}])
def test_what_is_no_entry_is_refused(entry, tmp_path):
    with pytest.raises(DataError, match=r"without a target; give entries of a GluonTS data set"):
        write_arrow(tmp_path / "series.arrow", [entry])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["target", "feat_static_real"])
def test_columns_of_a_parquet_file_are_named_in_a_list(option, univariate_frame, tmp_path):
    univariate_frame.to_parquet(tmp_path / "long.parquet")
    with pytest.raises(DataError, match=f"'{option}': 5 is not a list of columns"):
        parquet_to_arrow(tmp_path / "long.parquet", tmp_path / "series.arrow", **{option: 5})


def test_a_parquet_file_without_rows_is_refused(univariate_frame, tmp_path):
    univariate_frame.iloc[:0].to_parquet(tmp_path / "long.parquet")
    with pytest.raises(DataError, match="there are no entries to write"):
        parquet_to_arrow(tmp_path / "long.parquet", tmp_path / "series.arrow", target="HR")


def test_a_csv_file_is_no_parquet_file(univariate_frame, tmp_path):
    univariate_frame.to_csv(tmp_path / "long.csv")
    with pytest.raises(DataError, match=r"'.*long.csv' is not a Parquet file; .*read_csv"):
        parquet_to_arrow(tmp_path / "long.csv", tmp_path / "series.arrow", target="HR")
    assert not (tmp_path / "series.arrow").exists()


def test_a_full_disk_leaves_the_previous_file_and_names_it(univariate, tmp_path, little_room):
    path = tmp_path / "series.arrow"
    path.write_text("old")
    with little_room(100), pytest.raises(OSError, match=r"series\.arrow"):
        write_arrow(path, univariate)
    assert [file.name for file in tmp_path.iterdir()] == ["series.arrow"]
    assert path.read_text() == "old"


def test_an_error_of_the_source_names_the_source(univariate, tmp_path):
    def entries():
        yield univariate[0]
        (tmp_path / "gone.parquet").read_bytes()

    with pytest.raises(FileNotFoundError, match=r"gone\.parquet"):
        write_arrow(tmp_path / "series.arrow", entries())
    assert not list(tmp_path.iterdir())
