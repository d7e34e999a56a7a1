"""Neural CDE: a path through the observations drives the hidden state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltaflow.encoders.encoder import Encoder, State, known_before
from deltaflow.encoders.evolution import Evolution, FlowEvolution, VectorField
from deltaflow.encoders.neural_ode import MLPField, ODEEvolution, Solver, divergence, start_slowly
from deltaflow.errors import DeltaflowError, check_registered
from deltaflow.flows import CouplingFlow, ResNetFlow

if TYPE_CHECKING:  # it imports SciPy, and is imported where it is used
    import torchcde


class ControlledField(VectorField):
    r"""The matrix field :math:`f(h) = \tanh(W_2 \, \mathrm{relu}(W_1 h + b_1) + b_2)`.

    Parameters
    ----------
    hidden_size, control_size
        The number of rows H and of columns P of the matrix.
    width
        The size of the hidden layer.
    """

    def __init__(self, hidden_size: int, control_size: int, width: int) -> None:
        super().__init__()
        self.shape = (hidden_size, control_size)
        last = nn.Linear(width, hidden_size * control_size)
        start_slowly(last)
        self.network = nn.Sequential(nn.Linear(hidden_size, width), nn.ReLU(), last)

    def forward(self, time: Tensor, hidden: Tensor) -> Tensor:
        """Return the matrices ``(B, H, P)`` at states ``(B, H)``."""
        self.num_evaluations += 1
        share = torch.sigmoid(2 * self.network(hidden))
        # tanh(p) = 2 σ(2p) - 1, which is faster on large tensors; it rounds relative to 1.
        return torch.add(share.new_tensor(-1.0), share, alpha=2).unflatten(-1, self.shape)


class NeuralCDEEncoder(Encoder):
    r"""Neural controlled differential equation, solved with torchcde.

    .. math:: h(s) = \int_0^s f(h(\sigma)) \, \frac{dX}{d\sigma} \, d\sigma

    The control :math:`X` is a path in :math:`1 + 2C + F` dimensions: time, the values carried
    forward, the cumulative number of observations of each channel, and the cumulative sum of the
    features. It starts at 0, before the first observation, so the first observation is a segment
    like any other: a single observation can be read, and a channel that starts late is 0 until
    then. The increment of a segment depends only on its observation and on the `State` before it.

    The k-th observation is the knot :math:`s = k` in every series. The solution of a CDE does not
    depend on such a reparameterisation; real time is a channel of the path. Padding repeats the
    last knot, so :math:`dX = 0` and the state does not change at all.

    Interpolation between the knots:

    ``"rectilinear"``
        Time moves first, then the values jump. Causal: no point of the path depends on a later
        observation. Each observation takes two segments.
    ``"linear"``
        A straight line to the next knot. Causal at the observations, but not between them.
    ``"hermite"``
        Cubic Hermite splines with backward differences, a smooth path for adaptive solvers. Causal
        at the observations, too. But a slope needs two observations, and a `State` remembers only
        one: such an encoder cannot read one observation at a time, nor sample paths.

    All three carry values forward. torchcde itself fills missing values by interpolation to the
    next one, which would make the state depend on later observations.

    After the last observation there is no control: a Neural ODE or a flow evolves the state.

    Parameters
    ----------
    num_channels, num_features, hidden_size
        See `Encoder`.
    interpolation
        ``"rectilinear"``, ``"linear"`` or ``"hermite"``.
    continuation
        The evolution to the queries: ``"neural_ode"``, ``"coupling_flow"`` or ``"resnet_flow"``.
    width
        The size of the vector fields' hidden layers; by default twice the hidden size.
    solver, num_steps, rtol, atol, adjoint
        See `Solver`; ``num_steps`` is the number per segment. One midpoint step is the cheapest
        that accounts for changes of f along a segment; ``"euler"`` takes half the time.

    Raises
    ------
    UnknownNameError
        If there is no such interpolation, continuation or solver.
    DeltaflowError
        If the solution diverges, or if ``"hermite"`` has to read a single observation.

    References
    ----------
    Kidger et al., *Neural Controlled Differential Equations for Irregular Time Series*, 2020,
    arXiv:2005.08926, section 3 and appendix A; Morrill et al., *Neural Controlled Differential
    Equations for Online Prediction Tasks*, 2021, arXiv:2106.11028, section 3, for the
    interpolations.
    """

    def __init__(
        self,
        num_channels: int,
        num_features: int,
        hidden_size: int,
        *,
        interpolation: str = "rectilinear",
        continuation: str = "neural_ode",
        width: int | None = None,
        solver: str = "midpoint",
        num_steps: int = 1,
        rtol: float = 1e-3,
        atol: float = 1e-4,
        adjoint: bool = False,
    ) -> None:
        super().__init__(num_channels, num_features, hidden_size)
        check_registered("interpolation", interpolation, INTERPOLATIONS)
        check_registered("continuation", continuation, CONTINUATIONS)
        width = width or 2 * hidden_size
        self.interpolation = interpolation
        self.solver = Solver(solver, num_steps, rtol, atol, adjoint)
        self.field = ControlledField(hidden_size, 1 + 2 * num_channels + num_features, width)
        self.continuation = CONTINUATIONS[continuation](hidden_size, width, self.solver)

    def read(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Read a whole batch; see `Encoder.read`."""
        hidden = values.new_zeros(len(values), self.hidden_size)
        last, _ = known_before(values, observed, delta_t)
        return self._solve(hidden, _increments(values, observed, last, delta_t, features))

    def step(
        self, state: State, delta_t: Tensor, values: Tensor, observed: Tensor, features: Tensor
    ) -> Tensor:
        """Read one observation; see `Encoder.step`."""
        if self.interpolation == "hermite":
            raise DeltaflowError(
                "interpolation='hermite' needs two observations for a slope, so it cannot read "
                "observations one at a time, and cannot sample paths: choose 'rectilinear' or "
                "'linear'"
            )
        increment = _increments(values, observed, state.last, delta_t, features)
        return self._solve(state.hidden, increment.unsqueeze(1))

    def evolve(self, state: State, delta_t: Tensor) -> Tensor:
        """Evolve the state to the queries; see `Encoder.evolve`."""
        return self.continuation.to_queries(state.hidden, delta_t)

    def evolve_each(self, state: State, delta_t: Tensor, row: Tensor) -> Tensor:
        """Evolve the states to the queries; see `Encoder.evolve_each`."""
        return self.continuation.to_each(state.hidden, delta_t, row)

    def _solve(self, hidden: Tensor, increments: Tensor) -> Tensor:
        """Drive the state ``(B, H)`` along increments ``(B, T, P)`` of the control."""
        control = INTERPOLATIONS[self.interpolation](increments)
        parameters: list[Tensor] = [*self.field.parameters()]
        if increments.requires_grad:  # features may be learned, for example as an embedding
            parameters.append(increments)
        import torchcde

        cdeint: Any = torchcde.cdeint  # its inferred type allows states that are tuples
        try:
            solved: Tensor = cdeint(
                control,
                self.field,
                hidden,
                control.interval,
                adjoint=self.solver.adjoint,
                **self.solver.arguments(int(control.interval[1]), hidden, parameters),
            )[:, -1]
        except AssertionError as error:  # torchdiffeq's error for too small or too many steps
            raise self._divergence(str(error), hidden, increments) from error
        if not bool(torch.isfinite(solved).all()):
            raise self._divergence("the state is not finite", hidden, increments)
        return solved

    def _divergence(self, reason: str, hidden: Tensor, increments: Tensor) -> DeltaflowError:
        return divergence(increments[..., 0], reason, self.field, [hidden, increments])


