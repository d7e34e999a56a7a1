"""A network may keep its state: n updates equal one reading of the whole series."""

import numpy as np
import pytest
import torch

from deltaflow import IrregularDataModule, IrregularDataset
from deltaflow.data.scaling import SCALINGS
from deltaflow.data.windows import Horizon
from deltaflow.encoders import ENCODERS
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
    state = running.start(items)
    for step in range(values.shape[1]):
        state = running.read(state, times[:, step], values[:, step], known[:, step])
    arguments, loc, scale = running.forecast(state, queries, asked)

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
