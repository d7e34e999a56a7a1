"""The laws of evolution by an ODE: closed forms, orders of convergence, gradients, bounds."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from deltaflow import DeltaflowError, UnknownNameError
from deltaflow.encoders import GRUField, MLPField, ODEEvolution, Solver, VectorField, make_encoder
from deltaflow.encoders.gru_ode import ExponentialMidpoint
from deltaflow.encoders.neural_ode import FIXED_STEP, SOLVERS, UNIT_STEPS

HIDDEN = 4
EVALUATIONS = {"euler": 1, "midpoint": 2, "rk4": 4}
ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class LinearField(VectorField):
    """dh/dt = A h, whose solution is exp(A t) h."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, time: Tensor, hidden: Tensor) -> Tensor:
        self.num_evaluations += 1
        return hidden @ self.matrix.T

    def solution(self, hidden: Tensor, delta_t: Tensor) -> Tensor:
        exponential = torch.matrix_exp(delta_t[..., None, None] * self.matrix)
        return (exponential @ hidden.unsqueeze(-1)).squeeze(-1)


def linear_field() -> LinearField:
    return LinearField(torch.randn(HIDDEN, HIDDEN, dtype=torch.float64) / 2)


def states(count: int = 5) -> Tensor:
    return 2 * torch.rand(count, HIDDEN, dtype=torch.float64) - 1


def gaps(count: int = 5) -> Tensor:
    return 2 * torch.rand(count, dtype=torch.float64)


def solvers(num_steps: int) -> dict:
    fixed = {method: Solver(method, num_steps) for method in FIXED_STEP}
    return {
        **fixed,
        "dopri5": Solver("dopri5", rtol=1e-9, atol=1e-10),
        "exponential": ExponentialMidpoint(num_steps),
    }


FIELDS = {"mlp": lambda: MLPField(HIDDEN, width=8), "gru": lambda: GRUField(HIDDEN)}


def every_solver_and_field(test):
    cases = [(s, f) for s in (*SOLVERS, "exponential") for f in FIELDS]
    cases.remove(("exponential", "mlp"))  # it solves relaxations only
    return pytest.mark.parametrize(("solver", "field"), cases)(test)


# With 200 steps of 0.01: errors of order 1, 2 and 4 in the step; dopri5 by its tolerance.
@pytest.mark.parametrize(
    ("method", "tolerance"), [("euler", 5e-2), ("midpoint", 5e-4), ("rk4", 1e-8), ("dopri5", 1e-7)]
)
def test_a_linear_field_is_solved_by_the_matrix_exponential(method, tolerance):
    field, hidden, delta_t = linear_field(), states(), gaps()
    evolved = ODEEvolution(field, solvers(200)[method]).prepare()(hidden, delta_t)
    expected = field.solution(hidden, delta_t)
    torch.testing.assert_close(evolved, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("method", "order"), ORDERS.items())
