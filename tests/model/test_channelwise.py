"""The network with one state per channel."""

import numpy as np
import pytest
import torch

from deltaflow import DeltaflowError, IrregularDataModule, IrregularEstimator
from deltaflow.data.scaling import Rows
from deltaflow.encoders import ENCODERS
from deltaflow.heads import make_output
from deltaflow.heads.shared import SharedHead
from deltaflow.model.channelwise import FEW, _ExchangeLayer, _groups, _tamed
from deltaflow.model.networks import make_network


@pytest.fixture(scope="module")
def data(multivariate):
    return IrregularDataModule(
        multivariate, prediction_length=6, context_length=30, scaling="last", batch_size=8
    )


@pytest.fixture(scope="module")
def batch(data):
    return next(iter(data.train_dataloader()))


def channelwise(data, encoder="gru_flow", *, double=True, output="student_t", **options):
    torch.manual_seed(0)
    network = make_network(
        data.reader, make_output(output), encoder=encoder, network="channelwise", hidden_size=8,
        network_kwargs={"num_heads": 2, **options},
    )  # fmt: skip
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return (network.double() if double else network).eval()


def doubled(batch):
    return batch._replace(
        **{
            name: part.double()
            for name, part in batch._asdict().items()
            if part.is_floating_point()
        }
    )


