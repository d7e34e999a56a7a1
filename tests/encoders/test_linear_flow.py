"""What the linear-flow encoder promises beyond the laws of all encoders."""

import math

import pytest
import torch

from deltaflow import DeltaflowError
from deltaflow.encoders import LinearFlowEncoder, linear_flow, make_encoder

CHANNELS, FEATURES = 3, 2
LENGTHS = [33, 1, 0, 50, 17]


def make(hidden_size: int = 10, dtype=torch.float64, **options) -> LinearFlowEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = LinearFlowEncoder(CHANNELS, FEATURES, hidden_size, **options).to(dtype)
        for tempo in encoder.tempi:
            torch.nn.init.normal_(tempo.weight)
        return encoder


def make_batch(lengths=LENGTHS, dtype=torch.float64) -> dict[str, torch.Tensor]:
    """Gaps over four decades, half of the channels observed, and noise as padding."""
    random = torch.Generator().manual_seed(0)
    shape = len(lengths), max(lengths)
    observed = torch.rand(*shape, CHANNELS, generator=random) < 0.5
    return {
        "values": torch.randn(*shape, CHANNELS, generator=random, dtype=dtype) * observed,
        "observed": observed,
        "delta_t": 10 ** (4 * torch.rand(shape, generator=random, dtype=dtype) - 2),
        "features": torch.randn(*shape, FEATURES, generator=random, dtype=dtype),
        "lengths": torch.tensor(lengths),
    }


