"""A network may keep its state: n updates equal one reading of the whole series."""

import numpy as np
import pandas as pd
import pytest
import torch

from deltaflow import (
    ConformalPredictor,
    EnsemblePredictor,
    HoldPredictor,
    IrregularDataModule,
    IrregularDataset,
    IrregularPredictor,
    LiveForecaster,
    predict_df,
)
from deltaflow.data.reader import FEW_ROWS
from deltaflow.data.scaling import SCALINGS
from deltaflow.data.windows import Horizon
from deltaflow.encoders import ENCODERS
from deltaflow.forecast import AutoPredictor, GaussianProcessPredictor, SeasonalPredictor, conformal
from deltaflow.forecast.gaussian_process.predictor import CONTEXT
from deltaflow.forecast.live.members import MANY_ROWS
from deltaflow.heads import make_output
from deltaflow.model.networks import NETWORKS, make_network
from deltaflow.model.running import RunningNetwork

QUERIES = np.array([0.0, 0.3, 2.0, 30.0])


def untrained(reader, encoder, network):
    """A network whose weights are all at work, as after a training."""
    torch.manual_seed(0)
    made = make_network(
        reader, make_output("student_t"), encoder=encoder, network=network, hidden_size=8
    )
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.fixture(scope="module")
def modules(multivariate):
    return {
        scaling: IrregularDataModule(
            multivariate, prediction_length=len(QUERIES), context_length=100, scaling=scaling
        )
        for scaling in SCALINGS
    }


@torch.no_grad()
def differences(reader, network, items):
    """How far n updates are from one reading: of the arguments, of location and of scale."""
    values, times = (
        np.stack([getattr(one, name) for one in items]) for name in ("values", "times")
    )
    known = np.stack([one.covariates for one in items])
    queries = times[:, -1:] + QUERIES * reader.statistics.typical_gap
    asked = np.repeat(known[:, -1:], len(QUERIES), axis=1)

    running = RunningNetwork(reader, network)
    state = running.start(
        *(np.stack([getattr(one, name) for one in items]) for name in ("static_real", "static_cat"))
    )
    since = times[:, :1] * np.ones_like(values[:, 0])  # of each channel's last value
    last = times[:, 0]
    for now, given, beside in zip(
        times.T, values.swapaxes(0, 1), known.swapaxes(0, 1), strict=True
    ):
        state = running.read(state, now - last, last[:, None] - since, given, beside)
        last, since = now, np.where(np.isfinite(given), now[:, None], since)
    arguments, loc, scale = running.forecast(
        state, queries - times[:, -1:], last[:, None] - since, asked
    )

    whole = [
        one._replace(times=np.append(*both), covariates=np.concatenate([one.covariates, future]))
        for one, *both, future in zip(items, times, queries, asked, strict=True)
    ]
    batch = reader.collate([reader.window(one, one.length) for one in whole])
    pairs = zip(arguments, network(batch), strict=True)
    return (
        max(float((mine - once).abs().max()) for mine, once in pairs),
        float(((loc - batch.loc) / batch.scale).abs().max()),
        float((scale / batch.scale - 1).abs().max()),
    )


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_updates_equal_one_reading_of_the_series(encoder, network, scaling, modules):
    reader, items = modules[scaling].reader, modules[scaling].training_windows.data[:4]
    # Real data contain rows in which nothing was observed, and channels that never were.
    items = [one._replace(values=one.values.copy()) for one in items]
    items[0].values[[0, 7]] = np.nan
    items[1].values[:, 1] = np.nan
    apart = differences(reader, untrained(reader, encoder, network), items)
    # Twenty steps of float32, in units of the scale.
    assert apart == pytest.approx((0, 0, 0), abs=1e-5)
    assert apart[1:] == (0, 0)


