"""What GRU-D and the Neural CDE promise beyond the laws, and that every baseline forecasts."""

from math import exp

import numpy as np
import pytest
import torch
from torch import Tensor

import deltaflow
from deltaflow import DeltaflowError, UnknownNameError
from deltaflow.encoders import Encoder, State, VectorField, make_encoder
from deltaflow.encoders.neural_cde import INTERPOLATIONS
from deltaflow.encoders.neural_ode import SOLVERS

BASELINES = ("ode_rnn", "gru_ode", "gru_d", "neural_cde")
CHANNELS, FEATURES, HIDDEN = 2, 1, 4
LENGTHS = [5, 1, 3]

any_interpolation = pytest.mark.parametrize("interpolation", INTERPOLATIONS)
# The combinations whose state can be continued by one observation.
streamable = pytest.mark.parametrize("interpolation", ["rectilinear", "linear"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(name: str, **options) -> Encoder:
    return make_encoder(name, CHANNELS, FEATURES, HIDDEN, **options).double()


def make_batch(lengths: list[int] = LENGTHS) -> dict[str, Tensor]:
    shape = (len(lengths), max(lengths), CHANNELS)
    observed = torch.rand(shape) < 0.6
    delta_t = 0.2 + torch.rand(shape[:2], dtype=torch.float64)
    delta_t[:, 0] = 0
    return {
        "values": torch.randn(shape, dtype=torch.float64) * observed,
        "observed": observed,
        "delta_t": delta_t,
        "lengths": torch.tensor(lengths),
        "features": torch.randn(*shape[:2], FEATURES, dtype=torch.float64),
    }


def one_of(batch: dict[str, Tensor], row: int, length: int) -> dict[str, Tensor]:
    single = {k: v[row : row + 1, :length] for k, v in batch.items() if k != "lengths"}
    return {**single, "lengths": torch.tensor([length])}


def read_one_by_one(encoder: Encoder, batch: dict[str, Tensor]) -> State:
    state = encoder.initial_state(len(batch["values"]))
    for step in range(batch["values"].shape[1]):
        parts = (batch[k][:, step] for k in ("delta_t", "values", "observed", "features"))
        state = encoder.update(state, *parts)
    return state


# --- every baseline


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("hidden_size", [1, 3])
@pytest.mark.parametrize("name", BASELINES)
def test_any_width_without_features_in_either_precision(name, hidden_size, dtype):
    encoder = make_encoder(name, 2, 0, hidden_size).to(dtype)
    batch = make_batch()
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    state = encoder(**{**batch, "features": torch.empty(3, 5, 0, dtype=dtype)})
    hidden = encoder.evolve(state, torch.rand(3, 6, dtype=dtype))
    assert hidden.shape == (3, 6, hidden_size)
    assert hidden.dtype == dtype
    assert hidden.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"solver": "dopri5", "rtol": 1e-7, "atol": 1e-8}])
@pytest.mark.parametrize("name", ["ode_rnn", "gru_ode", "neural_cde"])
def test_solutions_agree_within_the_tolerance_whoever_shares_the_batch(name, options):
    encoder, batch = make(name, **options), make_batch()
    together = encoder(**batch).hidden
    for row, length in enumerate(LENGTHS):
        alone = encoder(**one_of(batch, row, length)).hidden
        # An adaptive solver's local errors of 1e-7 add up over the segments.
        tolerance = 1e-5 if options else 1e-13
        torch.testing.assert_close(alone[0], together[row], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("encoder", BASELINES)
@pytest.mark.parametrize("kind", ["univariate", "multivariate"])
def test_a_baseline_is_trained_and_forecasts(encoder, kind, trained, datasets, instances):
    names = {
        "ode_rnn": "ODERNNEstimator",
        "gru_ode": "GRUODEEstimator",
        "gru_d": "GRUDEstimator",
        "neural_cde": "NeuralCDEEstimator",
    }
    predictor = trained(names[encoder], kind)
    assert predictor.network.encoder.num_evaluations >= 0
    entries = instances(datasets[kind])
    for forecast in predictor.predict(entries):
        assert np.isfinite(forecast.mean).all()
        assert np.isfinite(forecast.quantile(0.9)).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {}) for name in BASELINES],
        ("ode_rnn", {"solver": "euler", "num_steps": 2, "adjoint": True}),
        ("gru_ode", {"solver": "dopri5"}),
        ("neural_cde", {"interpolation": "linear", "continuation": "coupling_flow"}),
    ],
)
def test_paths_are_sampled(name, options, make_estimator, univariate, instances):
    estimator = make_estimator(
        deltaflow.IrregularEstimator,
        encoder=name,
        encoder_kwargs=options,
        sampling="path",
        num_parallel_samples=5,
        num_batches_per_epoch=1,
    )
    forecast = next(iter(estimator.train(univariate).predict(instances(univariate))))
    assert forecast.samples.shape == (5, 4)
    assert np.isfinite(forecast.samples).all()


