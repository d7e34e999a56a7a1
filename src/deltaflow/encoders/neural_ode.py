"""Neural ODE: a solver evolves the hidden state along a learned vector field."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from deltaflow.encoders.evolution import Evolution, Evolve, VectorField
from deltaflow.encoders.recurrent import RecurrentEncoder
from deltaflow.errors import DeltaflowError, check_registered, check_whole

MAX_STEPS = 1000
"""The number of adaptive steps per gap after which a solver gives up, instead of taking hours."""

UNIT_STEPS = 64
"""Queries are reached in steps of one typical gap, up to this number of gaps. Further steps double,
so that even a million gaps take few solver calls."""

INITIAL_SPEED = 0.1
"""The size of the last layer of a new vector field, relative to torch's initialisation."""

OVERSHOOT = 1.01
"""The factor by which solver errors may carry a state beyond the bound of its field."""

Move: TypeAlias = Callable[[Tensor], Tensor]
"""A map ``hidden -> δ f(hidden)``: the change of the state in an Euler step of length δ."""

Solve: TypeAlias = Callable[[Any, Tensor, Tensor], Tensor]
"""A map ``(field, hidden, gap) -> hidden``: the solution of ``dh/dt = f(h)`` after the gap.
``hidden`` is ``(..., H)``, ``gap`` ``(..., 1)``, and their leading axes broadcast."""


def euler(move: Move, hidden: Tensor) -> Tensor:
    """Take one step of Euler's method."""
    return hidden + move(hidden)


def midpoint(move: Move, hidden: Tensor) -> Tensor:
    """Take one step of the midpoint rule."""
    return hidden + move(torch.add(hidden, move(hidden), alpha=1 / 2))


def rk4(move: Move, hidden: Tensor) -> Tensor:
    """Take one step of the 3/8 rule of Runge and Kutta, the rk4 of torchdiffeq."""
    first = move(hidden)
    second = move(torch.add(hidden, first, alpha=1 / 3))
    third = move(hidden + torch.sub(second, first, alpha=1 / 3))
    fourth = move(hidden + (first - second + third))
    return torch.add(hidden, first + torch.add(fourth, second + third, alpha=3), alpha=1 / 8)


FIXED_STEP: dict[str, Callable[[Move, Tensor], Tensor]] = {
    "euler": euler,
    "midpoint": midpoint,
    "rk4": rk4,
}
SOLVERS = (*FIXED_STEP, "dopri5")


