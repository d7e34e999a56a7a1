"""Whatever DataFrame comes: finite forecasts of exactly what was asked, or an error that says why.

Frames are drawn at random: from nanoseconds to centuries between observations, subnormal to huge
values, any share of missing ones, every dtype that pandas has for numbers, times and names.
`make fuzz` draws many more of them. From files they come as they do from memory.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given, note, reject, settings
from hypothesis import strategies as st

from deltaflow import (
    ArrowDataset,
    DataError,
    DeltaflowError,
    GRUFlowEstimator,
    HoldPredictor,
    IrregularDataset,
    IrregularPredictor,
    parquet_to_arrow,
    predict_df,
    write_arrow,
)

LEVELS = (0.1, 0.5, 0.9)
QUERIES = 4
ZONES = (None, "UTC", "Europe/Berlin", "Asia/Kathmandu")
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
CENTURY = 100 * 365 * 86400
FIRST, LAST = "1678-01-01", "2262-01-01"  # what nanoseconds can hold

MAGNITUDES = {  # exponents of ten
    "plain": (-1, 2), "tiny": (-323, -300), "large": (90, 99.9), "any": (-300, 99), "equal": None,
}  # fmt: skip
FLOATS = ("float64", "float32", "float16", "Float64", "Float32", "Sparse[float]",
          "double[pyarrow]", "float[pyarrow]", "object")  # fmt: skip
INTEGERS = ("int64", "int8", "uint64", "Int64", "UInt8", "int64[pyarrow]", "object")
BOOLEANS = ("bool", "boolean", "bool[pyarrow]", "object")
ITEMS = ("object", "int64", "Int64", "float64", "string", "string[pyarrow]", "category", "mixed",
         "tuple", "datetime64[ns]")  # fmt: skip
SHARES = (0.0, 0.3, 0.95, 1.0)
LABELS = ("range", "equal", "text", "multi")

# What breaks a frame, and the field that its error must name.
FAULTS = {
    "unsorted": "timestamp", "duplicate": "timestamp", "no time": "timestamp",
    "time as text": "timestamp", "infinite": "c0", "too large": "c0", "text": "c0", "complex": "c0",
    "category": "c0", "no item": "item_id", "early query": "timestamp", "unknown item": None,
    "list as item": "item_id",
    "no such channel": "c0", "other zone": "timestamp", "one zone": "timestamp",
}  # fmt: skip

IN_FUTURE = ("no item", "early query", "unknown item", "one zone")
"""What is wrong with the future rather than with the past."""

WRONG_VALUES = {
    "infinite": np.inf,
    "too large": -1.7976931348623157e308,
    "text": "3",
    "complex": 1j,
}
LIMITS = (
    "too close to the previous one to be distinguished in float64",
    "longer than 1e+18 seconds",
    "longer than 1e+30 typical gaps",
)
"""What numbers cannot do, although nothing else is wrong with a frame."""

UNLEARNABLE = ("missing everywhere", "has an observed target after another observation")
"""Why there may be nothing to train on."""


@dataclass
class Case:
    """A past to read and a future to ask for, and what is wrong with them, if anything."""

    past: pd.DataFrame
    future: pd.DataFrame
    channels: list[str]
    elapsed: bool
    zone: str | None
    fault: str | None
    inside: pd.DataFrame | None = None
    """The past with the future rows in it, their targets empty; None if it is broken, or long."""


def random_values(
    draw, random: np.random.Generator, rows: int, complete: bool = False
) -> pd.Series:
    """A column of numbers of a random dtype and size."""
    kind = draw(st.sampled_from(["float", "integer", "boolean"]))
    missing = random.random(rows) < draw(st.sampled_from([0.0] if complete else SHARES))
    if kind == "float":
        dtype = draw(st.sampled_from(FLOATS))
        exponents = MAGNITUDES[draw(st.sampled_from(list(MAGNITUDES)))]
        if exponents is None:
            values = np.full(rows, random.normal())
        else:
            values = random.choice([-1, 1], rows) * 10.0 ** random.uniform(*exponents, rows)
        width = {"float16": "float16", "float32": "float32", "Float32": "float32",
                 "float[pyarrow]": "float32"}.get(dtype, "float64")  # fmt: skip
        largest = min(float(np.finfo(width).max), 1e100)
        values = np.clip(values, -largest, largest)
    elif kind == "integer":
        dtype = draw(st.sampled_from(INTEGERS))
        narrow = {"int8": "int8", "uint64": "uint64", "UInt8": "uint8"}.get(dtype, "int64")
        bounds = np.iinfo(narrow)
        values = random.integers(bounds.min, bounds.max, rows, dtype=narrow, endpoint=True)
        if draw(st.booleans()):
            values = (values % 100).astype(narrow)
    else:
        dtype = draw(st.sampled_from(BOOLEANS))
        values = random.random(rows) < 0.5
    if dtype in ("int64", "int8", "uint64", "bool"):
        return pd.Series(values, dtype=dtype)
    objects = pd.Series(list(values.tolist()), dtype=object)
    if dtype == "object":
        empty = random.choice(np.array([None, np.nan, pd.NA], dtype=object), rows)
        return objects.where(~missing, pd.Series(empty, dtype=object))
    if dtype in ("float64", "float32", "float16", "Sparse[float]"):
        return pd.Series(np.where(missing, np.nan, values)).astype(dtype)
    return objects.where(~missing, None).astype(dtype)


def random_ticks(draw, random: np.random.Generator, rows: int, unit: str) -> np.ndarray:
    """Increasing counts of a unit since 1970, from one tick to centuries apart."""
    low, high = (int(np.datetime64(day, unit).astype("int64")) for day in (FIRST, LAST))
    room = (high - low) // (2 * max(rows, 1))
    longest = draw(st.sampled_from([1, 60, 3600, 10**6, CENTURY])) * PER_SECOND[unit]
    shortest = draw(st.sampled_from([1, longest]))
    exponents = random.uniform(np.log(shortest), np.log(longest), rows)
    gaps = np.clip(np.exp(exponents).astype("int64"), 1, room)
    start = random.integers(low, low + (high - low) // 2)
    return start + gaps.cumsum()


def apart(numbers: np.ndarray) -> np.ndarray:
    """Move equal neighbours apart by as little as float64 can."""
    for row in range(1, len(numbers)):
        numbers[row] = max(numbers[row], np.nextafter(numbers[row - 1], np.inf))
    return numbers


def as_times(ticks: np.ndarray, unit: str, zone: str | None, dtype: str) -> pd.Series:
    index = pd.DatetimeIndex(ticks.astype(f"datetime64[{unit}]"))
    index = index if zone is None else index.tz_localize("UTC").tz_convert(zone)
    column = pd.Series(index)
    if dtype == "object":
        return column.astype(object)
    if dtype == "pyarrow":
        return column.astype(pd.ArrowDtype(pa.timestamp(unit, tz=zone)))
    return column


def random_items(draw, count: int) -> pd.Series:
    dtype = draw(st.sampled_from(ITEMS))
    if dtype in ("int64", "Int64"):
        return pd.Series([7 - 3 * n for n in range(count)], dtype=dtype)
    if dtype == "float64":
        return pd.Series([0.5 + n for n in range(count)])
    if dtype == "datetime64[ns]":
        return pd.Series(pd.date_range("2024-01-01", periods=count, freq="D"))
    if dtype == "tuple":
        return pd.Series([(n, "p") for n in range(count)])
    if dtype == "mixed":
        return pd.Series([n if n % 2 else f"p{n}" for n in range(count)], dtype=object)
    return pd.Series([f"p{count - n}" for n in range(count)], dtype=dtype)


def other_type(draw, items: pd.Series) -> pd.Series:
    """The same identifiers in another type, in which they read the same."""
    if pd.api.types.is_integer_dtype(items.dtype):
        return items.astype(draw(st.sampled_from(["int64", "Int64", "float64", "str", "object"])))
    if isinstance(items.iloc[0], str):
        return items.astype(draw(st.sampled_from(["object", "string", "category"])))
    return items


def reads(items: pd.Series) -> pd.Series:
    """How identifiers read, in any type."""
    return items.map(lambda item: str(int(item)) if isinstance(item, float) and item % 1 == 0
                     else str(item)).astype(object)  # fmt: skip


def with_future(case: Case) -> pd.DataFrame:
    """The past with those rows of the future in it that lie after it, nothing observed in them."""
    past, future = case.past, case.future
    own = reads(past["item_id"]).groupby(reads(past["item_id"])).indices
    names = reads(future["item_id"])
    times = future["timestamp"].astype(object)
    if case.zone is not None:
        times = times.map(lambda time: time.tz_convert(case.zone))
    last = past["timestamp"].astype(object)
    later = [t > last.iloc[own[name][-1]] for t, name in zip(times, names, strict=True)]
    rows = future.assign(timestamp=times, read=names)[later]
    rows = rows.drop_duplicates(["read", "timestamp"]).sort_values("timestamp")
    columns = {}
    for name in past.columns:
        if name in (*case.channels, "lab"):
            new = [None] * len(rows)
        elif name in rows:
            new = rows[name].astype(object).tolist()
        else:  # static
            new = [past[name].iloc[own[item][0]] for item in rows["read"]]
        columns[name] = pd.Series([*past[name].astype(object), *new], dtype=object)
    return pd.DataFrame({**columns, "timestamp": columns["timestamp"].infer_objects()})


def labelled(draw, random: np.random.Generator, frame: pd.DataFrame) -> pd.DataFrame:
    kind, rows = draw(st.sampled_from(LABELS)), len(frame)
    if kind == "equal":
        frame.index = pd.Index([0] * rows)
    elif kind == "text":
        frame.index = pd.Index([f"row {n}" for n in random.permutation(rows)], dtype=object)
    elif kind == "multi":
        frame.index = pd.MultiIndex.from_arrays([[1] * rows, range(rows)])
    return frame


@st.composite
def cases(draw) -> Case:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.sampled_from([1, 2, 3, 5, 12, 40]), min_size=1, max_size=4))
    if draw(st.integers(0, 19)) == 0:
        lengths[0] = 2000
    channels = [f"c{n}" for n in range(draw(st.sampled_from([1, 3, 50])))]
    elapsed = draw(st.booleans())
    zone = None if elapsed else draw(st.sampled_from(ZONES))
    unit = draw(st.sampled_from(list(PER_SECOND)))
    dtype = draw(st.sampled_from(["datetime64", "object", "pyarrow"]))
    exponent = draw(st.sampled_from([-300, -9, 0, 9, 200, 289]))

    past, future, items = [], [], []
    for number, length in enumerate(lengths):
        queries = draw(st.integers(0 if number else 1, QUERIES))
        ticks = random_ticks(draw, random, length + queries, unit)
        if elapsed:
            ticks = apart(ticks * 10.0**exponent)
        if draw(st.booleans()):
            ticks[length:] = ticks[length - 1]  # asked at the last observation
        past.append(ticks[:length])
        future.append(random.permutation(ticks[length:]))
        items += [number] * length

    def times(parts: list[np.ndarray], zone: str | None = zone) -> pd.Series:
        ticks = np.concatenate(parts)
        if elapsed and exponent == 0 and dtype != "datetime64":
            return pd.Series(ticks.astype("int64")).astype("Int64")
        return pd.Series(ticks) if elapsed else as_times(ticks, unit, zone, dtype)

    names = random_items(draw, len(lengths))
    asked = np.repeat(np.arange(len(lengths)), [len(part) for part in future])
    frame = pd.DataFrame({"item_id": names.iloc[items].array, "timestamp": times(past).array})
    same = random_values(draw, random, len(frame))
    for channel in channels:
        few = len(channels) <= 3
        frame[channel] = (random_values(draw, random, len(frame)) if few else same).array
    future_zone = zone and draw(st.sampled_from(ZONES[1:]))
    questions = pd.DataFrame(
        {
            "item_id": other_type(draw, names.iloc[asked]).array,
            "timestamp": times(future, future_zone).array,
        }
    )
    if len(channels) == 3:
        known = random_values(draw, random, len(frame) + len(questions), complete=True)
        frame["dose"] = known[: len(frame)].array
        questions["dose"] = known[len(frame) :].array
        frame["lab"] = random_values(draw, random, len(frame)).array
        frame["age"] = random_values(draw, random, len(lengths)).iloc[items].array
        frame["ward"] = random_values(draw, random, len(lengths)).iloc[items].array
        if draw(st.booleans()):
            frame["ward"] = frame["ward"].astype(str).astype("category")

    if draw(st.booleans()):  # the rows of the items need not stand together
        order = random.permutation(len(frame))
        place = np.empty(len(frame), dtype=int)
        for number in range(len(lengths)):
            own = np.flatnonzero(np.array(items)[order] == number)
            place[own] = np.flatnonzero(np.array(items) == number)
        frame = frame.iloc[place].reset_index(drop=True)
    questions = questions.iloc[random.permutation(len(questions))].reset_index(drop=True)
    fault = draw(st.sampled_from([*[None] * 8, *FAULTS]))
    fault = None if not fits(fault, elapsed, lengths) else fault
    case = Case(frame, questions, channels, elapsed, zone, fault)
    break_frame(case)
    if case.fault is None and len(frame) < 100:
        case.inside = with_future(case)
    case.past, case.future = labelled(draw, random, case.past), labelled(draw, random, case.future)
    return case


def fits(fault: str | None, elapsed: bool, lengths: list[int]) -> bool:
    if fault in ("unsorted", "duplicate", "early query"):
        return lengths[0] > 1
    return not (fault in ("other zone", "one zone") and elapsed)


def break_frame(case: Case) -> None:
    """Put the fault of the case into its frames."""
    past, future, fault = case.past, case.future, case.fault
    rows = np.flatnonzero(reads(past["item_id"]) == reads(future["item_id"].iloc[:1]).iloc[0])
    seen = past[[*case.channels, *past.columns.intersection(["lab"])]].iloc[rows[-1]].notna().any()
    few = fault in ("unsorted", "duplicate", "early query") and len(rows) < 2
    if few or (fault == "early query" and not seen):
        case.fault = None
    elif fault == "unsorted":
        swapped = past["timestamp"].iloc[[rows[-1], rows[-2]]].array
        past.loc[rows[-2:], "timestamp"] = swapped
    elif fault == "duplicate":
        past.loc[rows[-1], "timestamp"] = past["timestamp"].iloc[rows[-2]]
    elif fault == "no time":
        past.loc[rows[-1], "timestamp"] = None if case.elapsed else pd.NaT
    elif fault == "time as text":
        past["timestamp"] = past["timestamp"].astype(str).astype(object)
    elif fault in WRONG_VALUES:
        past["c0"] = past["c0"].astype(object)
        past.loc[rows[-1], "c0"] = WRONG_VALUES[fault]
    elif fault == "category":
        past["c0"] = pd.Categorical(["a"] * len(past))
    elif fault == "no item":
        future["item_id"] = future["item_id"].astype(object)
        future.loc[0, "item_id"] = None
    elif fault == "list as item":
        past["item_id"] = pd.Series([[1]] * len(past), dtype=object)
    elif fault == "early query":
        future.loc[0, "timestamp"] = past["timestamp"].iloc[rows[-2]]
    elif fault == "unknown item":
        future["item_id"] = future["item_id"].astype(object)
        future.loc[0, "item_id"] = "nobody"
    elif fault == "no such channel":
        case.past = past.drop(columns="c0")
    elif fault == "other zone":
        change = "UTC" if case.zone is None else None
        for frame in (past, future):
            frame["timestamp"] = pd.Series(pd.DatetimeIndex(frame["timestamp"]).tz_localize(change))
    elif fault == "one zone":
        change = "UTC" if case.zone is None else None
        future["timestamp"] = pd.Series(pd.DatetimeIndex(future["timestamp"]).tz_localize(change))


@pytest.fixture(scope="module")
def predictor_for(make_frame, make_estimator, roles):
    """A function ``(kind, case) -> predictor`` that trains one per kind and number of channels."""

    @cache
    def trained(kind: str, channels: tuple[str, ...]):
        target = channels[0] if len(channels) == 1 else list(channels)
        others = {role: roles[role] for role in roles if role != "target" and len(channels) == 3}
        data = IrregularDataset.from_long_dataframe(make_frame(channels), target=target, **others)
        if kind == "hold":
            return HoldPredictor.fit(data, QUERIES)
        options = {"network": "channelwise", "scaling": "last"} if kind == "channelwise" else {}
        return make_estimator(GRUFlowEstimator, **options).train(data)

    def get(kind: str, case: Case):
        predictor = trained(kind, tuple(case.channels))
        time = "elapsed" if case.elapsed else "timestamp"
        schema = replace(predictor.schema, time=time, time_zone=case.zone)
        if kind == "hold":
            return HoldPredictor(
                QUERIES,
                schema.to_dict(),
                levels=predictor.levels.tolist(),
                leads=predictor.leads,
                changes=predictor.changes,
                values=predictor.values.tolist(),
                center=predictor.center.tolist(),
            )
        other = IrregularPredictor(
            replace(predictor.reader, schema=schema).to_dict(),
            predictor.prediction_length,
            predictor.network_arguments,
        )
        other.network.load_state_dict(predictor.network.state_dict())
        return other

    return get


def check_answer(answer: pd.DataFrame, case: Case) -> None:
    """What was asked, in its order, with finite and ordered quantiles."""
    repeated = case.future.iloc[np.repeat(np.arange(len(case.future)), len(case.channels))]
    expected = repeated[["item_id", "timestamp"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(answer[["item_id", "timestamp"]], expected)
    assert answer["target_name"].tolist() == case.channels * len(case.future)
    numbers = answer[["predictions", *map(str, LEVELS)]].to_numpy()
    assert np.isfinite(numbers).all(), numbers[~np.isfinite(numbers).all(1)]
    assert (np.diff(numbers[:, 1:], axis=1) >= 0).all()


def check_error(error: DataError, case: Case) -> None:
    """It names the place; and there was something wrong, or too much for float64."""
    note(f"refused: {error}")
    if case.fault is None:
        assert any(limit in str(error) for limit in LIMITS)
    elif not any(limit in str(error) for limit in LIMITS):
        field = FAULTS[case.fault]
        assert error.field == field
        assert field is not None or error.item == "nobody"
        if case.fault != "no such channel":
            assert error.frame == ("future_df" if case.fault in IN_FUTURE else "past_df")


@given(case=cases(), kind=st.sampled_from(["joint", "channelwise", "hold"]))
def test_any_frame_is_forecast_or_refused_with_its_place(predictor_for, case, kind):
    past, future = case.past.copy(deep=True), case.future.copy(deep=True)
    predictor = predictor_for(kind, case)
    try:
        answer = predict_df(predictor, case.past, case.future, quantile_levels=LEVELS)
    except DataError as error:
        check_error(error, case)
    else:
        assert case.fault is None
        check_answer(answer, case)
        if case.inside is not None:
            again = predict_df(predictor, case.inside, case.future, quantile_levels=LEVELS)
            pd.testing.assert_frame_equal(again, answer)
    pd.testing.assert_frame_equal(case.past, past)
    pd.testing.assert_frame_equal(case.future, future)


def read_back(dataset: IrregularDataset, case: Case) -> None:
    """Every row of every item is there, in its order."""
    items = pd.unique(case.past["item_id"].astype(object))
    assert [entry["item_id"] for entry in dataset] == [str(item) for item in items]
    for entry, item in zip(dataset, items, strict=True):
        own = case.past[[other == item for other in case.past["item_id"]]]
        target = np.atleast_2d(entry["target"])
        assert target.shape == (len(case.channels), len(own))
        expected = own[case.channels].astype(object).apply(pd.to_numeric, errors="coerce")
        np.testing.assert_array_equal(target, expected.to_numpy("float64", na_value=np.nan).T)
        elapsed = entry["feat_dynamic_real"][0]
        assert (np.diff(elapsed) > 0).all()


@given(case=cases(), kind=st.sampled_from(["joint", "channelwise", "hold"]))
@settings(max_examples=max(5, settings().max_examples // 10))
def test_any_frame_is_learned_from_or_refused(make_estimator, roles, case, kind):
    if case.fault == "other zone":  # than that of an earlier training run
        case.fault = None
    univariate = len(case.channels) == 1
    others = {role: roles[role] for role in roles if role != "target" and len(case.channels) == 3}
    target = case.channels[0] if univariate else case.channels
    try:
        data = IrregularDataset.from_long_dataframe(case.past, target=target, **others)
        read_back(data, case)
        if kind == "hold":
            predictor = HoldPredictor.fit(data, QUERIES)
        else:
            options = {"num_batches_per_epoch": 1, "network": kind}
            predictor = make_estimator(GRUFlowEstimator, **options).train(data)
        answer = predict_df(predictor, case.past, case.future, quantile_levels=LEVELS)
    except DeltaflowError as error:
        note(f"refused: {error}")
        known = any(limit in str(error) for limit in (*LIMITS, *UNLEARNABLE))
        assert known or case.fault is not None
    else:
        assert case.fault is None
        check_answer(answer, case)


def with_queries(entry: dict) -> dict:
    """The entry that asks for its own last times, known no more, as `predict` expects it."""
    asked = min(QUERIES, entry["target"].shape[-1])
    padding = [(0, 0), (0, QUERIES - asked)]
    known = np.pad(entry["feat_dynamic_real"], padding, constant_values=np.nan)
    past = {
        name: entry[name][..., :-asked]
        for name in ("target", "past_feat_dynamic_real")
        if name in entry
    }
    return {**entry, **past, "feat_dynamic_real": known}


def outcome(make) -> list[dict] | DataError:
    try:
        return list(make())
    except DataError as error:
        return error


def check_same(one, other) -> None:
    """The same arrays, bit for bit, or an error of the same place."""
    note(f"{one!r}\n{other!r}")
    if isinstance(one, DataError):
        assert isinstance(other, DataError)
        assert (str(one.item), one.field) == (str(other.item), other.field)
    else:
        np.testing.assert_equal(one, other)


@given(case=cases(), kind=st.sampled_from(["joint", "channelwise", "hold"]))
@settings(max_examples=max(10, settings().max_examples // 4))
def test_any_frame_in_a_file_is_read_and_forecast_as_in_memory(predictor_for, roles, case, kind):
    assume(case.fault != "list as item")
    options = {role: roles[role] for role in roles if role != "target" and len(case.channels) == 3}
    options["target"] = case.channels[0] if len(case.channels) == 1 else case.channels
    items = pd.factorize(case.past["item_id"])[0]
    with TemporaryDirectory() as folder:
        source, converted, written = (Path(folder, name) for name in ("parquet", "one", "two"))
        try:
            together = case.past.iloc[np.argsort(items, kind="stable")]
            together.to_parquet(source, index=False)
        except (pa.ArrowException, TypeError, ValueError):
            reject()  # Parquet cannot hold it
        frame = pd.read_parquet(source)
        expected = outcome(lambda: IrregularDataset.from_long_dataframe(frame, **options))
        if isinstance(expected, DataError) and "missing everywhere" in str(expected):
            return  # a file may hold such a channel

        def converted_frame() -> ArrowDataset:
            parquet_to_arrow(source, converted, **options)
            return ArrowDataset(converted)

        check_same(expected, outcome(converted_frame))
        if isinstance(expected, DataError):
            return
        write_arrow(written, expected)
        check_same(expected, list(ArrowDataset(written)))

        predictor = predictor_for(kind, case)

        def forecasts(entries) -> list[np.ndarray]:
            asked = map(with_queries, entries)
            return [forecast.quantile(0.9) for forecast in predictor.predict(asked)]

        check_same(
            outcome(lambda: forecasts(expected)),
            outcome(lambda: forecasts(ArrowDataset(converted))),
        )