# --- GRU-D


def small_gru_d() -> Encoder:
    """Two channels, one state feature, and decays that can be followed by hand."""
    encoder = make_encoder("gru_d", 2, 0, 1).double()
    with torch.no_grad():
        encoder.input_rate.copy_(torch.tensor([0.5, -1.0]))
        encoder.input_bias.copy_(torch.tensor([0.1, 0.2]))
        encoder.hidden_rate.weight.copy_(torch.tensor([[0.3, 0.2]]))
        encoder.hidden_rate.bias.fill_(-0.1)
    return encoder


def double(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def test_gru_d_decays_by_hand():
    encoder = small_gru_d()
    # Channel 0 is seen at time 0 and channel 1 at time 3, when channel 0 is 3 gaps old.
    values = torch.stack([double(2.0, 0.0), double(0.0, 5.0), double(0.0, 0.0)], dim=1)
    observed = values != 0
    gaps, lengths = double(0.0, 3.0, 1.0), torch.tensor([3])
    state = encoder(values, observed, gaps, lengths, torch.empty(1, 3, 0).double())

    h = encoder.cell(double(2.0, 0.0, 1.0, 0.0), double(0.0))  # what was never seen stands at 0
    h = exp(-(0.3 * 3 + 0.2 * 3 - 0.1)) * h
    h = encoder.cell(double(exp(-(0.5 * 3 + 0.1)) * 2, 5.0, 0.0, 1.0), h)
    h = exp(-(0.3 * 4 + 0.2 * 1 - 0.1)) * h
    # The exponent of channel 1, -1 * 1 + 0.2, is negative: it does not decay.
    h = encoder.cell(double(exp(-(0.5 * 4 + 0.1)) * 2, 5.0, 0.0, 0.0), h)
    torch.testing.assert_close(state.hidden, h)

    asked = encoder.evolve(state, double(0.0, 10.0))
    decayed = exp(-(0.3 + 0.2) * 10) * h  # both ages grow by 10
    torch.testing.assert_close(asked, torch.stack([h, decayed], dim=1))


def test_gru_d_never_grows_between_observations():
    encoder = small_gru_d()
    with torch.no_grad():
        encoder.hidden_rate.weight.neg_()  # a rate that falls with age
        encoder.hidden_rate.bias.fill_(9.0)
    state = encoder.initial_state(1)._replace(hidden=double(0.7), age=double(1.0, 2.0))
    assert torch.equal(
        encoder.evolve(state, double(0.0, 1.0, 1e6)), double(0.7, 0.7, 0.7)[..., None]
    )


# --- Neural CDE


class AffineField(VectorField):
    """The i-th column of the field is A_i h + b_i."""

    def __init__(self, matrices: Tensor, offsets: Tensor) -> None:
        super().__init__()
        self.matrices, self.offsets = matrices, offsets  # (P, H, H), (P, H)

    def forward(self, time: Tensor, hidden: Tensor) -> Tensor:
        return (torch.einsum("pij,bj->bpi", self.matrices, hidden) + self.offsets).mT


CONTROLS = 1 + 2 * CHANNELS + FEATURES
TIGHT = {
    "rk4": {"solver": "rk4", "num_steps": 32},
    "dopri5": {"solver": "dopri5", "rtol": 1e-8, "atol": 1e-10},
}


def control_end(batch: dict[str, Tensor], row: int) -> Tensor:
    """Where the path of a series ends, counted by hand."""
    single = one_of(batch, row, int(batch["lengths"][row]))
    values, observed = single["values"][0], single["observed"][0]
    last = [([0.0, *values[observed[:, c], c].tolist()])[-1] for c in range(CHANNELS)]
    return torch.cat(
        [
            single["delta_t"].sum(1),
            torch.tensor(last, dtype=torch.float64),
            observed.sum(0).double(),
            single["features"][0].sum(0),
        ]
    )


# One Euler or midpoint step is not exact for the quadratic slope of a cubic path.
@pytest.mark.parametrize(
    ("interpolation", "solver"),
    [
        *[(path, s) for path in ("rectilinear", "linear") for s in SOLVERS],
        *[("hermite", s) for s in ("rk4", "dopri5")],
    ],
)
def test_a_constant_field_carries_the_state_along_the_path(interpolation, solver):
    encoder, batch = make("neural_cde", interpolation=interpolation, solver=solver), make_batch()
    offsets = torch.randn(CONTROLS, HIDDEN, dtype=torch.float64)
    encoder.field = AffineField(torch.zeros(CONTROLS, HIDDEN, HIDDEN).double(), offsets)
    hidden = encoder(**batch).hidden
    for row in range(len(LENGTHS)):
        torch.testing.assert_close(hidden[row], control_end(batch, row) @ offsets)


@any_interpolation
@pytest.mark.parametrize("options", TIGHT.values(), ids=TIGHT)
def test_an_affine_field_grows_as_the_exponential_of_the_path(interpolation, options):
    # dh = (h + 1) v·dX from h = 0 has the solution exp(v·X) - 1, on whatever way X gets there.
    encoder, batch = make("neural_cde", interpolation=interpolation, **options), make_batch()
    v = torch.randn(CONTROLS, dtype=torch.float64) / 5
    identity = torch.eye(HIDDEN, dtype=torch.float64)
    encoder.field = AffineField(v[:, None, None] * identity, v[:, None].expand(-1, HIDDEN))
    hidden = encoder(**batch).hidden
    for row in range(len(LENGTHS)):
        expected = torch.expm1(control_end(batch, row) @ v).expand(HIDDEN)
        torch.testing.assert_close(hidden[row], expected, rtol=1e-5, atol=1e-6)


@streamable
@pytest.mark.parametrize("options", TIGHT.values(), ids=TIGHT)
def test_on_straight_segments_matrix_exponentials_multiply(interpolation, options):
    # Matrices that do not commute tell the order of the segments: time before values or with them.
    encoder = make("neural_cde", interpolation=interpolation, **options)
    batch = make_batch([5])
    matrices = torch.randn(CONTROLS, HIDDEN, HIDDEN, dtype=torch.float64) / 5
    offsets = torch.randn(CONTROLS, HIDDEN, dtype=torch.float64)
    encoder.field = AffineField(matrices, offsets)
    affine = torch.zeros(CONTROLS, HIDDEN + 1, HIDDEN + 1, dtype=torch.float64)
    affine[:, :HIDDEN, :HIDDEN], affine[:, :HIDDEN, -1] = matrices, offsets

    h = torch.zeros(HIDDEN + 1, dtype=torch.float64)
    h[-1] = 1.0
    start = torch.zeros(CONTROLS, dtype=torch.float64)
    for length in range(1, 6):
        end = control_end({**batch, "lengths": torch.tensor([length])}, 0)
        step = end - start
        time_only = torch.zeros_like(step)
        time_only[0] = step[0]
        parts = [time_only, step - time_only] if interpolation == "rectilinear" else [step]
        for part in parts:
            h = torch.matrix_exp(torch.einsum("p,pij->ij", part, affine)) @ h
        start = end
    torch.testing.assert_close(encoder(**batch).hidden[0], h[:-1], rtol=1e-5, atol=1e-6)


@any_interpolation
def test_padding_and_batch_mates_have_no_effect(interpolation):
    encoder, batch = make("neural_cde", interpolation=interpolation), make_batch()
    together = encoder(**batch).hidden
    for row, length in enumerate(LENGTHS):
        alone = encoder(**one_of(batch, row, length)).hidden
        torch.testing.assert_close(alone[0], together[row], rtol=1e-12, atol=1e-13)


@any_interpolation
def test_a_single_observation_is_read(interpolation):
    encoder, batch = make("neural_cde", interpolation=interpolation), make_batch([1])
    batch["observed"][:] = True
    batch["values"][:] = 1.0
    hidden = encoder(**batch).hidden
    assert (hidden != 0).any()
    assert not torch.allclose(hidden, encoder(**{**batch, "values": -batch["values"]}).hidden)


@any_interpolation
@pytest.mark.parametrize("name", ["neural_cde"])
def test_a_channel_that_starts_late_is_not_filled_from_the_future(name, interpolation):
    encoder, batch = make(name, interpolation=interpolation), make_batch([5])
    batch["observed"][:, :, 1] = torch.tensor([False, False, False, False, True])
    batch["values"] = batch["values"] * batch["observed"]
    states = []
    for late in (1.0, 9.0):
        batch["values"][:, 4, 1] = late
        states.append([encoder(**one_of(batch, 0, length)).hidden for length in (4, 5)])
    assert torch.equal(states[0][0], states[1][0])
    assert not torch.allclose(states[0][1], states[1][1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {}) for name in BASELINES],
        ("neural_cde", {"interpolation": "linear"}),
        ("neural_cde", {"interpolation": "hermite"}),
    ],
)
def test_what_comes_after_a_prefix_does_not_change_its_state(name, options):
    encoder, batch = make(name, **options), make_batch([5])
    other = make_batch([5])
    prefix = torch.tensor([3])
    mixed = {
        k: torch.cat([batch[k][:, :3], 100 * other[k][:, 3:]], dim=1)
        for k in ("values", "delta_t", "features")
    }
    mixed["observed"] = torch.cat([batch["observed"][:, :3], other["observed"][:, 3:]], dim=1)
    before = encoder(**{**batch, "lengths": prefix})
    after = encoder(**mixed, lengths=prefix)
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one, two)


