"""Outputs: quantiles that cannot cross, and names and descriptions that build them."""

import json

import numpy as np
import pytest
import torch
from gluonts.torch.distributions import (
    DistributionOutput,
    GammaOutput,
    ImplicitQuantileNetworkOutput,
    ISQFOutput,
    LaplaceOutput,
    NegativeBinomialOutput,
    NormalOutput,
    StudentTOutput,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deltaflow import DeltaflowError, UnknownNameError
from deltaflow.heads import (
    HEADS,
    Head,
    MeanQuantileOutput,
    MonotoneQuantileOutput,
    describe_output,
    is_centred,
    is_discrete,
    make_output,
)

LEVELS = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]


@settings(max_examples=200, deadline=None)
@given(raw=arrays(np.float32, (3, 7), elements=st.floats(-1e4, 1e4, width=32)))
def test_quantiles_never_cross_whatever_the_network_gives(raw):
    (quantiles,) = MonotoneQuantileOutput(LEVELS).domain_map(torch.from_numpy(raw))
    assert quantiles.isfinite().all()
    assert (quantiles.diff(dim=-1) >= 0).all()


@settings(max_examples=50, deadline=None)
@given(raw=arrays(np.float64, (2, 7), elements=st.floats(-15, 15)))
def test_quantiles_are_distinct_and_the_middle_one_is_free(raw):
    # Distances are at least softplus(-15) = 3e-7, far above what float64 rounds off.
    (quantiles,) = MonotoneQuantileOutput(LEVELS).domain_map(torch.from_numpy(raw))
    assert (quantiles.diff(dim=-1) > 0).all()
    np.testing.assert_allclose(quantiles[:, 3], raw[:, 0], atol=1e-12)


def test_quantiles_can_be_learned():
    # The quantiles of the uniform distribution on (0, 1) are their levels.
    output = MonotoneQuantileOutput(LEVELS)
    target = torch.linspace(0, 1, 201)
    raw = torch.zeros(7, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        args = output.domain_map(raw.expand(201, 7))
        output.loss(target, args).mean().backward()
        optimizer.step()
    (learned,) = output.domain_map(raw.detach())
    torch.testing.assert_close(learned, torch.tensor(LEVELS), atol=0.02, rtol=0)


def test_the_loss_of_scaled_quantiles_and_mean_is_that_in_the_units_of_the_data():
    # GluonTS's own estimators hand over the location and scale of each series.
    output = MeanQuantileOutput(LEVELS)
    random = torch.Generator().manual_seed(0)
    raw, target = torch.randn(5, 3, 8, generator=random), torch.randn(5, 3, generator=random)
    loc, scale = torch.randn(5, 1, generator=random), 1 + torch.rand(5, 1, generator=random)
    mean, quantiles = output.domain_map(raw[..., :1], raw[..., 1:])
    units = (mean * scale + loc, quantiles * scale[..., None] + loc[..., None])
    expected = output.loss(target, units)
    torch.testing.assert_close(output.loss(target, (mean, quantiles), loc, scale), expected)


def test_levels_are_sorted():
    assert MonotoneQuantileOutput([0.9, 0.1, 0.5]).quantiles == [0.1, 0.5, 0.9]


OUTPUTS = {
    **{name: name for name in HEADS},
    "student_t instance": StudentTOutput(beta=0.5),
    "normal instance": NormalOutput(),
    "laplace instance": LaplaceOutput(),
    "quantile instance": MonotoneQuantileOutput([0.2, 0.8]),
    "isqf instance": ISQFOutput(num_pieces=2, qk_x=[0.1, 0.5, 0.9]),
}
any_output = pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)


@any_output
def test_a_description_is_json_and_rebuilds_its_output(output):
    description = json.loads(json.dumps(describe_output(output)))
    original, rebuilt = make_output(output), make_output(description)
    assert type(rebuilt) is type(original)
    assert rebuilt.args_dim == original.args_dim
    for attribute in ("quantiles", "qk_x", "num_pieces", "beta"):
        assert getattr(rebuilt, attribute, None) == getattr(original, attribute, None)
    assert describe_output(description) == description


def test_an_unknown_name_is_refused_with_the_registered_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'quantile'"):
        make_output("quantiles")


@pytest.mark.parametrize("name", ["Distribution", "os", "torch", "StudentT", "nothing"])
def test_a_description_builds_nothing_but_outputs(name):
    with pytest.raises(DeltaflowError, match="is not an output"):
        make_output({"output": name, "arguments": {}})


@pytest.mark.parametrize("arguments", [{"levels": 3}, {"quantiles": "high"}, [0.5], None])
def test_a_description_with_wrong_arguments_is_refused(arguments):
    wrong = {"output": "QuantileOutput", "arguments": arguments}
    for read in (make_output, describe_output):
        with pytest.raises(DeltaflowError, match="arguments of a QuantileOutput"):
            read(wrong)


def test_a_description_may_leave_out_arguments_with_defaults():
    assert isinstance(make_output({"output": "StudentTOutput"}), StudentTOutput)
    with pytest.raises(DeltaflowError, match="arguments of a QuantileOutput"):
        make_output({"output": "QuantileOutput"})