def _increments(
    values: Tensor, observed: Tensor, last: Tensor, delta_t: Tensor, features: Tensor
) -> Tensor:
    """Return the increment of the control ``(…, P)`` at each observation."""
    change = torch.where(observed, values - last, 0.0)
    return torch.cat([delta_t.unsqueeze(-1), change, observed.to(values.dtype), features], dim=-1)


def _knots(increments: Tensor) -> Tensor:
    """Return the control at its start and at the T observations: ``(B, T + 1, P)``.

    They are in float64, so that differences stay accurate along a path of 1e6 typical gaps.
    """
    return nn.functional.pad(increments.double().cumsum(1), (0, 0, 1, 0))


def _linear(increments: Tensor, rectilinear: int | None = None) -> torchcde.LinearInterpolation:
    import torchcde

    knots = _knots(increments)
    coefficients = torchcde.linear_interpolation_coeffs(knots, rectilinear=rectilinear)
    return torchcde.LinearInterpolation(coefficients).to(increments.dtype)


def _hermite(increments: Tensor) -> torchcde.CubicSpline:
    import torchcde

    coefficients = torchcde.hermite_cubic_coefficients_with_backward_differences(_knots(increments))
    # On the first segment of the padding the spline would overshoot and come back.
    moving = (increments != 0).any(-1, keepdim=True)
    return torchcde.CubicSpline(coefficients * moving).to(increments.dtype)


INTERPOLATIONS: dict[
    str, Callable[[Tensor], torchcde.LinearInterpolation | torchcde.CubicSpline]
] = {
    "rectilinear": partial(_linear, rectilinear=0),  # the channel of time
    "linear": _linear,
    "hermite": _hermite,
}
"""The interpolations of the control: functions of its increments ``(B, T, P)``."""

CONTINUATIONS: dict[str, Callable[[int, int, Solver], Evolution]] = {
    "neural_ode": lambda size, width, solver: ODEEvolution(MLPField(size, width), solver),
    "coupling_flow": lambda size, width, solver: FlowEvolution(CouplingFlow(size)),
    "resnet_flow": lambda size, width, solver: FlowEvolution(ResNetFlow(size)),
}
"""Evolutions after the last observation: functions of (hidden_size, width, solver)."""