@dataclass(frozen=True)
class Solver:
    r"""A solver for :math:`dh/ds = \Delta t \, f(h)` over :math:`s \in [0, 1]`.

    The substitution :math:`t = s \, \Delta t` lets every series of a batch cross its own gap in one
    call. With fixed steps, the other series of a batch do not affect the result. An adaptive solver
    chooses one step size for the whole batch, by the root mean square of the errors, so the other
    series do affect the result, within the tolerance.

    All solvers are those of torchdiffeq. Fixed steps without the adjoint equation are implemented
    here, with the same result: in torchdiffeq, the overhead of a step is several times the cost of
    its evaluations.

    Attributes
    ----------
    method
        ``"euler"``, ``"midpoint"`` or ``"rk4"`` with fixed steps, ``"dopri5"`` with adaptive ones.
    num_steps
        The number of fixed steps per gap.
    rtol, atol
        The relative and absolute tolerance of the adaptive solver.
    adjoint
        Whether gradients come from the adjoint equation, solved backwards in constant memory,
        rather than from the graph of the steps. Both agree up to the solver's error. With the
        adjoint equation, the gap gets no gradient.

    Raises
    ------
    UnknownNameError
        If there is no such method.
    DeltaflowError
        If ``num_steps`` is not positive, or a solution diverges.

    References
    ----------
    Chen et al., *Neural Ordinary Differential Equations*, 2018, arXiv:1806.07366, section 2, for
    the adjoint equation; Chen et al., *Neural Spatio-Temporal Point Processes*, 2021,
    arXiv:2011.04583, for the substitution.
    """

    method: str
    num_steps: int = 1
    rtol: float = 1e-3
    atol: float = 1e-4
    adjoint: bool = False

    def __post_init__(self) -> None:
        check_registered("solver", self.method, SOLVERS)
        check_whole(1, num_steps=self.num_steps)

    def __call__(self, field: VectorField, hidden: Tensor, gap: Tensor) -> Tensor:
        """Return the solution after the gap; exactly ``hidden`` where the gap is 0."""
        hidden, gap = torch.broadcast_tensors(hidden, gap)
        if self.method in FIXED_STEP and not self.adjoint:
            time, duration = gap.new_zeros(()), gap / self.num_steps
            for _ in range(self.num_steps):
                hidden = FIXED_STEP[self.method](lambda h: duration * field(time, h), hidden)
            return hidden
        import torchdiffeq  # which imports SciPy

        # Their inferred type allows states that are tuples.
        integrate: Any = torchdiffeq.odeint_adjoint if self.adjoint else torchdiffeq.odeint
        try:
            solved: Tensor = integrate(
                lambda time, state: gap * field(time, state),
                hidden,
                hidden.new_tensor([0.0, 1.0]),
                **self.arguments(1, hidden, field.parameters()),
            )[-1]
        except AssertionError as error:  # torchdiffeq's error for too small or too many steps
            raise divergence(gap, str(error), field, [hidden]) from error
        # A fixed step of length 0 adds exactly 0, but dopri5's interpolation has rounding errors.
        return solved if self.method in FIXED_STEP else torch.where(gap == 0, hidden, solved)

    def arguments(
        self, length: int, hidden: Tensor, parameters: Iterable[Tensor]
    ) -> dict[str, Any]:
        """Return torchdiffeq's arguments for ``length`` segments with knots at the integers.

        Fixed steps divide the segments evenly, and adaptive steps stop at the knots, where the
        right-hand side may jump. ``parameters`` are those that the adjoint equation differentiates
        with respect to.
        """
        if self.method in FIXED_STEP:
            # This grid contains the integers exactly, which multiples of a step size would miss.
            steps = torch.arange(length * self.num_steps + 1, device=hidden.device)
            grid = steps.to(hidden.dtype) / self.num_steps
            options = {
                "grid_constructor": lambda f, y0, t: grid if t[0] < t[-1] else grid.flip(0),
                "perturb": True,  # evaluate the right-hand side at a knot from inside the segment
            }
        else:
            knots = torch.arange(1, length, device=hidden.device)
            options = {"jump_t": knots, "max_num_steps": MAX_STEPS * length}
        adjoint = {"adjoint_params": tuple(parameters)} if self.adjoint else {}
        tolerance = {"rtol": self.rtol, "atol": self.atol}
        return {"method": self.method, "options": options, **tolerance, **adjoint}


def divergence(
    gap: Tensor, reason: str, field: VectorField, inputs: Iterable[Tensor]
) -> DeltaflowError:
    """Return the error of a solver that diverged on one of the gaps.

    If a weight of the field or one of the inputs was not finite in the first place, the error says
    so: no other solver would help.
    """
    for kind, tensors in (("a weight", field.parameters()), ("the state", inputs)):
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            return DeltaflowError(
                f"{kind} is not finite before the ODE is solved, as after too large a step of the "
                "optimiser: lower the learning rate, or train with a precision of more digits"
            )
    return DeltaflowError(
        f"the ODE solver diverged on a gap of up to {float(gap.max()):g} typical gaps: {reason}. "
        "Use more steps (num_steps), another solver, or a flow, which crosses any gap in one step"
    )


class ODEEvolution(Evolution):
    """Evolution by an ODE: the solution of ``dh/dt = f(h)`` after Δt.

    Parameters
    ----------
    field
        The right-hand side f.
    solve
        The solver, such as a `Solver`.

    Raises
    ------
    DeltaflowError
        If a solution is not finite or exceeds the bound of its field, because explicit steps are
        too long for the gap.
    """

    def __init__(self, field: VectorField, solve: Solve) -> None:
        super().__init__()
        self.field = field
        self.solve = solve
        self.bound = field.bound

    def prepare(self) -> Evolve:
        """Return the solution as a function of the state and the gap."""
        return self._cross

    def to_queries(self, hidden: Tensor, delta_t: Tensor) -> Tensor:
        """Evolve one state to many times; see :meth:`to_each`."""
        rows = torch.arange(len(hidden), device=hidden.device).repeat_interleave(delta_t.shape[1])
        return self.to_each(hidden, delta_t.flatten(), rows).unflatten(0, delta_t.shape)

    def to_each(self, hidden: Tensor, delta_t: Tensor, row: Tensor) -> Tensor:
        """Solve along a grid of times, and from the grid to the queries.

        The grid is fixed: one step per typical gap at first, then steps that double. The state at a
        query therefore does not depend on the other queries: exactly so with fixed steps, and
        within the tolerance with an adaptive solver, whose step size is shared.
        """
        asked = delta_t.detach().contiguous()
        furthest = asked.new_zeros(len(hidden)).scatter_reduce(0, row, asked, "amax")
        grid = _query_grid(furthest)
        states = [hidden]
        for start, end in pairwise(grid.unbind()):
            # A state stays where it is if its own last query does not need the next step.
            hidden = self._cross(hidden, (end - start) * (furthest >= end))
            states.append(hidden)
        index = torch.searchsorted(grid, asked, right=True) - 1  # (N,)
        return self._cross(torch.stack(states)[index, row], delta_t - grid[index])

    def _cross(self, hidden: Tensor, delta_t: Tensor) -> Tensor:
        solved = self.solve(self.field, hidden, delta_t.unsqueeze(-1))
        limit = OVERSHOOT * hidden.detach().abs().amax(-1).clamp(min=self.field.bound)
        if not bool((solved.detach().abs().amax(-1) < limit).all()):  # also true for NaN
            reason = "its steps are too long, the state left its bounds"
            raise divergence(delta_t, reason, self.field, [hidden])
        return solved


