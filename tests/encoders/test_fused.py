"""The fast recurrence equals the plain loop, in its values and in all gradients.

Sums in another order differ by a few roundings of their largest term: ``EXACT`` is in units of it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.autograd import forward_ad

from deltaflow import DeltaflowError
from deltaflow.encoders import Encoder, FlowEvolution, RecurrentEncoder, make_encoder, recurrent
from deltaflow.encoders.fused import recurrence
from deltaflow.encoders.fused.recurrence import BLOCK, NARROWER
from deltaflow.flows import TIME_EMBEDDINGS, Flow, FlowStack, ResNetFlow
from deltaflow.flows.gru import GRULayer

EXACT = {torch.float64: 1e-12, torch.float32: 1e-4}
CHANNELS, FEATURES, HIDDEN = 3, 2, 5
LENGTHS = [BLOCK + 1, 1, 0, 2 * BLOCK + 3, BLOCK, BLOCK - 1, 2 * BLOCK + 3]
RECURRENT = ["gru_flow", "coupling_flow", "resnet_flow", "gru"]
FAST = [*RECURRENT, "linear_flow"]

any_encoder = pytest.mark.parametrize("name", FAST)


def make(name: str, hidden_size: int = HIDDEN, dtype=torch.float64, **options) -> Encoder:
    """An encoder whose weights are away from symmetries, and partly above the spectral bounds."""
    return made(lambda: make_encoder(name, CHANNELS, FEATURES, hidden_size, **options).to(dtype))


def made(build: Callable[[], Encoder]) -> Encoder:
    """The encoder that is built, with such weights.

    Initial matrices are orthogonal: the gradient of their norm depends on their last digits.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return encoder


def make_batch(lengths=LENGTHS, dtype=torch.float64) -> dict[str, torch.Tensor]:
    """A batch with gaps over four decades, zeros as padding, and gradients for all that is real."""
    random = torch.Generator().manual_seed(0)
    shape = len(lengths), max(lengths)
    lengths = torch.tensor(lengths)
    padding = torch.arange(shape[1]) >= lengths.unsqueeze(-1)
    values = torch.randn(*shape, CHANNELS, generator=random, dtype=dtype)
    features = torch.randn(*shape, FEATURES, generator=random, dtype=dtype)
    delta_t = 10 ** (4 * torch.rand(shape, generator=random, dtype=dtype) - 2)
    for tensor in (values, features, delta_t):
        tensor[padding] = 0.0
    batch = {
        "values": values.requires_grad_(),
        "observed": torch.rand(*shape, CHANNELS, generator=random) < 0.5,
        "delta_t": delta_t.requires_grad_(),
        "running": ~padding,
        "features": features.requires_grad_(),
    }
    batch["observed"] &= batch["running"].unsqueeze(-1)
    return batch