def step_by_step(encoder: LinearFlowEncoder, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Read each series by `update` alone."""
    rows = []
    for row, length in enumerate(batch["lengths"].tolist()):
        state = encoder.initial_state(1)
        for step in range(length):
            names = ("delta_t", "values", "observed", "features")
            state = encoder.update(state, *(batch[name][row : row + 1, step] for name in names))
        rows.append(state.hidden)
    return torch.cat(rows)


@pytest.mark.slow
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("hidden_size", [9, 10])
@pytest.mark.parametrize("tempo", [1.0, 3.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)], ids=["f64", "f32"]
)
def test_the_scan_has_the_values_and_gradients_of_the_loop(
    num_layers, hidden_size, tempo, dtype, tolerance
):
    encoder = make(hidden_size, dtype, num_layers=num_layers, tempo=tempo)
    batch = make_batch(dtype=dtype)
    tensors = {name: batch[name].requires_grad_() for name in ("values", "delta_t", "features")}
    tensors |= dict(encoder.named_parameters())

    def gradients(hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        weights = torch.linspace(-1, 2, hidden.numel(), dtype=dtype).view_as(hidden)
        found = torch.autograd.grad((weights * hidden).sum(), list(tensors.values()))
        return {"hidden": hidden, **dict(zip(tensors, found, strict=True))}

    plain = gradients(step_by_step(encoder, batch))
    for name, fast in gradients(encoder(**batch).hidden).items():
        error = (fast - plain[name]).abs().max()
        assert error <= tolerance * (1 + plain[name].abs().max()), name


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("tempo", [1.0, 3.0])
@pytest.mark.parametrize("lengths", [LENGTHS, [36], [50, 50], [0, 1]])
def test_states_are_the_same_without_gradients(num_layers, tempo, lengths):
    """Then only the last state of the last layer is computed, and less is kept."""
    encoder, batch = make(num_layers=num_layers, tempo=tempo), make_batch(lengths)
    trained = encoder(**batch)
    with torch.no_grad():
        state = encoder(**batch)
    torch.testing.assert_close(state.hidden, trained.hidden, atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("tempo", [1.0, 3.0])
@pytest.mark.parametrize("gap", [1e-9, 1e-3, 1.0, 1e3])
def test_two_steps_to_a_query_are_one(gap, tempo):
    encoder = make(tempo=tempo)
    state = encoder(**make_batch())
    half = torch.full((len(LENGTHS), 1), gap, dtype=torch.float64)
    between = state._replace(hidden=encoder.evolve(state, half).squeeze(1))
    torch.testing.assert_close(
        encoder.evolve(between, half), encoder.evolve(state, 2 * half), atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize("hidden_size", [9, 10])
@pytest.mark.parametrize("tempo", [1.0, 3.0])
def test_queries_have_the_values_and_gradients_of_the_flow(hidden_size, tempo):
    encoder = make(hidden_size, tempo=tempo)
    state = encoder(**make_batch())
    hidden = state.hidden.detach().requires_grad_()
    gaps = torch.rand(len(LENGTHS), 3, dtype=torch.float64).mul(50).requires_grad_()
    asked = [hidden, gaps, encoder.flow.rate, encoder.flow.frequency]

    def results(evolved: torch.Tensor):
        weights = torch.linspace(-1, 2, evolved.numel(), dtype=evolved.dtype).view_as(evolved)
        return evolved, *torch.autograd.grad((weights * evolved).sum(), asked)

    oscillators, tempi = hidden.unsqueeze(1).tensor_split([encoder.flow.dim], -1)
    t = gaps.unsqueeze(-1)
    own = t * tempi.exp()[..., encoder.layer_of] if encoder.tempi else t
    plain = torch.cat([encoder.flow.prepare()(own, oscillators), tempi.expand(-1, 3, -1)], -1)
    fast = encoder.evolve(state._replace(hidden=hidden), gaps)
    torch.testing.assert_close(results(fast), results(plain), atol=1e-12, rtol=1e-10)


def test_states_stay_within_what_drives_them():
    """A gate takes a weighted mean, and between observations nothing grows."""
    encoder, batch = make(num_layers=1), make_batch([200])
    batch["values"] = 10 * batch["values"].sign()
    entry, size = encoder.entries[0], encoder.flow.num_modes
    reach = torch.tensor([10.0] * CHANNELS + [1.0] * CHANNELS + [5.0] * (FEATURES + 1)).double()
    largest = (entry.weight.abs() @ reach + entry.bias.abs())[size:].view(2, size).norm(dim=0)
    hidden = encoder(**batch).hidden.view(2, size)
    assert (hidden.norm(dim=0) <= largest).all()


def test_autocast_leaves_the_recurrence_exact():
    encoder, batch = make(dtype=torch.float32), make_batch(dtype=torch.float32)
    exact = encoder(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        state = encoder(**batch)
        asked = encoder.evolve(state, torch.ones(len(LENGTHS), 2))
    assert torch.equal(state.hidden, exact.hidden)
    assert asked.dtype == torch.float32


@pytest.mark.parametrize("gap", [1e-6, 1.0, 1e6])
def test_gradients_of_long_series_are_exact_at_any_time_scale(gap):
    """Phases grow with the series, their errors must not."""
    exact, batch = make(), make_batch([2000])
    batch["delta_t"] = gap * batch["delta_t"]
    encoder = make(dtype=torch.float32)
    encoder.load_state_dict(exact.state_dict())
    small = {k: p.float() if p.is_floating_point() else p for k, p in batch.items()}
    small["delta_t"] = batch["delta_t"].float()
    batch["delta_t"] = small["delta_t"].double()
    found = [
        torch.autograd.grad(model(**inputs).hidden.square().sum(), list(model.parameters()))
        for model, inputs in ((encoder, small), (exact, batch))
    ]
    for single, double, (name, _) in zip(*found, exact.named_parameters(), strict=True):
        assert (single - double).abs().max() <= 1e-3 * (1e-6 + double.abs().max()), name


def test_many_series_are_read_in_groups(monkeypatch):
    lengths = [33, 1, 0, 50, 17, 50, 2, 0]
    encoder, batch = make(), make_batch(lengths)
    values = batch["values"].requires_grad_()

    def results():
        hidden = encoder(**batch).hidden
        weights = torch.linspace(-1, 2, hidden.numel(), dtype=hidden.dtype).view_as(hidden)
        return hidden, *torch.autograd.grad((weights * hidden).sum(), [values, encoder.flow.rate])

    read, sizes = encoder._read, []
    monkeypatch.setattr(encoder, "_read", lambda *x: sizes.append(int(x[3].sum())) or read(*x))
    whole = results()
    monkeypatch.setattr(linear_flow, "CACHED", 85)
    torch.testing.assert_close(results(), whole, atol=1e-11, rtol=1e-11)
    assert sizes == [153, 84, 69]


@pytest.mark.parametrize("lengths", [[0, 30], [30, 0], [0, 5, 30, 0, 0, 30, 1]])
def test_no_group_is_without_observations(lengths, monkeypatch):
    encoder, batch = make(), make_batch(lengths)
    whole = encoder(**batch).hidden
    monkeypatch.setattr(linear_flow, "CACHED", 20)
    torch.testing.assert_close(encoder(**batch).hidden, whole, atol=1e-11, rtol=1e-11)


def test_a_tempo_turns_all_oscillators_of_a_layer_faster():
    encoder = make(10, num_layers=2, tempo=4.0)
    state = encoder(**make_batch([30]))
    oscillators, tempi = state.hidden.split([8, 2], -1)
    assert (tempi.abs() <= math.log(4.0)).all()
    assert (tempi != 0).all()
    assert encoder.sizes == [2, 2]
    later = encoder.evolve(state, torch.ones(1, 1, dtype=torch.float64))
    time = tempi.exp().repeat_interleave(2, -1)
    expected = encoder.flow.prepare()(time, oscillators)
    torch.testing.assert_close(later[0], torch.cat([expected, tempi], -1))


def test_a_new_network_has_the_tempo_of_the_data():
    encoder = LinearFlowEncoder(CHANNELS, FEATURES, 8, tempo=3.0).double()
    tempi = encoder(**make_batch()).hidden[:, encoder.flow.dim :]
    assert tempi.shape == (len(LENGTHS), 2)
    assert not tempi.any()


def test_a_step_of_training_changes_a_tempo_a_little():
    """Tempi that jump, by a sum over many inputs, keep frequencies from settling."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = LinearFlowEncoder(CHANNELS, FEATURES, 10, width=256, tempo=3.0).double()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.01)
    encoder(**make_batch())[0][:, encoder.flow.dim :].sum().backward()
    optimizer.step()
    tempi = encoder(**make_batch()).hidden[:, encoder.flow.dim :]
    assert tempi.abs().max() < 0.05
    assert (tempi[[0, 1, 3, 4]] != 0).all()


def test_known_cycles_are_where_frequencies_start():
    encoder = make(16, num_layers=2, cycles=[24.0])
    _, turns = encoder.flow.exponent()
    for modes in turns.split(encoder.sizes):
        assert (1 / modes - 24.0).abs().min() < 1e-3


@pytest.mark.parametrize(("hidden_size", "tempo"), [(9, 1.0), (9, 3.0), (8, 3.0)])
def test_every_number_that_moves_turns(hidden_size, tempo):
    """One that only decayed would leave, beyond the trained lengths, all values it has had."""
    encoder = make(hidden_size, num_layers=1, tempo=tempo)
    (_, turns), num_tempi = encoder.flow.exponent(), int(tempo > 1)
    assert len(turns) == (hidden_size - num_tempi) // 2
    assert (turns > 0).all()
    state = encoder(**make_batch())
    later = encoder.evolve(state, torch.ones(len(LENGTHS), 1, dtype=torch.float64)).squeeze(1)
    for hidden in (state.hidden, later):
        assert hidden.shape == (len(LENGTHS), hidden_size)
        assert not hidden[:, encoder.flow.dim + num_tempi :].any()


def test_more_layers_than_oscillators_are_refused():
    with pytest.raises(DeltaflowError, match=r"hidden_size 4 makes 2 oscillators.*from 1 to 2"):
        make_encoder("linear_flow", 1, 0, 4, num_layers=3)
    with pytest.raises(DeltaflowError, match="from 1 to 2"):
        make_encoder("linear_flow", 1, 0, 4, num_layers=0)
    with pytest.raises(DeltaflowError, match="makes 1 oscillators"):
        make_encoder("linear_flow", 1, 0, 4, num_layers=2, tempo=2.0)
    with pytest.raises(DeltaflowError, match=r"makes 0 oscillators.*larger hidden_size"):
        make_encoder("linear_flow", 1, 0, 1, num_layers=1)


@pytest.mark.parametrize(
    "options",
    [{"span": -1.0}, {"cycles": [math.inf]}, {"tempo": 0.5}, {"tempo": math.nan}],
    ids=str,
)
def test_impossible_time_scales_are_refused(options):
    with pytest.raises(DeltaflowError, match=next(iter(options))):
        make_encoder("linear_flow", 1, 0, 4, **options)
