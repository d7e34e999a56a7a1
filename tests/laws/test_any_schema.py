"""Whatever order, surplus or lack of columns and levels: the same forecasts by name, or an error.

Data sets are drawn that hold the same items as others, but with columns in another order, in part
missing or beside unknown ones, with one channel or several, and with other levels. `make fuzz`
draws many more of them.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.split import split
from gluonts.ev.metrics import MAE, MSE, MeanWeightedSumQuantileLoss
from gluonts.model.evaluation import evaluate_model
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaflow import (
    ArrowDataset,
    DataError,
    DeltaflowWarning,
    EnsemblePredictor,
    GRUFlowEstimator,
    HoldPredictor,
    IrregularDataModule,
    IrregularDataset,
    write_arrow,
)
from deltaflow.data.series import schema_of, series_of
from deltaflow.data.windows import LabelledWindows

QUERIES = 4
NAMES = {
    "target": ("HR", "MAP", "SpO2"),
    "feat_dynamic_real": ("dose", "rate"),
    "past_feat_dynamic_real": ("lab", "crp"),
    "feat_static_real": ("age", "weight"),
    "feat_static_cat": ("ward", "sex"),
}
LEVELS = {"ward": ("er", "icu", "or"), "sex": ("f", "m")}
"""What the models know; the data may hold others."""

WARDS = [*LEVELS["ward"], *LEVELS["ward"]]
"""Those of the items that the models are trained on."""

SURPLUS = {role: tuple(f"{role}_{n}" for n in range(2)) for role in NAMES}
KINDS = {
    "joint": {},
    "channelwise": {"network": "channelwise", "scaling": "last"},
    "quantiles": {"distr_output": "quantile"},
    "paths": {"sampling": "path", "num_parallel_samples": 5},
    "one channel": {},
}
"""Options of the estimator."""

METRICS = [MSE(), MAE(), MeanWeightedSumQuantileLoss([0.1, 0.9])]


@dataclass
class Layout:
    """What a data set holds, in its order, and the wards of its items."""

    names: dict[str, list[str]]
    wards: list[str]
    missing: str | None

    def surplus(self, known: dict[str, tuple[str, ...]]) -> set[str]:
        return {name for role in known for name in self.names[role] if name not in known[role]}


def known_names(kind: str) -> dict[str, tuple[str, ...]]:
    """What a model of a kind knows."""
    return {**NAMES, "target": ("MAP",)} if kind == "one channel" else NAMES


@cache
def frame(wards: tuple[str, ...]) -> pd.DataFrame:
    """A frame of all columns that any layout has: the same numbers for the same name and item."""
    random = np.random.default_rng(7)
    parts = []
    for number, ward in enumerate(wards):
        length = 10 + 3 * number
        columns: dict = {"item_id": f"p{number}", "timestamp": random.exponential(2.0, length)}
        columns["timestamp"] = columns["timestamp"].cumsum()
        for role, names in NAMES.items():
            for place, name in enumerate((*names, *SURPLUS[role])):
                if role == "feat_static_cat":
                    columns[name] = {"ward": ward, "sex": "fm"[number % 2]}.get(name, f"x{number}")
                elif role == "feat_static_real":
                    columns[name] = 10.0 * place + number
                else:
                    values = 100.0 * place + random.normal(size=length)
                    gaps = random.random(length) < (0.0 if role == "feat_dynamic_real" else 0.3)
                    columns[name] = np.where(gaps, np.nan, values)
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def read(names: dict, wards: list[str]) -> IrregularDataset:
    roles = {role: list(own) for role, own in names.items()}
    if len(roles["target"]) == 1:
        roles["target"] = roles["target"][0]
    return IrregularDataset.from_long_dataframe(frame(tuple(wards)), **roles)


@st.composite
def layouts(draw, known: dict[str, tuple[str, ...]] | None = None) -> Layout:
    known = NAMES if known is None else known
    names = {}
    for role, own in NAMES.items():
        more = draw(st.lists(st.sampled_from(SURPLUS[role]), unique=True, max_size=2))
        names[role] = draw(st.permutations([*own, *more]))
    if draw(st.booleans()):  # of channels, those alone that the model knows
        names["target"] = draw(st.permutations(known["target"]))
    missing = None
    if draw(st.integers(0, 3)) == 0:
        role = draw(st.sampled_from(list(known)))
        missing = draw(st.sampled_from(known[role]))
        names[role] = [name for name in names[role] if name != missing]
        if not names["target"]:
            names["target"] = [SURPLUS["target"][0]]
    wards = draw(st.lists(st.sampled_from([*LEVELS["ward"], "lab", "a"]), min_size=2, max_size=5))
    return Layout(names, wards, missing)


@pytest.fixture(scope="module")
def predictor_of(make_estimator):
    """A function ``kind -> predictor`` that trains each once."""

    @cache
    def get(kind: str):
        data = read(known_names(kind), WARDS)
        if kind == "hold":
            return HoldPredictor.fit(data, QUERIES)
        if kind == "ensemble":
            backwards = {role: own[::-1] for role, own in NAMES.items()}
            return EnsemblePredictor(
                [get("joint"), HoldPredictor.fit(read(backwards, WARDS), QUERIES), get("quantiles")]
            )
        options = {"num_batches_per_epoch": 1, **KINDS[kind]}
        return make_estimator(GRUFlowEstimator, **options).train(data)

    return get


def reference(kind: str, wards: list[str]) -> IrregularDataset:
    """The items as the model was trained on such, with codes that are written down here."""
    names = known_names(kind)
    schema = read(names, WARDS).schema
    entries = []
    for number, entry in enumerate(read(names, wards)):
        levels = {"ward": wards[number], "sex": "fm"[number % 2]}
        codes = [
            LEVELS[name].index(level) if level in LEVELS[name] else -1
            for name, level in levels.items()
        ]
        info = {**entry["info"], "schema": schema.to_dict()}
        entries.append({**entry, "feat_static_cat": np.array(codes), "info": info})
    return IrregularDataset(entries, schema)


def instances(dataset: IrregularDataset):
    """The last queries of each item, and what lies before them."""
    return split(dataset, offset=-QUERIES)[1].generate_instances(QUERIES)


def answers(predictor, dataset) -> tuple[list, list[str]]:
    """Forecasts, and what was said of the data, which is said once by a predictor."""
    predictor.schema.said.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = list(predictor.predict(instances(dataset).input, seed=3))
    return made, [str(one.message) for one in said if one.category is DeltaflowWarning]


def by_name(made: list) -> list[pd.DataFrame]:
    tables = [one.to_dataframe([0.1, 0.9]) for one in made]
    return [t.sort_values(["target_name", "timestamp"], ignore_index=True) for t in tables]


few = settings(max_examples=settings().max_examples // 4)
kinds = st.sampled_from([*KINDS, "hold", "ensemble"])


@given(data=st.data(), kind=kinds)
@settings(max_examples=settings().max_examples // 2)
def test_any_order_and_surplus_is_forecast_by_name(predictor_of, data, kind):
    known = known_names(kind)
    layout = data.draw(layouts(known))
    predictor, dataset = predictor_of(kind), read(layout.names, layout.wards)
    if layout.missing is not None:
        with pytest.raises(DataError) as caught:
            answers(predictor, dataset)
        assert (caught.value.item, caught.value.field) == ("p0", layout.missing)
        return
    made, told = answers(predictor, dataset)
    expected, nothing = answers(predictor, reference(kind, layout.wards))
    for one, other in zip(by_name(made), by_name(expected), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    for one in made:
        assert list(one.target) == [n for n in layout.names["target"] if n in known["target"]]
    surplus = layout.surplus(known)
    assert nothing == []
    assert len(told) == bool(surplus)
    assert all(repr(name) in told[0] for name in surplus)


@given(data=st.data(), kind=kinds)
@few
def test_any_order_is_evaluated_by_name_and_a_surplus_channel_never_by_position(
    predictor_of, data, kind
):
    known = known_names(kind)
    layout = data.draw(layouts(known).filter(lambda layout: layout.missing is None))
    predictor, dataset = predictor_of(kind), read(layout.names, layout.wards)

    def scores(of: IrregularDataset) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeltaflowWarning)
            test = instances(of)
            return evaluate_model(predictor, test_data=test, metrics=METRICS, seasonality=1)

    unknown = [name for name in layout.names["target"] if name not in known["target"]]
    if unknown:
        with pytest.raises(DataError) as caught:
            scores(dataset)
        assert (caught.value.item, caught.value.field) == ("p0", unknown[0])
    elif kind != "paths":  # whose samples are drawn without a seed here
        expected = scores(reference(kind, layout.wards))
        np.testing.assert_allclose(scores(dataset), expected, rtol=1e-12)


def read_alike(one, other) -> None:
    """The same arrays, bit for bit."""
    for field, values in one._asdict().items():
        np.testing.assert_array_equal(values, getattr(other, field), err_msg=field)


@given(data=st.data(), kind=st.sampled_from(["joint", "one channel"]), in_file=st.booleans())
@few
def test_any_order_and_surplus_is_learned_from_and_judged_by_name(
    predictor_of, data, kind, in_file
):
    layout, other = (
        data.draw(layouts(known_names(kind)).filter(lambda layout: layout.missing is None))
        for _ in range(2)
    )
    known = predictor_of(kind).reader
    sizes = {"prediction_length": QUERIES, "context_length": 12, "reader": known}
    dataset, validation = (read(part.names, part.wards) for part in (layout, other))
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeltaflowWarning)
        if in_file:
            write_arrow(Path(folder, "data.arrow"), dataset)
            dataset = ArrowDataset(Path(folder, "data.arrow"))
        module = IrregularDataModule(dataset, validation, **sizes)
        judged = list(LabelledWindows(instances(validation), known))
        for windows, part in (
            (module.training_windows, layout), (module.validation_windows, other),
        ):  # fmt: skip
            expected = [known.read(entry) for entry in reference(kind, part.wards)]
            for series, wanted in zip(windows.data, expected, strict=True):
                read_alike(series, wanted)
        expected = list(LabelledWindows(instances(reference(kind, other.wards)), known))
        read_alike(known.collate(judged), known.collate(expected))


@given(data=st.data())
@few
def test_a_training_list_of_several_data_sets_is_one_data_set(data):
    layout = data.draw(layouts().filter(lambda layout: layout.missing is None))
    parts = [
        Layout({role: data.draw(st.permutations(own)) for role, own in layout.names.items()},
               data.draw(st.lists(st.sampled_from(["er", "z"]), min_size=1, max_size=3)), None)
        for _ in range(data.draw(st.integers(1, 3)))
    ]  # fmt: skip
    entries = [entry for part in (layout, *parts) for entry in read(part.names, part.wards)]
    schema = schema_of(entries)
    wards = [ward for part in (layout, *parts) for ward in part.wards]
    assert sorted(schema.feat_static_cat["ward"]) == sorted(set(wards))
    place = list(schema.feat_static_cat).index("ward")
    for entry, ward in zip(entries, wards, strict=True):
        code = series_of(entry, schema).static_cat[place]
        assert schema.feat_static_cat["ward"][code] == ward
    first = [series_of(entry, schema) for entry in entries if entry["item_id"] == "p0"]
    for one in first:  # the same item, whatever its ward
        read_alike(one._replace(static_cat=0), first[0]._replace(static_cat=0))
    if parts and data.draw(st.booleans()):
        role = data.draw(st.sampled_from(list(NAMES)))
        lost, *rest = parts[0].names[role]
        if rest or role != "target":
            less = read({**parts[0].names, role: rest}, parts[0].wards)
            for together in ([*entries, *less], [*less, *entries]):
                with pytest.raises(DataError) as caught:
                    schema_of(together)
                assert (caught.value.item, caught.value.field) == ("p0", lost)