def first_steps(batch, count):
    """The batch as it was after its first steps."""
    lengths = batch.lengths.clamp(max=count)
    inside = torch.arange(batch.delta_t.shape[1]) < lengths.unsqueeze(-1)
    return batch._replace(
        observed=batch.observed & inside.unsqueeze(-1),
        delta_t=batch.delta_t * inside,
        lengths=lengths,
    )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_reading_at_once_and_one_by_one_give_the_same_forecasts(encoder, data, batch):
    batch = doubled(batch)
    network = channelwise(data, encoder)
    expected = network(batch)
    half = 5
    encoded = network.encode(first_steps(batch, half))
    for step in range(half, batch.delta_t.shape[1]):
        inside = (step < batch.lengths).unsqueeze(-1)
        encoded = network.update(
            encoded,
            batch.delta_t[:, step] * inside.squeeze(-1),
            Rows(batch.values[:, step], batch.observed[:, step] & inside, batch.levels),
            batch.covariates[:, step],
        )
    answered = network.decode(encoded, batch.query_delta_t, batch.query_covariates)
    for mine, theirs in zip(answered, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("output", ["student_t", "quantile", "mean_quantile"])
def test_forecasts_of_observed_targets_are_those_of_all(output, data, batch):
    batch = doubled(batch)
    network = channelwise(data, output=output)
    mask = batch.target_observed
    assert mask.sum() > 10
    for mine, whole in zip(network.at_targets(batch), network(batch), strict=True):
        torch.testing.assert_close(mine, whole[mask])


def test_a_channel_moves_at_its_own_observations_alone(data, batch):
    network = channelwise(data)
    batch = doubled(batch)
    changed = batch._replace(values=batch.values.clone())
    series, _, channel = (int(i) for i in batch.observed.nonzero()[0])
    changed.values[series, :, channel] += 1.0
    before, after = (network.encode(one).state.hidden for one in (batch, changed))
    moved = (before != after).any(-1)
    assert moved[series, channel]
    assert moved.sum() == 1


def test_channels_learn_of_each_other_in_the_exchange(data, batch):
    batch = doubled(batch)
    changed = batch._replace(values=batch.values.clone())
    series, _, channel = (int(i) for i in batch.observed.nonzero()[0])
    changed.values[series, :, channel] += 1.0
    other = (channel + 1) % len(data.reader.statistics.center)
    for layers in (0, 1):
        network = channelwise(data, num_exchange_layers=layers)
        location = network(batch)[1][series, :, other]
        same = torch.equal(location, network(changed)[1][series, :, other])
        assert same == (layers == 0)


def test_rare_channels_shrink_to_a_constant(data, batch):
    network = channelwise(data, shrinkage=1e12, double=False)
    _, location, _ = network(batch)
    torch.testing.assert_close(location, network.head.bias[:, 1].expand_as(location))


def test_gradients_reach_every_weight(data, batch):
    network = channelwise(data, output="mean_quantile", double=False).train()
    total, _ = network.loss(batch)
    total.backward()
    silent = [name for name, weight in network.named_parameters()
              if weight.grad is None or not weight.grad.any()]  # fmt: skip
    # Attention does not change if all its keys are shifted.
    assert not [name for name in silent if "in_proj_bias" not in name]


def test_unknown_options_are_refused(data):
    with pytest.raises(DeltaflowError, match=r"network_kwargs of 'channelwise'.*depth"):
        channelwise(data, depth=3)
    with pytest.raises(DeltaflowError, match="hidden_size 8 is not a multiple of num_heads 3"):
        channelwise(data, num_heads=3)


def test_rows_are_grouped_with_those_of_like_length():
    lengths = torch.tensor([50, 49, 13, 12, 12, 3, 1, 1, 0, 0])
    groups = list(_groups(lengths, 4.0))
    assert [number for group in groups for number in range(10)[group]] == list(range(8))
    for group in groups:
        assert lengths[group].max() <= 4.0 * lengths[group].min()
    assert not list(_groups(torch.tensor([0, 0]), 4.0))


@pytest.mark.parametrize("num_channels", [1, 5, FEW + 1])
def test_an_exchange_is_a_transformer_layer_of_torch(num_channels):
    options = {"dim_feedforward": 16, "dropout": 0.0, "activation": "gelu", "dtype": torch.double}
    layers = [
        layer(8, 2, batch_first=True, norm_first=True, **options)
        for layer in (torch.nn.TransformerEncoderLayer, _ExchangeLayer)
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    tokens = torch.randn(3, num_channels, 8, dtype=torch.double, requires_grad=True)
    weights = torch.linspace(-1, 2, tokens.numel(), dtype=torch.double).view_as(tokens)
    expected, found = (
        (result, *torch.autograd.grad((weights * result).sum(), [tokens, *layer.parameters()]))
        for layer in layers
        for result in [layer(tokens)]
    )
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("parts", [[3, 2, 0, 0], [3, 2, 2, 4]])
def test_a_head_reads_what_the_queries_of_a_channel_share_as_features_of_each(parts):
    head = SharedHead(parts, torch.tensor([5.0, 50.0]), make_output("normal"), 6, shrinkage=10.0)
    for parameter in head.double().parameters():
        torch.nn.init.normal_(parameter)
    own, shared = (torch.randn(n, sum(size), dtype=torch.double)
                   for n, size in ((9, parts[::2]), (4, parts[1::2])))  # fmt: skip
    row = torch.randint(4, (9,))
    features = zip(own.split(parts[::2], 1), shared[row].split(parts[1::2], 1), strict=True)
    raw = head.raw(torch.cat([part for pair in features for part in pair], 1))
    trust = head.trust[row % 2].unsqueeze(-1)
    expected = head.arguments(head.bias[row % 2] + trust * raw)
    torch.testing.assert_close(head(own, shared, row, row % 2), expected)


def test_outliers_are_drawn_in():
    """A value at the limit is read less than linearly; small ones nearly as they are."""
    small, large = torch.tensor([1e-3, 0.5]), torch.tensor([10.0, 1e6])
    torch.testing.assert_close(_tamed(small), small, rtol=0.01, atol=0)
    assert (_tamed(large) < large * 0.6).all()
    assert torch.isfinite(_tamed(large)).all()
    torch.testing.assert_close(_tamed(-large), -_tamed(large))


@pytest.mark.parametrize("encoder", ["gru_flow", "linear_flow", "coupling_flow", "ode_rnn"])
def test_autocast_reaches_no_flow_and_no_solver(encoder, multivariate, instances, make_estimator):
    estimator = make_estimator(IrregularEstimator, encoder=encoder, network="channelwise")
    predictor, entries = estimator.train(multivariate), instances(multivariate)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = [forecast.mean for forecast in predictor.predict(entries)]
    exact = [forecast.mean for forecast in predictor.predict(entries)]
    np.testing.assert_allclose(coarse, exact, rtol=0.01)


@pytest.mark.parametrize("encoder", ["linear_flow", "coupling_flow"])
def test_what_other_channels_say_reaches_the_most_distant_query(data, batch, encoder):
    network = channelwise(data, encoder)
    batch = doubled(batch)
    batch = batch._replace(query_delta_t=torch.full_like(batch.query_delta_t, 1e6))
    values = batch.values.clone()
    values[..., 1:] += 1.0
    before, after = (network(each)[0][..., 0] for each in (batch, batch._replace(values=values)))
    assert ((after - before).abs().amax(1) > 1e-9).all()