@any_interpolation
def test_the_path_up_to_an_observation_does_not_know_later_ones(interpolation):
    increments = torch.randn(1, 6, 3, dtype=torch.float64)
    changed = increments.clone()
    changed[:, 4:] += 1
    one, two = (INTERPOLATIONS[interpolation](part) for part in (increments, changed))
    segments = 2 if interpolation == "rectilinear" else 1
    known = torch.linspace(0, 4 * segments, 101, dtype=torch.float64)
    assert torch.equal(one.evaluate(known), two.evaluate(known))
    later = torch.tensor(4.5 * segments, dtype=torch.float64)
    assert not torch.equal(one.evaluate(later), two.evaluate(later))


def test_between_observations_only_rectilinear_paths_are_causal():
    # Only the values of the last observation differ, not its time, which is channel 0.
    increments = torch.ones(1, 2, 3, dtype=torch.float64)
    changed = increments.clone()
    changed[:, 1, 1:] = 5.0
    waiting = {"rectilinear": 3.0, "linear": 1.5, "hermite": 1.5}  # before the second observation
    for interpolation, s in waiting.items():
        s = torch.tensor(s, dtype=torch.float64)
        one, two = (INTERPOLATIONS[interpolation](x).evaluate(s) for x in (increments, changed))
        assert torch.equal(one, two) == (interpolation == "rectilinear")


