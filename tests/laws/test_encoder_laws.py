"""The laws that every registered encoder obeys.

An encoder is tested by its line in ``ENCODERS``. Everything runs in float64; sums of a few dozen
numbers of size one, taken in another order, differ by less than ``CLOSE``.
"""

import pytest
import torch

from deltaflow.encoders import ENCODERS, Encoder, State, make_encoder

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
CHANNELS, FEATURES, HIDDEN = 3, 2, 6
LENGTHS = [7, 1, 12, 0, 4]

any_encoder = pytest.mark.parametrize("name", ENCODERS)


def make(name: str, hidden_size: int = HIDDEN, **options) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_encoder(name, CHANNELS, FEATURES, hidden_size, **options).double()


def make_batch(lengths=LENGTHS, padding: float | None = 0.0, seed: int = 0) -> dict:
    """A padded batch: gaps over four decades, a third of the channels observed.

    ``padding`` fills what lies beyond a series, which is then declared as observed; None fills it
    with random numbers.
    """
    random = torch.Generator().manual_seed(seed)
    count, longest = len(lengths), max(lengths)
    shape = (count, longest, CHANNELS)
    observed = torch.rand(shape, generator=random) < 0.35
    values = torch.randn(shape, generator=random, dtype=torch.float64) * observed
    gaps = torch.rand(shape[:2], generator=random, dtype=torch.float64)
    batch = {
        "values": values,
        "observed": observed,
        "delta_t": 10 ** (4 * gaps - 2),
        "features": torch.randn(count, longest, FEATURES, generator=random, dtype=torch.float64),
        "lengths": torch.tensor(lengths),
    }
    batch["delta_t"][:, 0] = 0.0
    beyond = torch.arange(longest) >= batch["lengths"][:, None]
    if padding is None:
        noise = torch.rand(longest, generator=random, dtype=torch.float64)
        padding = (10 * noise).expand(count, -1)[beyond]
    for field in ("values", "delta_t", "features"):
        part = batch[field]
        fill = padding if part.ndim == 2 or isinstance(padding, float) else padding.unsqueeze(-1)
        part[beyond] = fill
    batch["observed"][beyond] = not isinstance(padding, float) or padding != 0.0
    return batch


def one_of(batch: dict, row: int, length: int | None = None) -> dict:
    """One series of a batch, without its padding."""
    length = int(batch["lengths"][row]) if length is None else length
    single = {k: v[row : row + 1, :length] for k, v in batch.items() if k != "lengths"}
    return {**single, "lengths": torch.tensor([length])}


def assert_states_agree(left: State, right: State) -> None:
    for field, one, other in zip(State._fields, left, right, strict=True):
        torch.testing.assert_close(one, other, **CLOSE, msg=lambda m, field=field: f"{field}: {m}")


@any_encoder
def test_updates_one_by_one_give_the_state_of_the_whole_series(name):
    encoder, batch = make(name), make_batch()
    whole = encoder(**batch)
    for row, length in enumerate(LENGTHS):
        state = encoder.initial_state(1)
        for step in range(length):
            state = encoder.update(
                state,
                batch["delta_t"][row : row + 1, step],
                batch["values"][row : row + 1, step],
                batch["observed"][row : row + 1, step],
                batch["features"][row : row + 1, step],
            )
        assert_states_agree(state, State(*(part[row : row + 1] for part in whole)))


@any_encoder
def test_updates_continue_a_series_that_was_read(name):
    encoder, batch = make(name), make_batch([9])
    state = encoder(**one_of(batch, 0, length=8))
    last = [batch[k][:, 8] for k in ("delta_t", "values", "observed", "features")]
    assert_states_agree(encoder.update(state, *last), encoder(**batch))


@any_encoder
def test_the_state_does_not_depend_on_batch_mates(name):
    encoder, batch = make(name), make_batch()
    together = encoder(**batch)
    for row, length in enumerate(LENGTHS):
        if length:
            alone = encoder(**one_of(batch, row))
            assert_states_agree(alone, State(*(part[row : row + 1] for part in together)))


def gradients(encoder: Encoder, batch: dict) -> dict[str, torch.Tensor]:
    """The gradients of weights and inputs, by name, of a sum that weighs all of the state."""
    leaves = dict(encoder.named_parameters())
    for field in ("values", "delta_t", "features"):
        leaves[field] = batch[field].clone().requires_grad_()
    state = encoder(**{**batch, **{field: leaves[field] for field in batch if field in leaves}})
    asked = encoder.evolve(state, torch.tensor([[0.5, 3.0]] * len(LENGTHS), dtype=torch.float64))
    weight = torch.linspace(-1, 2, asked.numel(), dtype=asked.dtype).view_as(asked)
    total = (weight * asked).sum() + state.last.sum() + state.age.sum()
    found = torch.autograd.grad(total, [*leaves.values()], allow_unused=True)
    return {name: part for name, part in zip(leaves, found, strict=True) if part is not None}


@any_encoder
def test_a_batch_is_read_as_in_the_plain_loop(name, monkeypatch):
    encoder, batch = make(name), make_batch()
    states, slopes = encoder(**batch), gradients(encoder, batch)
    monkeypatch.setattr(type(encoder), "read", Encoder.read_plainly)
    assert_states_agree(encoder(**batch), states)
    for label, gradient in gradients(encoder, batch).items():
        torch.testing.assert_close(gradient, slopes[label], **CLOSE, msg=label)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "neural_cde"])
