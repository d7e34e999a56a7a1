"""What leaves a data set is found again by name and level, never by position."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.common import ListDataset
from gluonts.dataset.split import split

from deltaflow import (
    ArrowDataset,
    DataError,
    DeltaflowWarning,
    GRUEstimator,
    HoldPredictor,
    IrregularDataModule,
    IrregularDataset,
    split_items_by,
    write_arrow,
)
from deltaflow.data.schema import Schema
from deltaflow.data.series import schema_of, series_of

WINDOWS = {"prediction_length": 2, "context_length": 4}
ROLES = {
    "target": ["HR", "T"],
    "feat_dynamic_real": ["dose", "rate"],
    "past_feat_dynamic_real": ["lab", "crp"],
    "feat_static_real": ["age", "weight"],
    "feat_static_cat": ["ward", "sex"],
}


def frame(wards: str = "ABC") -> pd.DataFrame:
    """Items named after their ward, in whose columns every number says where it comes from."""
    names = [name for role in list(ROLES)[:3] for name in ROLES[role]]
    parts = []
    for number, ward in enumerate(wards):
        values = {name: 100 * (1 + i) + np.arange(9) for i, name in enumerate(names)}
        static = {"age": 50 + number, "weight": 70 + number, "ward": ward, "sex": "fm"[number % 2]}
        parts.append(pd.DataFrame({"item_id": ward, "timestamp": range(9), **values, **static}))
    return pd.concat(parts, ignore_index=True)


def read(wards: str = "ABC", **roles) -> IrregularDataset:
    return IrregularDataset.from_long_dataframe(frame(wards), **{**ROLES, **roles})


def backwards() -> dict[str, list[str]]:
    return {role: names[::-1] for role, names in ROLES.items()}


def check_equal(one, other) -> None:
    for field, values in one._asdict().items():
        np.testing.assert_array_equal(values, getattr(other, field), err_msg=field)


def test_rows_and_codes_of_any_order_are_read_alike():
    schema = read().schema
    for entry, other in zip(read(), read(**backwards()), strict=True):
        check_equal(series_of(entry, schema), series_of(other, schema))


def test_the_codes_of_a_category_follow_its_levels():
    schema = read("BCD").schema
    wards = [int(series_of(entry, schema).static_cat[0]) for entry in read("ABCDE")]
    assert wards == [-1, 0, 1, 2, -1]


def test_a_code_beyond_the_levels_is_unknown():
    (entry, *_) = read()
    for code in (-1, -2, 3, 4, 100):
        entry["feat_static_cat"] = np.array([code, 1])
        assert series_of(entry, read().schema).static_cat.tolist() == [-1, 1]


@pytest.mark.parametrize("role", ROLES)
def test_a_missing_name_is_an_error_that_names_it(role):
    less = read(**{role: ROLES[role][1:]})
    missing = ROLES[role][0]
    with pytest.raises(DataError, match=f"item 'A', field '{missing}': is missing; .* in {role}"):
        series_of(less[0], read().schema)


def test_a_name_in_another_role_is_an_error_that_names_both():
    other = read(target=["HR"], past_feat_dynamic_real=["T", "lab", "crp"])
    with pytest.raises(DataError, match=r"'T': is in past_feat_dynamic_real; .* in target"):
        series_of(other[0], read().schema)


def test_what_the_model_does_not_know_is_ignored_with_one_warning():
    roles = {role: names[1:] for role, names in ROLES.items()}
    known = read(**roles)
    with pytest.warns(DeltaflowWarning) as warned:
        found = [series_of(entry, known.schema) for entry in read(**backwards())]
    for one, entry in zip(found, known, strict=True):
        check_equal(one, series_of(entry, known.schema))
    assert len(warned) == 1
    for role, names in ROLES.items():
        assert f"{role} '{names[0]}'" in str(warned[0].message)


def test_another_model_of_the_same_data_warns_as_well():
    entry = read()[0]
    for _ in range(2):
        with pytest.warns(DeltaflowWarning, match="feat_static_real 'age'"):
            series_of(entry, replace(read().schema, feat_static_real=()))


def test_what_is_ignored_need_not_be_readable():
    (entry, *_) = read(feat_static_real=["age"])
    entry["feat_static_real"] = ["unknown"]
    schema = replace(read().schema, feat_static_real=())
    with pytest.warns(DeltaflowWarning, match="feat_static_real 'age'"):
        assert series_of(entry, schema).static_real.size == 0


def test_one_channel_is_read_from_one_or_from_many():
    univariate = read(target="HR")
    with pytest.warns(DeltaflowWarning, match="target 'T'"):
        check_equal(
            series_of(read()[0], univariate.schema),
            series_of(univariate[0], univariate.schema),
        )
    alone = read(target=["HR"])
    check_equal(series_of(univariate[0], alone.schema), series_of(alone[0], alone.schema))
    with pytest.raises(DataError, match="field 'T': is missing"):
        series_of(univariate[0], read().schema)


def test_another_kind_of_time_is_refused():
    dated = frame().assign(
        timestamp=lambda f: pd.Timestamp("2024") + pd.to_timedelta(f["timestamp"], unit="h")
    )
    zoned = dated.assign(timestamp=dated["timestamp"].dt.tz_localize("Europe/Berlin"))
    elapsed, naive, berlin, tokyo = (
        IrregularDataset.from_long_dataframe(data, **ROLES)
        for data in (
            frame(),
            dated,
            zoned,
            zoned.assign(timestamp=zoned["timestamp"].dt.tz_convert("Asia/Tokyo")),
        )
    )
    for own, model, message in (
        (elapsed, naive, "item 'A', field 'info': time is given as elapsed numbers, .*timestamps"),
        (naive, elapsed, "time is given as timestamps, .*elapsed numbers"),
        (naive, berlin, "the timestamps have no time zone, those of the training data have one"),
        (berlin, naive, "the time zone Europe/Berlin, those of the training data have none"),
    ):
        with pytest.raises(DataError, match=message):
            series_of(own[0], model.schema)
    check_equal(series_of(berlin[0], berlin.schema), series_of(tokyo[0], berlin.schema))


def test_a_schema_changed_in_place_is_read_anew():
    dataset = read()
    schema = dataset.schema
    first = series_of(dataset[0], schema)
    dataset[0]["info"]["schema"]["target"].reverse()
    np.testing.assert_array_equal(series_of(dataset[0], schema).values[:, 1], first.values[:, 0])


def test_schemas_differ_by_the_order_of_names_levels_and_categories():
    schema = read().schema
    assert schema == Schema.from_dict(schema.to_dict())
    assert hash(schema) == hash(Schema.from_dict(schema.to_dict()))
    for role, names in backwards().items():
        assert read(**{role: names}).schema != schema
    levels = {**schema.feat_static_cat, "ward": ("B", "A", "C")}
    assert replace(schema, feat_static_cat=levels) != schema


def test_a_name_that_stands_twice_is_no_schema():
    plain = read().schema.to_dict()
    for role in ("target", "past_feat_dynamic_real"):
        with pytest.raises(ValueError, match="a name occurs twice"):
            Schema.from_dict({**plain, role: ["HR", "HR"]})


def test_categories_in_another_order_are_not_written_into_one_file(tmp_path):
    other = read("DE", feat_static_cat=["sex", "ward"])
    same_levels = [
        {
            **entry,
            "info": {
                **entry["info"],
                "schema": replace(
                    read().schema,
                    feat_static_cat=dict(reversed(read().schema.feat_static_cat.items())),
                ).to_dict(),
            },
        }
        for entry in other
    ]
    with pytest.raises(DataError, match="item 'D', field 'info': the schema differs from that of"):
        write_arrow(tmp_path / "both.arrow", [*read(), *same_levels])


def codes(windows) -> dict[str, int]:
    return {series.item_id: int(series.static_cat[0]) for series in windows.data}


def test_training_and_validation_items_have_the_codes_of_one_training_set():
    data = IrregularDataModule(read("ABC"), read("CZ"), **WINDOWS)
    assert codes(data.training_windows) == {"A": 0, "B": 1, "C": 2}
    assert codes(data.validation_windows) == {"C": 2, "Z": -1}


def test_a_training_list_of_several_data_sets_knows_all_levels():
    together = [*read("AB"), *read("CD", **backwards()), *read("AE")]
    data = IrregularDataModule(together, **WINDOWS)
    assert data.reader.schema == replace(
        read("ABCDE").schema, feat_static_cat={"ward": tuple("ABCDE"), "sex": ("f", "m")}
    )
    series = data.training_windows.data
    assert [int(one.static_cat[0]) for one in series] == [0, 1, 2, 3, 0, 4]
    for one in series:
        check_equal(one._replace(item_id="", static_real=0, static_cat=0),
                    series[0]._replace(item_id="", static_real=0, static_cat=0))  # fmt: skip


def test_a_training_list_whose_items_lack_what_others_have_is_refused():
    less = read("CD", target=["HR"])
    with pytest.raises(DataError, match="item 'C', field 'T': is missing"):
        schema_of([*read("AB"), *less])
    with pytest.raises(DataError, match="item 'C', field 'T': is missing"):
        schema_of([*less, *read("AB")])


def test_items_are_split_by_level_whatever_the_codes():
    both = IrregularDataset([*read("AB"), *read("BC")], read("AB").schema)
    parts = split_items_by(both, "ward")
    named = {name: [entry["item_id"] for entry in part] for name, part in parts.items()}
    assert named == {"A": ["A"], "B": ["B", "B"], "C": ["C"]}


def test_a_file_is_read_by_name_too(tmp_path):
    write_arrow(tmp_path / "backwards.arrow", read("BC", **backwards()))
    stored = ArrowDataset(tmp_path / "backwards.arrow")
    from_file = IrregularDataModule(read("ABC"), stored, **WINDOWS).validation_windows.data
    in_memory = IrregularDataModule(read("ABC"), read("BC"), **WINDOWS).validation_windows.data
    for one, other in zip(from_file, in_memory, strict=True):
        check_equal(one, other)


def test_hold_fits_several_data_sets_by_name():
    data, other = read("AB"), read("CD", **backwards())
    one, two = (HoldPredictor.fit([*data, *more], 2) for more in (read("CD"), other))
    np.testing.assert_array_equal(one.center, two.center)


@pytest.mark.parametrize("train", [GRUEstimator(2).train, lambda data: HoldPredictor.fit(data, 2)])
@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"start": pd.Timestamp("2024-01-01")}, "is a Timestamp, not a pandas Period"),
        ({"start": "2024-01-01"}, "is a str, not a pandas Period"),
        ({}, "is missing"),
    ],
    ids=["timestamp", "text", "absent"],
)
def test_a_regular_entry_needs_a_period(train, start, message):
    good = {"start": pd.Period("2024-01-01", "h"), "target": np.arange(50.0)}
    bad = {"item_id": "b", "target": np.arange(50.0), **start}
    for data in ([bad], [good, bad]):
        with pytest.raises(DataError, match=rf"item 'b', field 'start': {message}; .*ListDataset"):
            train(data)


def test_regular_data_have_one_frequency(make_estimator):
    def series(freq: str) -> list[dict]:
        return ListDataset(
            [{"item_id": freq, "start": "2024-01-01", "target": np.arange(50.0)}], freq
        )

    with pytest.raises(DataError, match=r"item 'D', field 'start': the frequency is 'D', .* 'h'"):
        make_estimator(GRUEstimator).train([*series("h"), *series("D")])
    predictor = HoldPredictor.fit([*series("h"), *series("60min")], 2)
    assert len(list(predictor.predict(series("60min")))) == 1
    with pytest.raises(DataError, match="item '2h', field 'start': the frequency is '2h'"):
        list(predictor.predict(series("2h")))
    weekly = HoldPredictor.fit(series("W-SUN"), 2)
    assert len(list(weekly.predict(series("W-WED")))) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (frame(), r"a DataFrame is not a data set; .*IrregularDataset.from_long_dataframe"),
        (read()[0], "a single entry is not a data set"),
        ("data.csv", "a str is not a data set"),
        (5, "a int is not a data set"),
        ([(1, 2)], "an entry of the data set is a tuple without a target"),
        (split(read(), offset=-2)[1].generate_instances(2), "a TestData holds pairs"),
    ],
    ids=["frame", "entry", "path", "number", "pairs", "test data"],
)
def test_what_is_not_a_data_set_is_refused(wrong, message):
    predictor = HoldPredictor.fit(read(), 2)
    for use in (
        GRUEstimator(2).train,
        lambda d: HoldPredictor.fit(d, 2),
        lambda d: list(predictor.predict(d)),
    ):
        with pytest.raises(DataError, match=message):
            use(wrong)


def test_data_of_the_training_schema_are_read_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schema = read().schema
        assert [series_of(entry, schema).item_id for entry in read()] == ["A", "B", "C"]


def test_a_schema_of_lists_is_that_of_tuples():
    schema = read().schema
    assert hash(Schema(**schema.to_dict())) == hash(schema)
    assert Schema(**schema.to_dict()) == schema


def test_of_several_data_sets_each_unknown_name_is_told_once():
    schema = read(target=["HR"], feat_static_real=["age"]).schema
    parts = read(feat_static_real=["age"]), read(target=["HR"]), read()
    with pytest.warns(DeltaflowWarning) as warned:
        assert len([series_of(entry, schema) for part in (*parts, *parts) for entry in part]) == 18
    assert [str(one.message).partition("ignored: ")[2] for one in warned] == [
        "target 'T'", "feat_static_real 'weight'",
    ]  # fmt: skip


def test_features_that_are_none_are_absent():
    fields = dict.fromkeys(list(ROLES)[1:])
    entry = {"start": pd.Period("2024-01-01", "h"), "target": np.arange(50.0), **fields}
    assert schema_of([entry]).feat_static_cat == {}
    assert series_of(entry, schema_of([entry])).length == 50