def test_an_output_that_cannot_be_stored_is_refused():
    class OwnOutput(StudentTOutput):
        pass

    with pytest.raises(DeltaflowError, match=r"OwnOutput .*register yours in .*HEADS"):
        describe_output(OwnOutput())


def test_an_output_with_layers_of_its_own_is_refused(monkeypatch):
    """A head would leave them out; GluonTS's implicit quantiles are then not a number."""
    output = ImplicitQuantileNetworkOutput("Real")
    monkeypatch.setitem(HEADS, "implicit", lambda: output)
    described = {"output": "ImplicitQuantileNetworkOutput", "arguments": {"output_domain": "Real"}}
    for description in (output, "implicit", described):
        with pytest.raises(DeltaflowError, match=r"ImplicitQuantileNetworkOutput .*of its own"):
            make_output(description)
    with pytest.raises(DeltaflowError, match="of its own"):
        describe_output(output)


@pytest.mark.parametrize(
    ("output", "discrete", "centred"),
    [
        (StudentTOutput(), False, True),
        (NormalOutput(), False, True),
        (MonotoneQuantileOutput([0.5]), False, True),
        (ISQFOutput(num_pieces=2, qk_x=[0.1, 0.9]), False, True),
        (GammaOutput(), False, False),
        (NegativeBinomialOutput(), True, False),
    ],
)
def test_the_support_tells_how_targets_are_scaled(output, discrete, centred):
    assert is_discrete(output) is discrete
    assert is_centred(output) is centred


@any_output
def test_a_head_gives_arguments_of_every_channel(output):
    head = Head(in_features=5, num_targets=3, output=make_output(output), width=8)
    args = head(torch.randn(2, 4, 5))
    for arg in args:
        assert arg.shape[:3] == (2, 4, 3)
    target = torch.ones(2, 4, 3)
    loss = head.loss(target, args, torch.ones(2, 4, 3))
    assert loss.shape[:3] == (2, 4, 3)
    assert loss.isfinite().all()


@any_output
def test_arguments_of_some_targets_are_those_of_all(output):
    head = Head(in_features=5, num_targets=3, output=make_output(output), width=8)
    torch.nn.init.normal_(head.skip.weight)
    features, mask = torch.randn(2, 4, 5, requires_grad=True), torch.rand(2, 4, 3) < 0.5
    some, everything = head.at(features, mask), head(features)
    for mine, whole in zip(some, everything, strict=True):
        torch.testing.assert_close(mine, whole[mask])
    gradients = [
        torch.autograd.grad(sum(arg.square().sum() for arg in args), features)[0]
        for args in (some, [whole[mask] for whole in everything])
    ]
    torch.testing.assert_close(*gradients)


@any_output
def test_a_missing_target_has_no_influence(output):
    head = Head(in_features=5, num_targets=1, output=make_output(output), width=8)
    features = torch.randn(3, 2, 5, requires_grad=True)
    observed = torch.ones(3, 2, 1, dtype=torch.bool)
    observed[1] = False
    gradients = []
    for missing in (0.0, 1e30):
        target = torch.ones(3, 2, 1)
        target[1] = missing
        loss = head.loss(target[observed], head.at(features, observed), torch.ones(4))
        (gradient,) = torch.autograd.grad(loss.sum(), features)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert (gradients[0][1] == 0).all()


@pytest.mark.parametrize("name", [n for n in HEADS if not n.endswith("quantile")])
def test_samples_of_a_head_have_its_quantiles(name):
    head = Head(in_features=2, num_targets=1, output=make_output(name), width=4)
    assert isinstance(head.output, DistributionOutput)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        args = tuple(arg.double().detach() for arg in head(torch.randn(1, 1, 2)))
        scale = torch.full((1, 1, 1), 30.0, dtype=torch.float64)
        joint = head.distribution(args, torch.zeros_like(scale), scale)
        samples = joint.sample((20000,)).reshape(-1).numpy()
    for level in (0.1, 0.5, 0.9):
        quantile = joint.icdf(torch.tensor([level], dtype=torch.float64)).item()
        # The share of 20 000 samples below has a deviation of at most 0.0036; a count's quantile
        # is the smallest number with at least that share.
        assert (samples <= quantile).mean() > level - 0.018
        assert (samples < quantile).mean() < level + 0.018


def test_making_a_distribution_of_counts_leaves_the_arguments_alone():
    head = Head(in_features=2, num_targets=1, output=NegativeBinomialOutput(), width=4)
    args = tuple(arg.detach() for arg in head(torch.ones(1, 1, 2)))
    before = [arg.clone() for arg in args]
    head.distribution(args, torch.zeros(1, 1, 1), torch.full((1, 1, 1), 5.0))
    head.loss(torch.ones(1, 1, 1), args, torch.ones(1, 1, 1))
    for arg, original in zip(args, before, strict=True):
        assert torch.equal(arg, original)


@pytest.mark.parametrize("head", [StudentTOutput, ["quantile"], 0.5])
def test_what_is_no_output_is_refused(head):
    with pytest.raises(DeltaflowError, match=r"is not a head: .* such as StudentTOutput\(\)"):
        describe_output(head)