def test_torch_func_differentiates(name):
    """All but the neural CDE: torch.func does not know the autograd functions of torchdiffeq."""
    encoder, batch = make(name), make_batch()
    weights = {label: part.detach() for label, part in encoder.named_parameters()}

    def read(weights, values):
        inputs = {**batch, "values": values}
        return torch.func.functional_call(encoder, weights, kwargs=inputs).hidden.square().sum()

    found, of_values = torch.func.grad(read, argnums=(0, 1))(weights, batch["values"])
    values = batch["values"].clone().requires_grad_()
    encoder(**{**batch, "values": values}).hidden.square().sum().backward()
    torch.testing.assert_close(of_values, values.grad, **CLOSE)
    for label, parameter in encoder.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[label], expected, **CLOSE, msg=label)


any_padding = pytest.mark.parametrize(
    "padding", [7.5, float("nan"), float("inf"), None], ids=["constant", "nan", "inf", "random"]
)


@any_encoder
@any_padding
def test_what_lies_in_the_padding_has_no_effect_on_gradients(name, padding):
    encoder = make(name)
    expected = gradients(encoder, make_batch())
    found = gradients(encoder, make_batch(padding=padding))
    assert found.keys() == expected.keys()
    for label, gradient in found.items():
        torch.testing.assert_close(gradient, expected[label], **CLOSE, msg=label)


@any_encoder
@any_padding
def test_what_lies_in_the_padding_has_no_effect(name, padding):
    encoder = make(name)
    assert_states_agree(encoder(**make_batch(padding=padding)), encoder(**make_batch()))


@any_encoder
def test_more_padding_has_no_effect(name):
    encoder, batch = make(name), make_batch()
    longer = {k: v if k == "lengths" else torch.cat([v, v[:, :3]], dim=1) for k, v in batch.items()}
    assert_states_agree(encoder(**longer), encoder(**batch))


@any_encoder
def test_a_series_without_observations_keeps_the_initial_state(name):
    encoder, batch = make(name), make_batch()
    row = LENGTHS.index(0)
    state = State(*(part[row : row + 1] for part in encoder(**batch)))
    assert_states_agree(state, encoder.initial_state(1))


@any_encoder
def test_last_age_and_seen_are_those_of_the_observations(name):
    batch = make_batch()
    state = make(name)(**batch)
    for row, length in enumerate(LENGTHS):
        times = batch["delta_t"][row, :length].cumsum(0).tolist()
        now = times[-1] if times else 0.0
        for channel in range(CHANNELS):
            last, age, seen = 0.0, now, False
            for step in range(length):
                if batch["observed"][row, step, channel]:
                    last = batch["values"][row, step, channel].item()
                    age, seen = now - times[step], True
            assert state.seen[row, channel].item() is seen
            assert state.last[row, channel].item() == last
            assert state.age[row, channel].item() == pytest.approx(age, rel=1e-12, abs=1e-12)


@any_encoder
def test_many_queries_are_answered_as_one_by_one(name):
    encoder = make(name)
    state = encoder(**make_batch())
    random = torch.Generator().manual_seed(1)
    gaps = 10 ** (5 * torch.rand(len(LENGTHS), 12, generator=random, dtype=torch.float64) - 2)
    gaps[:, 7] = gaps[:, 3]  # asked twice
    together = encoder.evolve(state, gaps)
    assert together.shape == (len(LENGTHS), 12, HIDDEN)
    for query in range(12):
        alone = encoder.evolve(state, gaps[:, query : query + 1])
        torch.testing.assert_close(alone[:, 0], together[:, query], **CLOSE)


@any_encoder
def test_no_queries_have_no_answers(name):
    encoder, count = make(name), len(LENGTHS)
    state = encoder(**make_batch())
    assert encoder.evolve(state, torch.zeros(count, 0).double()).shape == (count, 0, HIDDEN)


@any_encoder
def test_the_order_of_queries_does_not_matter(name):
    encoder = make(name)
    state = encoder(**make_batch())
    random = torch.Generator().manual_seed(2)
    gaps = 100 * torch.rand(len(LENGTHS), 30, generator=random, dtype=torch.float64)
    order = torch.randperm(30, generator=random)
    shuffled = encoder.evolve(state, gaps[:, order])
    torch.testing.assert_close(shuffled, encoder.evolve(state, gaps)[:, order], **CLOSE)


@any_encoder
def test_no_time_leaves_the_state_as_it_is(name):
    encoder = make(name)
    state = encoder(**make_batch())
    evolved = encoder.evolve(state, torch.zeros(len(LENGTHS), 2, dtype=torch.float64))
    assert torch.equal(evolved, state.hidden.unsqueeze(1).expand_as(evolved))


@any_encoder
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gap", [0.0, 1e-6, 1.0, 1e6])
def test_state_and_gradient_are_finite_at_any_gap(name, gap, dtype):
    encoder = make(name).to(dtype)
    batch = make_batch([30] * 4)
    batch["delta_t"] = torch.full_like(batch["delta_t"], gap)
    batch["values"] = (10 * batch["values"]).clamp(-10, 10)  # the limit of scaled inputs
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    state = encoder(**batch)
    asked = encoder.evolve(state, torch.tensor([[0.0, gap, 1e6]] * 4, dtype=dtype))
    assert asked.isfinite().all()
    (asked**2).mean().backward()
    for parameter_name, parameter in encoder.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), parameter_name


@any_encoder
def test_early_observations_reach_the_gradient(name):
    encoder, batch = make(name), make_batch([5])
    values = batch["values"].clone().requires_grad_()
    encoder(**{**batch, "values": values}).hidden.sum().backward()
    assert (values.grad[:, 0] != 0).any()


@any_encoder
def test_the_state_depends_on_when_values_were_observed(name):
    encoder, batch = make(name), make_batch([6])
    slower = {**batch, "delta_t": 3 * batch["delta_t"]}
    assert not torch.allclose(encoder(**batch).hidden, encoder(**slower).hidden, atol=1e-4)