@pytest.mark.parametrize("network", NETWORKS)
def test_updates_equal_one_reading_of_a_long_series(network, make_frame, roles):
    frame = make_frame(("HR", "MAP"), num_items=2, length=800)
    frame.loc[(frame["item_id"] == "p1") & (frame.index % 800 > 50), "MAP"] = np.nan
    data = IrregularDataModule(
        IrregularDataset.from_long_dataframe(frame, **roles),
        prediction_length=len(QUERIES), context_length=800,
    )  # fmt: skip
    network = untrained(data.reader, "gru_flow", network)
    apart = differences(data.reader, network, data.training_windows.data)
    # Sums of gaps in float32 would be further apart.
    assert apart == pytest.approx((0, 0, 0), abs=3e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_ages_do_not_drift(network, multivariate, monkeypatch):
    """They are differences of times in float64, not sums of gaps in float32."""
    live = LiveForecaster(predictor_of(multivariate, "gru", network))
    gap = pd.Timedelta(live.predictor.reader.statistics.typical_gap, unit="s")
    row = {"item_id": "new", "HR": 1.0, "MAP": np.nan, "lab": np.nan}
    row |= {"dose": 0.0, "age": 0.0, "ward": "icu"}
    first = pd.Timestamp("2024-01-01")
    for step in range(200):
        seen = {"MAP": 1.0, "lab": 1.0} if step == 0 else {}
        live.update(pd.DataFrame({**row, **seen, "timestamp": first + step * gap / 10}, [0]))
    ages = []
    decode = type(live.predictor.network).decode

    def decoded(self, encoded, *args):
        ages.append(encoded.state.age.flatten().numpy())
        return decode(self, encoded, *args)

    monkeypatch.setattr(type(live.predictor.network), "decode", decoded)
    live.forecast(pd.DataFrame({**row, "timestamp": first + 20 * gap}, [0]))
    np.testing.assert_allclose(ages, np.float32([[0.0, 19.9, 19.9]]), rtol=1e-7)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_sampled_path_goes_on_from_what_was_drawn(network, modules):
    """Independent changes from the last value add up: the path is a random walk."""
    reader, items = modules["last"].reader, modules["last"].training_windows.data[:1]
    network = untrained(reader, "gru", network)
    with torch.no_grad():
        for name, parameter in network.head.named_parameters():
            parameter.mul_("bias" in name)  # the same distribution at each query
    batch = reader.collate([Horizon(4).window(reader, items[0], 12)])
    queries = int((~batch.query_delta_t.isnan()).sum())
    torch.manual_seed(0)
    paths = network.sample_paths(batch, 4000)[0, :, :, 0]  # (N, Q)
    steps = paths.diff(dim=1, prepend=batch.loc[:, :1].expand(len(paths), 1))
    spread = steps.quantile(0.75, dim=0) - steps.quantile(0.25, dim=0)
    assert queries == len(spread) == 4
    # A quartile of 4000 draws deviates by about 2 %.
    torch.testing.assert_close(spread, spread[:1].expand_as(spread), rtol=0.1, atol=0)
    wide = paths.quantile(0.75, dim=0) - paths.quantile(0.25, dim=0)
    assert wide[-1] > 1.5 * wide[0]


LEVELS = [0.1, 0.9]

ROUNDING = {"neural_cde": 1e-4, "ode_rnn": 1e-4, "gru_ode": 1e-4}
"""What float32 costs, in units of the scale, where it is more than `USUAL`: solvers take many
steps. How matrices are multiplied, and so how they are rounded, differs between processors."""

USUAL = 1e-5


def predictor_of(
    data, encoder, network="joint", distr_output="student_t", seed=0, encoder_kwargs=None, **options
):
    """A predictor whose weights are all at work, as after a training."""
    random = torch.Generator().manual_seed(seed)
    options = {"context_length": FEW_ROWS + 1, **options}
    module = IrregularDataModule(data, prediction_length=4, **options)
    predictor = IrregularPredictor(
        reader=module.reader.to_dict(),
        prediction_length=4,
        network={
            "encoder": encoder,
            "network": network,
            "hidden_size": 8,
            "encoder_kwargs": encoder_kwargs or {},
        },
        distr_output=distr_output,
    )
    with torch.no_grad():
        for parameter in predictor.network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return predictor


def in_batches(frame, random, most=40):
    """The rows of all items mixed at random, in their order within each item, in random pieces."""
    turn = frame["item_id"].to_numpy()[random.permutation(len(frame))]
    rank = pd.Series(turn).groupby(turn).cumcount().to_numpy()
    place = frame.reset_index(drop=True).groupby("item_id").indices
    mixed = frame.iloc[[place[item][k] for item, k in zip(turn, rank, strict=True)]]
    while len(mixed):
        size = int(random.integers(1, most))
        yield mixed.iloc[:size]
        mixed = mixed.iloc[size:]


def questions(frame, random, count=60):
    """Any number of questions of each item, in any order, from its last observation on."""
    last = frame.groupby("item_id").tail(1).sample(count, replace=True, random_state=random)
    later = pd.to_timedelta(random.choice([0, 1, 3600, 10**6], count), unit="s")
    return last.assign(timestamp=last["timestamp"] + later, dose=random.normal(size=count))


def check_law(predictor, frame, seed=0, rounding=USUAL):
    """Any batches of updates give the forecasts of one reading of all rows."""
    random = np.random.default_rng(seed)
    live = LiveForecaster(predictor)
    for batch in in_batches(frame, random):
        live.update(batch)
    future = questions(frame, random)
    mine = live.forecast(future, quantile_levels=LEVELS)
    once = predict_df(live.predictor, frame, future, quantile_levels=LEVELS)
    keys = ["item_id", "timestamp", "target_name"]
    pd.testing.assert_frame_equal(mine[keys], once[keys])
    # The scale of the data, or of a forecast that is wider still.
    scale = np.maximum(
        once["target_name"].map(frame.std(numeric_only=True)), once["0.9"] - once["0.1"]
    )
    scale = scale.to_numpy()[:, None]
    values = ["predictions", *map(str, LEVELS)]
    apart = (mine[values].to_numpy() - once[values].to_numpy()) / scale
    assert np.abs(apart).max() < rounding
    return live


@pytest.fixture(scope="module")
def frame(make_frame):
    return make_frame(("HR", "MAP"))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_live_forecast_is_that_of_the_whole_history(
    encoder, network, scaling, multivariate, frame
):
    predictor = predictor_of(
        multivariate, encoder, network, scaling=scaling, seasonality=("day", "week")
    )
    check_law(predictor, frame, rounding=ROUNDING.get(encoder, USUAL))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("context", [{}, {"context": "3h"}])
def test_a_short_context_stays_short(network, scaling, context, multivariate, frame):
    predictor = predictor_of(
        multivariate, "gru_flow", network, scaling=scaling, seasonality=("day",),
        context_length=4, **context,
    )  # fmt: skip
    frame = frame.copy()
    frame.loc[frame["item_id"] == "p1", "MAP"] = np.nan  # never observed
    frame.loc[frame.index % 20 > 12, "HR"] = np.nan  # not within the context
    live = check_law(predictor, frame)
    assert live.predictor is predictor
    size = live.bytes_per_item
    live.update(frame.groupby("item_id").tail(1).assign(timestamp=pd.Timestamp("2025-01-01")))
    assert live.bytes_per_item == size


def test_a_short_context_suits_an_encoder_that_cannot_read_one_row(multivariate, frame):
    hermite = {"encoder_kwargs": {"interpolation": "hermite"}, "context_length": 4}
    check_law(predictor_of(multivariate, "neural_cde", **hermite), frame)


@pytest.mark.parametrize("distr_output", ["quantile", "mean_quantile", "normal"])
def test_the_law_holds_for_other_heads(distr_output, multivariate, frame):
    check_law(predictor_of(multivariate, "gru_flow", distr_output=distr_output), frame)


def test_the_law_holds_for_a_single_channel_without_features(univariate, make_frame):
    frame = make_frame()
    # Rows at which nothing was observed are observation times, too.
    frame.loc[frame.index % 20 == 7, "HR"] = np.nan
    check_law(predictor_of(univariate, "gru_flow"), frame)


def in_other_order(frame, roles):
    """The same data, whose names stand in another order."""
    reversed_roles = {role: names[::-1] for role, names in roles.items()}
    return IrregularDataset.from_long_dataframe(frame[frame["item_id"] != "p1"], **reversed_roles)


def test_the_law_holds_for_calibrated_ensembles(multivariate, frame, roles):
    other = in_other_order(frame, roles)
    members = [
        predictor_of(multivariate, "gru_flow"),
        predictor_of(other, "linear_flow", "channelwise", seed=1),
    ]
    ensemble = EnsemblePredictor(members)
    check_law(ensemble, frame)
    near = np.linspace(-2, 2, len(conformal.LEVELS))
    # One of the questions is asked exactly at the bound between two ranges of lead times.
    calibrated = ConformalPredictor(
        ensemble, [[3600.0]] * 2, [[near, 2 * near]] * 2, least=[1e-6] * 2, num_items=[50] * 2
    )
    check_law(calibrated, frame)


@pytest.mark.parametrize(
    ("encoder", "network"),
    [*((encoder, "joint") for encoder in ENCODERS), ("gru_flow", "channelwise")],
)
def test_many_first_rows_of_an_item_are_read_as_one_by_one(encoder, network, multivariate, frame):
    """They are read together, and what follows goes on from there."""
    predictor = predictor_of(multivariate, encoder, network)
    rows = frame[frame["item_id"].isin(["p0", "p1", "p2"])]
    parts = [  # of one item with many rows, and of one with few, in the same updates
        rows.assign(timestamp=rows["timestamp"] + shift * pd.Timedelta("3D"))
        for shift in range(MANY_ROWS // 20 + 1)
    ]
    history = pd.concat(parts).sort_values(["item_id", "timestamp"], kind="stable")
    history = history[(history["item_id"] == "p0") | (history.groupby("item_id").cumcount() > 12)]
    assert history.groupby("item_id").size().max() > MANY_ROWS
    together, apart = LiveForecaster(predictor), LiveForecaster(predictor)
    together.update(history)
    for _, few in history.groupby(history.groupby("item_id").cumcount() // 10):
        apart.update(few)
    for live in (together, apart):
        live.update(history.groupby("item_id").tail(1).assign(timestamp=pd.Timestamp("2024-04-01")))
    future = frame.groupby("item_id").tail(1).head(3).assign(timestamp=pd.Timestamp("2024-04-02"))
    mine, theirs = (
        live.forecast(future, quantile_levels=LEVELS)[["predictions", "0.1", "0.9"]].to_numpy()
        for live in (together, apart)
    )
    scale = np.maximum(np.tile(frame[["HR", "MAP"]].std(), 3), theirs[:, 2] - theirs[:, 1])
    assert np.abs((mine - theirs) / scale[:, None]).max() < ROUNDING.get(encoder, USUAL)
    for item in ("p0", "p1", "p2"):
        assert together.item(item) == apart.item(item)


def test_the_law_holds_for_what_small_data_are_blended_with(multivariate, frame, roles):
    other = in_other_order(frame, roles)
    frame = frame.copy()
    frame.loc[frame["item_id"].isin(["p1", "p4"]), "MAP"] = np.nan  # never observed
    parts = [
        predictor_of(multivariate, "gru_flow"),
        HoldPredictor.fit(other, 4),
        GaussianProcessPredictor.fit(other, 4),
        GaussianProcessPredictor.fit(other, 4, process="trend"),
    ]
    for part in parts[1:]:
        check_law(part, frame)
    blend = EnsemblePredictor(parts, [0.4, 0.3, 0.2, 0.1])
    check_law(AutoPredictor(blend, [{"loss": 1.0}]), frame)


def test_the_law_holds_for_what_repeats_a_cycle(multivariate, make_frame, frame):
    """With enough values for the cycle, and with fewer."""
    long = make_frame(channels=("HR", "MAP"), num_items=2, length=200)
    data = IrregularDataset.from_long_dataframe(long, target=["HR", "MAP"])
    predictor = SeasonalPredictor.fit(data, 4)
    assert any(own.any() for own in predictor.coefficients)
    live = check_law(predictor, long)
    size = live.bytes_per_item
    assert 2 * 16 * predictor.context < size < 2 * 16 * predictor.context + 150
    check_law(predictor, frame)


def test_a_gaussian_process_keeps_no_more_values_than_it_uses(univariate, make_frame):
    predictor = GaussianProcessPredictor.fit(univariate, 4, [0.0])
    long = make_frame(num_items=1, length=CONTEXT + 40)
    long.loc[long.index % 10 == 7, "HR"] = np.nan
    live = check_law(predictor, long)
    size = live.bytes_per_item
    assert 16 * CONTEXT < size < 16 * CONTEXT + 100
    live.update(long.assign(timestamp=long["timestamp"] + pd.Timedelta("1000D")))
    assert live.bytes_per_item == size


def test_a_context_limits_only_the_given_predictor(multivariate, frame):
    predictor = predictor_of(multivariate, "gru_flow", context="6h")
    live = check_law(predictor, frame)
    future = questions(frame, np.random.default_rng(0))
    short = predict_df(predictor, frame, future)["predictions"]
    assert (short - live.forecast(future)["predictions"]).abs().max() > 1e-2
    # As long as an item has no more than context_length observations, nothing is cut off.
    begun = frame.groupby("item_id").head(3)
    live = LiveForecaster(predictor_of(multivariate, "gru_flow"))
    live.update(begun)
    once = predict_df(predictor_of(multivariate, "gru_flow"), begun, future)["predictions"]
    np.testing.assert_allclose(live.forecast(future)["predictions"], once, rtol=1e-6)