def _query_grid(furthest: Tensor) -> Tensor:
    """Return the times 0, 1, …, `UNIT_STEPS`, then its doublings, up to the furthest query."""
    steps = torch.arange(UNIT_STEPS + 1).to(furthest)
    doublings = steps[-1] * 2.0 ** torch.arange(1, 40).to(furthest)
    grid = torch.cat([steps, doublings])
    return grid[grid <= furthest.max().clamp(min=0)]


def start_slowly(layer: nn.Linear) -> None:
    """Shrink the last layer of a vector field, so that it hardly moves the state at first.

    A state that diverges over long gaps early in training makes gradients useless.
    """
    with torch.no_grad():
        layer.weight.mul_(INITIAL_SPEED)
        layer.bias.zero_()


class MLPField(VectorField):
    r"""The vector field :math:`f(h) = \tanh(W_2 \tanh(W_1 h + b_1) + b_2)`, or a deeper one.

    The outer tanh bounds the speed, so neither a solution nor an explicit step changes a feature by
    more than Δt.

    Parameters
    ----------
    hidden_size
        The size H of the state.
    width, num_layers
        Size and number of the hidden layers.

    Examples
    --------
    >>> field = MLPField(3, width=8)
    >>> field(torch.zeros(()), torch.rand(5, 3)).shape, field.num_evaluations
    (torch.Size([5, 3]), 1)
    """

    def __init__(self, hidden_size: int, width: int, num_layers: int = 1) -> None:
        super().__init__()
        sizes = [hidden_size, *[width] * num_layers, hidden_size]
        layers = [(nn.Linear(n_in, n_out), nn.Tanh()) for n_in, n_out in pairwise(sizes)]
        self.network = nn.Sequential(*chain.from_iterable(layers))
        start_slowly(layers[-1][0])

    def forward(self, time: Tensor, hidden: Tensor) -> Tensor:
        """Return the velocity; see `VectorField.forward`."""
        self.num_evaluations += 1
        return self.network(hidden)


def ode_rnn(
    num_channels: int,
    num_features: int,
    hidden_size: int,
    *,
    num_layers: int = 1,
    width: int | None = None,
    solver: str = "rk4",
    num_steps: int = 1,
    rtol: float = 1e-3,
    atol: float = 1e-4,
    adjoint: bool = False,
) -> RecurrentEncoder:
    """ODE-RNN: a Neural ODE across the gaps, updated by a GRU cell.

    The default solver takes one step of rk4 per gap: a small error for typical gaps, at the cost of
    four evaluations, a fifth or less of what dopri5 needs, and no dependence on the other series of
    a batch. Use more steps, or dopri5, if gaps differ by orders of magnitude. The queries are
    reached in steps of at most one typical gap, up to `UNIT_STEPS` of them.

    Parameters
    ----------
    num_channels, num_features, hidden_size
        See `Encoder`.
    num_layers, width
        Hidden layers of the vector field, see `MLPField`; by default twice as wide as the state.
    solver, num_steps, rtol, atol, adjoint
        See `Solver`; the tolerances are those of the reference.

    References
    ----------
    Rubanova et al., *Latent ODEs for Irregularly-Sampled Time Series*, 2019, arXiv:1907.03907,
    section 3.1 and algorithm 1.
    """
    field = MLPField(hidden_size, width or 2 * hidden_size, num_layers)
    evolution = ODEEvolution(field, Solver(solver, num_steps, rtol, atol, adjoint))
    return RecurrentEncoder(num_channels, num_features, hidden_size, evolution)