def test_halving_the_steps_divides_the_error_by_two_to_the_order(method, order):
    field, hidden, delta_t = linear_field(), states(), gaps()
    exact = field.solution(hidden, delta_t)
    errors = [
        (ODEEvolution(field, Solver(method, n)).prepare()(hidden, delta_t) - exact).norm().item()
        for n in (32, 64)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_the_exponential_midpoint_rule_is_of_order_two():
    field, hidden, delta_t = GRUField(HIDDEN).double(), states(), gaps()
    exact = Solver("rk4", 100)(field, hidden, delta_t.unsqueeze(-1))
    errors = [
        (ExponentialMidpoint(n)(field, hidden, delta_t.unsqueeze(-1)) - exact).norm().item()
        for n in (16, 32)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("method", FIXED_STEP)
def test_fixed_steps_are_those_of_torchdiffeq(method):
    field, hidden, gap = MLPField(HIDDEN, width=8).double(), states(), gaps().unsqueeze(-1)
    for parameter in field.parameters():
        nn.init.normal_(parameter)
    ours, theirs = (Solver(method, 3, adjoint=adjoint)(field, hidden, gap) for adjoint in (0, 1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    assert (ours - hidden).abs().max() > 0.1


# The adjoint equation is solved backwards with an error of its own: rk4 with steps of 0.04, and
# dopri5 by its tolerance, leave 1e-6.
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("field", FIELDS)
def test_adjoint_gradients_are_those_of_the_graph(method, field):
    field = FIELDS[field]().double()
    hidden, delta_t = states().requires_grad_(), gaps()
    gradients = []
    for adjoint in (False, True):
        solve = Solver(method, num_steps=50, rtol=1e-9, atol=1e-10, adjoint=adjoint)
        evolved = ODEEvolution(field, solve).prepare()(hidden, delta_t)
        gradients.append(torch.autograd.grad(evolved.sin().sum(), [hidden, *field.parameters()]))
    for adjoint, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(adjoint, plain, rtol=1e-6, atol=1e-6)
        assert plain.abs().max() > 1e-4


@every_solver_and_field
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_time_leaves_the_state_bit_for_bit(solver, field, dtype):
    solve = ExponentialMidpoint() if solver == "exponential" else Solver(solver, num_steps=3)
    evolution = ODEEvolution(FIELDS[field]().to(dtype), solve)
    hidden = states().to(dtype)
    delta_t = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0], dtype=dtype)
    still = delta_t == 0
    assert torch.equal(evolution.prepare()(hidden, delta_t)[still], hidden[still])
    asked = evolution.to_queries(hidden, delta_t.expand(5, 5))
    assert torch.equal(asked[:, still], hidden.unsqueeze(1).expand(5, 3, HIDDEN))


@every_solver_and_field
def test_leading_axes_broadcast(solver, field):
    evolve = ODEEvolution(FIELDS[field]().double(), solvers(2)[solver]).prepare()
    hidden, delta_t = states(3), torch.rand(3, 2, dtype=torch.float64)
    together = evolve(hidden.unsqueeze(1), delta_t)
    for i in range(2):
        torch.testing.assert_close(together[:, i], evolve(hidden, delta_t[:, i]))


@every_solver_and_field
def test_queries_in_any_order_are_answered_as_one_by_one(solver, field):
    solve = Solver("dopri5") if solver == "dopri5" else solvers(1)[solver]
    evolution = ODEEvolution(FIELDS[field]().double(), solve)
    hidden = states(3)
    # The furthest lies behind the unit steps of the grid.
    delta_t = torch.tensor([5.5, 66.0, 0.3, 0.0, 2.0], dtype=torch.float64) * torch.ones(3, 1)
    together = evolution.to_queries(hidden, delta_t)
    order = torch.randperm(5)
    # Exactly with fixed steps; an adaptive solver shares its steps, within the tolerance.
    close = {"rtol": 1e-2, "atol": 1e-2} if solver == "dopri5" else {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(
        evolution.to_queries(hidden, delta_t[:, order]), together[:, order], **close
    )
    for query in range(2):
        alone = evolution.to_queries(hidden, delta_t[:, query : query + 1])[:, 0]
        torch.testing.assert_close(alone, together[:, query], **close)


def test_far_queries_are_solved_accurately():
    # A rotation never comes to rest: after 60 gaps it still tells an accurate solver.
    field = LinearField(torch.tensor([[0.0, 0.5], [-0.5, 0.0]], dtype=torch.float64))
    hidden = torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    delta_t = torch.tensor([[60.0, 0.2, 31.7], [1.0, 59.5, 4.0]], dtype=torch.float64)
    assert delta_t.max() < UNIT_STEPS
    evolved = ODEEvolution(field, Solver("rk4", num_steps=4)).to_queries(hidden, delta_t)
    expected = field.solution(hidden.unsqueeze(1), delta_t)
    torch.testing.assert_close(evolved, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exponential_steps_of_a_gru_ode_stay_in_the_unit_cube(dtype):
    field = GRUField(HIDDEN).to(dtype)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter *= 8
    evolution = ODEEvolution(field, ExponentialMidpoint())
    hidden = states(200).to(dtype).sign()  # the corners
    delta_t = (10 ** (10 * torch.rand(200, 5) - 4)).to(dtype)
    asked = evolution.to_queries(hidden, delta_t)
    assert asked.abs().max() <= 1 + 1e-6  # a convex combination may pass by its rounding
    assert torch.equal(asked, asked.clamp(-1 - 1e-6, 1 + 1e-6))


@pytest.mark.parametrize("method", SOLVERS)
def test_a_gru_ode_stays_in_the_unit_cube_at_typical_gaps(method):
    evolve = ODEEvolution(GRUField(HIDDEN).double(), Solver(method, num_steps=4)).prepare()
    assert evolve(states(200), 4 * torch.rand(200, dtype=torch.float64)).abs().max() <= 1


@pytest.mark.parametrize("method", FIXED_STEP)
def test_explicit_steps_too_long_for_a_gru_ode_are_an_error(method):
    evolve = ODEEvolution(GRUField(HIDDEN).double(), Solver(method)).prepare()
    with pytest.raises(DeltaflowError, match=r"diverged on a gap of up to 1e\+06 .*num_steps"):
        evolve(states(), torch.full((5,), 1e6, dtype=torch.float64))


# Growth to exp(5000), which no float holds, and a stiff decay, of more adaptive steps than allowed.
@pytest.mark.parametrize(
    ("method", "rate"),
    [*[(method, 5.0) for method in SOLVERS], *[(method, -1e4) for method in ("rk4", "dopri5")]],
)
def test_divergence_is_an_error_and_never_nan(method, rate, monkeypatch):
    monkeypatch.setattr("deltaflow.encoders.neural_ode.MAX_STEPS", 50)
    field = LinearField(rate * torch.eye(HIDDEN))
    evolve = ODEEvolution(field, Solver(method, num_steps=40)).prepare()
    with pytest.raises(DeltaflowError, match="diverged on a gap of up to 1000"):
        evolve(states().float(), torch.full((5,), 1000.0))


@pytest.mark.parametrize("name", ["ode_rnn", "gru_ode", "neural_cde"])
def test_a_weight_that_is_not_finite_is_not_blamed_on_the_solver(name):
    encoder = make_encoder(name, 1, 0, 4)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter[...] = torch.nan
    batch = torch.ones(2, 3, 1)
    with pytest.raises(DeltaflowError, match=r"weight is not finite.*learning rate"):
        encoder(batch, batch.bool(), batch[..., 0], torch.tensor([3, 2]), batch[..., :0])


@pytest.mark.parametrize("method", FIXED_STEP)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_fixed_steps_cost_what_their_order_says(method, num_steps):
    encoder = make_encoder("ode_rnn", 2, 0, HIDDEN, solver=method, num_steps=num_steps)
    per_gap = EVALUATIONS[method] * num_steps
    assert encoder.num_evaluations == 0
    length = torch.tensor([6, 6])
    values = torch.randn(2, 6, 2)
    state = encoder(values, values > 0, torch.ones(2, 6), length, torch.empty(2, 6, 0))
    assert encoder.num_evaluations == 6 * per_gap
    encoder.reset_num_evaluations()
    encoder.evolve(state, torch.tensor([[0.5, 2.5]] * 2))  # 0 → 1 → 2, and from there to both
    assert encoder.num_evaluations == 3 * per_gap


def test_an_adaptive_solver_evaluates_more_for_a_smaller_tolerance():
    counts = []
    for rtol in (1e-3, 1e-9):
        field = MLPField(HIDDEN, width=8).double()
        Solver("dopri5", rtol=rtol, atol=rtol)(field, states(), gaps().unsqueeze(-1))
        counts.append(field.num_evaluations)
    assert 0 < counts[0] < counts[1]


def test_flows_evaluate_no_vector_field():
    encoder = make_encoder("gru_flow", 2, 0, HIDDEN)
    encoder.evolve(encoder.initial_state(2), torch.ones(2, 3))
    assert encoder.num_evaluations == 0


@pytest.mark.parametrize("name", ["ode_rnn", "gru_ode", "neural_cde"])
def test_the_count_is_no_weight_and_encoders_can_be_copied(name):
    encoder = make_encoder(name, 2, 0, HIDDEN)
    delta_t = torch.ones(2, 3)
    state = encoder.initial_state(2)
    expected = encoder.evolve(state, delta_t)
    assert not any("num_evaluations" in key for key in encoder.state_dict())
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin.evolve(state, delta_t), expected)


@pytest.mark.parametrize("name", ["ode_rnn", "gru_ode", "neural_cde"])
def test_bad_solver_options_are_refused(name):
    with pytest.raises(UnknownNameError, match="unknown solver 'dopri': did you mean 'dopri5'"):
        make_encoder(name, 2, 0, HIDDEN, solver="dopri")
    with pytest.raises(DeltaflowError, match="num_steps must be at least 1, got 0"):
        make_encoder(name, 2, 0, HIDDEN, num_steps=0)
