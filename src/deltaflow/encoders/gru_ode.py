"""GRU-ODE: a GRU in continuous time, whose hidden state relaxes towards a candidate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltaflow.encoders.evolution import VectorField
from deltaflow.encoders.neural_ode import ODEEvolution, Solver
from deltaflow.encoders.recurrent import RecurrentEncoder
from deltaflow.errors import check_whole
from deltaflow.flows.initial import orthogonal_


class GRUField(VectorField):
    r"""The autonomous GRU-ODE.

    .. math::
        \frac{dh}{dt} &= (1 - z) \odot (c - h) \\
        z &= \sigma(W_z h + b_z), \quad r = \sigma(W_r h + b_r), \quad
        c = \tanh(W_c (r \odot h) + b_c)

    Solutions that start in :math:`[-1, 1]^H` stay there: on a face of the cube, :math:`c - h`
    points inwards.

    Parameters
    ----------
    hidden_size
        The size H of the state.

    References
    ----------
    De Brouwer et al., *GRU-ODE-Bayes*, 2019, arXiv:1905.12374, equation 3 and section 2.2.
    """

    bound = 1.0

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gates = nn.Linear(hidden_size, 2 * hidden_size)
        self.candidate = nn.Linear(hidden_size, hidden_size)
        for weight in (*self.gates.weight.chunk(2), self.candidate.weight):
            orthogonal_(weight)

    def relaxation(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the candidate c and the rate 1 - z."""
        self.num_evaluations += 1
        keep, reset = torch.sigmoid(self.gates(hidden)).chunk(2, dim=-1)
        return torch.tanh(self.candidate(reset * hidden)), 1 - keep

    def forward(self, time: Tensor, hidden: Tensor) -> Tensor:
        """Return the velocity; see `VectorField.forward`."""
        candidate, rate = self.relaxation(hidden)
        return rate * (candidate - hidden)


@dataclass(frozen=True)
class ExponentialMidpoint:
    r"""The midpoint rule for a relaxation, with :math:`c` and :math:`z` frozen during a step.

    The equation can then be solved exactly,

    .. math:: h(t + \delta) = c + e^{-(1 - z) \delta} \odot (h(t) - c).

    This is a convex combination, so the state stays in :math:`[-1, 1]^H` however long the gap.
    Explicit Runge-Kutta steps, in contrast, overshoot as soon as :math:`(1 - z) \, \delta` exceeds
    2 to 3. A half step gives :math:`c` and :math:`z` of the full step. The method has order 2.

    Attributes
    ----------
    num_steps
        The number of steps per gap, with two evaluations each.

    Raises
    ------
    DeltaflowError
        If ``num_steps`` is not positive.

    References
    ----------
    Hochbruck and Ostermann, *Exponential integrators*, 2010, Acta Numerica 19, section 2.
    """

    num_steps: int = 2

    def __post_init__(self) -> None:
        check_whole(1, num_steps=self.num_steps)

    def __call__(self, field: GRUField, hidden: Tensor, gap: Tensor) -> Tensor:
        """Return the solution after the gap; exactly ``hidden`` where the gap is 0."""
        minus_step = -gap / self.num_steps
        minus_half = minus_step / 2
        for _ in range(self.num_steps):
            candidate, rate = field.relaxation(hidden)
            middle = torch.lerp(candidate, hidden, torch.exp(rate * minus_half))
            candidate, rate = field.relaxation(middle)
            hidden = torch.lerp(candidate, hidden, torch.exp(rate * minus_step))
        return hidden


def gru_ode(
    num_channels: int,
    num_features: int,
    hidden_size: int,
    *,
    solver: str = "exponential",
    num_steps: int = 2,
    rtol: float = 1e-3,
    atol: float = 1e-4,
    adjoint: bool = False,
) -> RecurrentEncoder:
    """GRU-ODE across the gaps, updated by a GRU cell at the observations.

    The update is a simplified GRU-Bayes: a GRU cell maps the evolved state and the observation to
    the new state. GRU-Bayes itself passes the error of the forecast just before the observation to
    the cell, and adds a loss between the densities before and after. Here, as for all encoders, the
    cell reads the values and their mask, and the loss is that of the forecasts.

    The default solver keeps the state in [-1, 1] across any gap; see `ExponentialMidpoint`.

    Parameters
    ----------
    num_channels, num_features, hidden_size
        See `Encoder`.
    solver
        ``"exponential"``, or a method of `Solver`.
    num_steps, rtol, atol, adjoint
        See `Solver`; the exponential solver uses only ``num_steps``.

    References
    ----------
    De Brouwer et al., *GRU-ODE-Bayes*, 2019, arXiv:1905.12374, sections 2.2 and 2.4.
    """
    if solver == "exponential":
        solve = ExponentialMidpoint(num_steps)
    else:
        solve = Solver(solver, num_steps, rtol, atol, adjoint)
    evolution = ODEEvolution(GRUField(hidden_size), solve)
    return RecurrentEncoder(num_channels, num_features, hidden_size, evolution)