def run(read, encoder: Encoder, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The states, and the gradients of a scalar that weighs them differently."""
    tensors = dict(encoder.named_parameters())
    tensors |= {name: part for name, part in batch.items() if part.requires_grad}
    states = read(**batch)
    weights = torch.linspace(-1, 2, states.numel(), dtype=states.dtype).reshape(states.shape)
    gradients = torch.autograd.grad((weights * states).sum(), list(tensors.values()))
    return {"states": states.detach(), **dict(zip(tensors, gradients, strict=True))}


def assert_equal(fast: dict, plain: dict, tolerance: float) -> None:
    assert fast.keys() == plain.keys()
    for name, expected in plain.items():
        error = (fast[name] - expected).abs().max()
        assert error <= tolerance * (1 + expected.abs().max()), name


@pytest.fixture
def only_fast(monkeypatch):
    """Make sure that the fast recurrence is what runs."""

    def fail(*_, **__):
        raise AssertionError("the plain loop was run")

    return lambda encoder: monkeypatch.setattr(encoder, "read_plainly", fail)


@any_encoder
@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_fast_equals_plain(name, dtype, only_fast):
    encoder, batch = make(name, dtype=dtype), make_batch(dtype=dtype)
    plain = run(encoder.read_plainly, encoder, batch)
    only_fast(encoder)
    assert_equal(run(encoder.read, encoder, batch), plain, EXACT[dtype])


@pytest.mark.parametrize("name", ["gru_flow", "coupling_flow", "resnet_flow"])
@pytest.mark.parametrize("time_embedding", TIME_EMBEDDINGS)
@pytest.mark.parametrize(("hidden_size", "num_layers"), [(2, 1), (7, 3)])
def test_fast_equals_plain_at_any_depth(name, time_embedding, hidden_size, num_layers, only_fast):
    encoder = make(name, hidden_size, time_embedding=time_embedding, num_layers=num_layers)
    batch = make_batch([3, BLOCK + 2])
    plain = run(encoder.read_plainly, encoder, batch)
    only_fast(encoder)
    assert_equal(run(encoder.read, encoder, batch), plain, EXACT[torch.float64])


def test_fast_equals_plain_for_layers_of_a_kind_each(only_fast):
    def build() -> Encoder:
        layers = [GRULayer(HIDDEN), GRULayer(HIDDEN, time_embedding="log", coefficient=0.5)]
        evolution = FlowEvolution(FlowStack(layers))
        return RecurrentEncoder(CHANNELS, FEATURES, HIDDEN, evolution).double()

    encoder = made(build)
    batch = make_batch()
    plain = run(encoder.read_plainly, encoder, batch)
    only_fast(encoder)
    assert_equal(run(encoder.read, encoder, batch), plain, EXACT[torch.float64])


@any_encoder
def test_series_that_have_ended_run_on_unheard(name):
    lengths = [3 * BLOCK] * 11 + [3]  # too few have ended for new memory
    assert NARROWER * 12 < 11
    encoder, batch = make(name), make_batch(lengths)
    plain = run(encoder.read_plainly, encoder, batch)
    assert_equal(run(encoder.read, encoder, batch), plain, EXACT[torch.float64])


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("bound", ["CACHE", "LARGE"])
def test_fast_equals_plain_where_series_are_many(name, bound, monkeypatch):
    """In shorter blocks, and in huge pages: of which a bound of one byte makes use at once."""
    encoder, batch = make(name), make_batch()
    plain = run(encoder.read_plainly, encoder, batch)
    monkeypatch.setattr(recurrence, bound, 1)
    assert_equal(run(encoder.read, encoder, batch), plain, EXACT[torch.float64])


@any_encoder
@pytest.mark.parametrize("lengths", [[BLOCK] * 3, [1], [0, 0], [0]], ids=str)
def test_fast_equals_plain_for_series_of_one_length(name, lengths):
    encoder, batch = make(name), make_batch([*lengths, 12])
    batch = {key: part.detach()[: len(lengths), : max(lengths)] for key, part in batch.items()}
    torch.testing.assert_close(
        encoder.read(**batch), encoder.read_plainly(**batch), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("name", ["coupling_flow", "resnet_flow"])
def test_fast_equals_plain_where_states_reach_their_limit(name):
    encoder, batch = make(name, num_layers=2), make_batch()
    with torch.no_grad():
        for parameter in encoder.evolution.parameters():
            parameter *= 3
        at = encoder.evolution.prepare()(encoder.read(**batch), torch.tensor(10.0))
    assert at.abs().max() > recurrent.STATE_LIMIT
    plain = run(encoder.read_plainly, encoder, batch)
    assert_equal(run(encoder.read, encoder, batch), plain, 1e-10)


@any_encoder
def test_gradients_are_those_of_finite_differences(name):
    encoder, batch = make(name, hidden_size=4), make_batch([4, 2])
    names = [label for label, _ in encoder.named_parameters()]

    def read(*parameters):
        weights = dict(zip(names, parameters, strict=True))
        arguments = tuple(batch.values())
        return torch.func.functional_call(_Reader(encoder), _prefixed(weights), arguments)

    parameters = [parameter.detach().requires_grad_() for parameter in encoder.parameters()]
    assert torch.autograd.gradcheck(read, parameters, fast_mode=True)


class _Reader(torch.nn.Module):
    """`RecurrentEncoder.read` as a module."""

    def __init__(self, encoder: RecurrentEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *batch):
        return self.encoder.read(*batch)


def _prefixed(weights):
    return {f"encoder.{name}": weight for name, weight in weights.items()}


@any_encoder
def test_second_derivatives_are_refused(name):
    encoder, batch = make(name), make_batch()
    with pytest.raises(DeltaflowError, match=r"once, not twice.*read_plainly"):
        torch.autograd.grad(encoder.read(**batch).sum(), batch["values"], create_graph=True)


def as_function(encoder: RecurrentEncoder, batch: dict[str, torch.Tensor]):
    """Reading as a function of weights and values that returns a number."""
    batch = {key: part.detach() for key, part in batch.items()}

    def read(weights, values):
        arguments = tuple({**batch, "values": values}.values())
        states = torch.func.functional_call(_Reader(encoder), _prefixed(weights), arguments)
        return (
            states * torch.linspace(-1, 2, states.numel(), dtype=states.dtype).view_as(states)
        ).sum()

    weights = {name: part.detach() for name, part in encoder.named_parameters()}
    return read, weights, batch["values"]


@any_encoder
def test_torch_func_differentiates(name):
    encoder, batch = make(name), make_batch()
    expected = run(encoder.read, encoder, batch)
    read, weights, values = as_function(encoder, batch)
    found, of_values = torch.func.grad(read, argnums=(0, 1))(weights, values)
    torch.testing.assert_close(torch.func.jacrev(read, argnums=1)(weights, values), of_values)
    for label, gradient in {**found, "values": of_values}.items():
        assert_equal({label: gradient}, {label: expected[label]}, EXACT[torch.float64])


@any_encoder
def test_torch_func_differentiates_twice(name):
    """A second derivative along a direction, by reverse over reverse and forward over reverse."""
    read, weights, values = as_function(make(name), make_batch([3, 2]))
    along = torch.linspace(-1, 1, values.numel(), dtype=values.dtype).view_as(values)

    def slope(values):
        return (torch.func.grad(read, argnums=1)(weights, values) * along).sum()

    reverse = torch.func.grad(slope)(values)
    gradient = torch.func.grad(read, argnums=1)
    _, forward = torch.func.jvp(lambda v: gradient(weights, v), (values,), (along,))
    torch.testing.assert_close(reverse, forward, rtol=1e-9, atol=1e-12)
    step = 1e-5 * along
    difference = gradient(weights, values + step) - gradient(weights, values - step)
    torch.testing.assert_close(reverse, difference / 2e-5, rtol=1e-6, atol=1e-8)


@any_encoder
def test_torch_func_vectorises_over_models(name):
    read, weights, values = as_function(make(name), make_batch())
    models = {key: torch.stack([part, part / 2]) for key, part in weights.items()}
    expected = [read({key: part[i] for key, part in models.items()}, values) for i in range(2)]
    found = torch.func.vmap(read, in_dims=(0, None))(models, values)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-11, atol=1e-11)


@any_encoder
@pytest.mark.parametrize("recording", [True, False])
def test_tangents_are_not_lost(name, recording):
    """Forward-mode differentiation, with and without a graph beside it."""
    read, weights, values = as_function(make(name), make_batch())
    along = torch.linspace(-1, 1, values.numel(), dtype=values.dtype).view_as(values)
    expected = (torch.func.grad(read, argnums=1)(weights, values) * along).sum()
    with torch.set_grad_enabled(recording), forward_ad.dual_level():
        answer = read(weights, forward_ad.make_dual(values, along))
        tangent = forward_ad.unpack_dual(answer).tangent
    torch.testing.assert_close(tangent, expected)


@any_encoder
def test_the_graph_can_be_kept_and_is_freed(name):
    encoder, batch = make(name), make_batch()
    total = encoder.read(**batch).sum()
    (first,) = torch.autograd.grad(total, batch["values"], retain_graph=True)
    (again,) = torch.autograd.grad(total, batch["values"])
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(total, batch["values"])


@any_encoder
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_states_are_the_same_without_gradients(name, mode):
    encoder, batch = make(name), make_batch()
    with mode():
        states = encoder.read(**batch)
    assert not states.requires_grad
    torch.testing.assert_close(states, encoder.read(**batch), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_frozen_flow_leaves_the_other_gradients_as_they_are(name):
    encoder, batch = make(name), make_batch()
    whole = run(encoder.read, encoder, batch)
    encoder.evolution.requires_grad_(False)
    loss = encoder.read(**batch)
    loss.backward(torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape))
    assert all(parameter.grad is None for parameter in encoder.evolution.parameters())
    for label in ("input_projection.weight", "hidden_projection.bias"):
        torch.testing.assert_close(
            encoder.get_parameter(label).grad, whole[label], rtol=1e-12, atol=1e-12
        )


@any_encoder
def test_threads_do_not_meet(name):
    batches = [make_batch([5 * i + 1, 30, 7]) for i in range(6)]
    encoder = make(name)
    expected = [encoder.read(**batch).detach() for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda batch: encoder.read(**batch).detach(), batches))
    assert all(map(torch.equal, found, expected))


@any_encoder
def test_an_encoder_keeps_nothing_of_a_batch(name):
    encoder = make(name)
    before = {label: dict(vars(module)) for label, module in encoder.named_modules()}
    encoder.read(**make_batch()).sum().backward()
    assert {label: vars(module) for label, module in encoder.named_modules()} == before


def is_plain(encoder: RecurrentEncoder, monkeypatch, **batch) -> bool:
    """Whether reading a batch runs the plain loop."""
    calls, plain = [], encoder.read_plainly
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "read_plainly", lambda *x: calls.append(1) or plain(*x))
        encoder.read(**batch)
    return bool(calls)


@any_encoder
def test_autocast_leaves_the_state_in_its_own_precision(name):
    encoder, batch = make(name, dtype=torch.float32), make_batch(dtype=torch.float32)

    def read(**batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return encoder.read(**batch)

    expected = run(encoder.read, encoder, batch)
    assert_equal(run(read, encoder, batch), expected, EXACT[torch.float32])
    state = encoder.initial_state(2)._replace(hidden=expected["states"][:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder.evolve(state, torch.rand(2, 3)).dtype == torch.float32


class SlowGRU(GRULayer):
    """A layer with a formula of its own, for which the stage of its parent would be wrong."""

    def prepare(self):
        step = super().prepare()
        return lambda t, h: step(t / 2, h)


class SlowStack(FlowStack):
    """A stack with a formula of its own."""

    def prepare(self):
        step = super().prepare()
        return lambda t, h: step(t / 2, h)


def with_another_activation() -> Flow:
    flow = ResNetFlow(HIDDEN)
    flow.flows[0].g.activation = torch.tanh
    return flow


class Decay(Flow):
    """A flow without stages."""

    def prepare(self):
        return lambda t, x: x * torch.exp(-t)

    def inverse(self, t, y, *, tol=None, max_iter=1000):
        return y * torch.exp(t)


@pytest.mark.parametrize(
    "flow",
    [
        Decay(HIDDEN),
        FlowStack([ResNetFlow(HIDDEN), Decay(HIDDEN)]),
        ResNetFlow(HIDDEN, hidden_dims=(8, 8)),
        SlowGRU(HIDDEN),
        SlowStack([GRULayer(HIDDEN)]),
        with_another_activation(),
    ],
    ids=["alone", "in a stack", "two hidden layers", "formula", "stack", "activation"],
)
def test_a_flow_without_stages_is_left_to_the_plain_loop(flow, monkeypatch):
    encoder = RecurrentEncoder(CHANNELS, FEATURES, HIDDEN, FlowEvolution(flow)).double()
    assert is_plain(encoder, monkeypatch, **make_batch())


@any_encoder
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_fast_equals_plain_on_an_accelerator(name):
    encoder, batch = make(name).cuda(), make_batch()
    batch = {
        key: part.detach().cuda().requires_grad_(part.requires_grad) for key, part in batch.items()
    }
    plain = run(lambda **b: encoder.read_plainly(**b).cpu(), encoder, batch)
    assert_equal(run(lambda **b: encoder.read(**b).cpu(), encoder, batch), plain, 1e-10)