@streamable
def test_a_path_is_continued_by_one_observation(interpolation):
    encoder, batch = make("neural_cde", interpolation=interpolation), make_batch([5, 5])
    whole, streamed = encoder(**batch), read_one_by_one(encoder, batch)
    for one, two in zip(whole, streamed, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)


def test_a_hermite_path_cannot_be_continued_by_one_observation():
    encoder = make("neural_cde", interpolation="hermite")
    with pytest.raises(DeltaflowError, match=r"interpolation='hermite' .*'rectilinear'"):
        read_one_by_one(encoder, make_batch([2]))


def test_the_adjoint_reaches_learned_features():
    # Features may be embeddings, so the control may carry gradients.
    batch, gradients = make_batch(), []
    for adjoint in (False, True):
        torch.manual_seed(1)
        encoder = make("neural_cde", solver="rk4", num_steps=16, adjoint=adjoint)
        features = batch["features"].clone().requires_grad_()
        encoder(**{**batch, "features": features}).hidden.sum().backward()
        gradients.append([features.grad, *[p.grad for p in encoder.field.parameters()]])
    for plain, adjoint in zip(*gradients, strict=True):
        # relu kinks cost the backward solution some of its order
        torch.testing.assert_close(adjoint, plain, rtol=1e-4, atol=1e-4)
        assert plain.abs().max() > 1e-3


def test_a_field_that_explodes_is_an_error():
    encoder, batch = make("neural_cde"), make_batch()
    matrices = torch.full((CONTROLS, HIDDEN, HIDDEN), 1e200, dtype=torch.float64)
    encoder.field = AffineField(matrices, matrices[:, 0])
    with pytest.raises(DeltaflowError, match="diverged"):
        encoder(**batch)


@pytest.mark.parametrize("continuation", ["neural_ode", "coupling_flow", "resnet_flow"])
def test_the_state_goes_on_by_an_ode_or_a_flow(continuation):
    encoder = make("neural_cde", continuation=continuation)
    state = encoder(**make_batch())
    asked = encoder.evolve(state, torch.tensor([[0.0, 1.0, 8.0]] * 3, dtype=torch.float64))
    assert torch.equal(asked[:, 0], state.hidden)
    assert not torch.allclose(asked[:, 1], asked[:, 2])


def test_unknown_paths_are_refused():
    with pytest.raises(UnknownNameError, match="unknown interpolation 'cubic'"):
        make("neural_cde", interpolation="cubic")
    with pytest.raises(UnknownNameError, match="unknown continuation 'gru_flow'"):
        make("neural_cde", continuation="gru_flow")
