"""A network may keep its state: n updates equal one reading of the whole series."""

import numpy as np
import pytest
import torch

from deltaflow import IrregularDataModule
from deltaflow.data.scaling import SCALINGS
from deltaflow.encoders import ENCODERS
from deltaflow.heads import make_output
from deltaflow.model.networks import NETWORKS, make_network
from deltaflow.model.running import RunningNetwork

QUERIES = np.array([0.0, 0.3, 2.0, 30.0])


def untrained(spec, encoder, network):
    """A network whose weights are all at work, as after a training."""
    torch.manual_seed(0)
    made = make_network(
        spec, make_output("student_t"), encoder=encoder, network=network, hidden_size=8
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


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_updates_equal_one_reading_of_the_series(encoder, network, scaling, modules):
    spec, items = modules[scaling].spec, modules[scaling].training_windows.data[:4]
    # Real data contain rows in which nothing was observed, and channels that never were.
    values = np.stack([one.values for one in items])
    values[0, [0, 7]] = np.nan
    values[1, :, 1] = np.nan
    times = np.stack([one.times for one in items])
    known = np.stack([one.covariates for one in items])
    queries = times[:, -1:] + QUERIES * spec.statistics.typical_gap
    asked = np.repeat(known[:, -1:], len(QUERIES), axis=1)
    network = untrained(spec, encoder, network)

    running = RunningNetwork(spec, network)
    state = running.start(items)
    for step in range(values.shape[1]):
        state = running.read(state, times[:, step], values[:, step], known[:, step])
    arguments, loc, scale = running.forecast(state, queries, asked)

    whole = [
        one._replace(times=np.append(*t), values=v, covariates=np.concatenate(k))
        for one, *t, v, k in zip(
            items, times, queries, values, zip(known, asked, strict=True), strict=True
        )
    ]
    batch = spec.collate([spec.cut(one, one.length) for one in whole])
    with torch.no_grad():
        expected = network(batch)
    torch.testing.assert_close(loc, batch.loc, rtol=1e-12, atol=0)
    torch.testing.assert_close(scale, batch.scale, rtol=1e-12, atol=0)
    # Twenty steps of float32, in units of the scale.
    for mine, once in zip(arguments, expected, strict=True):
        torch.testing.assert_close(mine, once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_sampled_path_goes_on_from_what_was_drawn(network, modules):
    """Independent changes from the last value add up: the path is a random walk."""
    spec, items = modules["last"].spec, modules["last"].training_windows.data[:1]
    network = untrained(spec, "gru", network)
    with torch.no_grad():
        for name, parameter in network.head.named_parameters():
            parameter.mul_("bias" in name)  # the same distribution at each query
    batch = spec.collate([spec.cut(items[0], 12)])
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
