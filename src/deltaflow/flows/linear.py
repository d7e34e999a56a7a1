"""The linear flow: decaying oscillators, which solve an ODE exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltaflow.flows.flow import Flow, FlowInversionError, FlowMap
from deltaflow.flows.initial import in_default_dtype

SPAN = 50.0
"""The default length of a series, in typical gaps."""

SLOWEST = 2.0
"""The lowest initial frequency, in turns per series. Beyond the length of a series, slower
oscillators would reach phases that never occur in training."""

FASTEST = 0.4
"""The highest initial frequency, in turns per typical gap. Frequencies above one turn in two gaps
can hardly be distinguished from lower ones."""


class LinearFlow(Flow):
    r"""Independent oscillators :math:`F(t, x) = e^{\Lambda t} x` with a diagonal :math:`\Lambda`.

    The state is :math:`N = \lceil D / 2 \rceil` complex numbers,
    :math:`x = (\mathrm{Re}_1, \dots, \mathrm{Re}_N, \mathrm{Im}_1, \dots)`. Each of them decays at
    a rate :math:`r > 0` and turns :math:`\nu > 0` times per unit of time,

    .. math:: \lambda = -r + 2 \pi i \, \nu.

    If :math:`D` is odd, the last one is real and only decays.

    This is the solution of the ODE :math:`\dot x = \Lambda x`, so two steps across a gap equal one:
    :math:`F(s + t, x) = F(t, F(s, x))`. Solutions stay bounded and converge to 0. A stack of linear
    flows is a linear flow, too, whose rates and frequencies are the sums of theirs.

    Phases are computed in float64 and reduced to half a turn before they are cast to the dtype of
    the state. With float64 times, a float32 state is therefore accurate even after a million turns.
    Float32 times already have a relative error of up to 6e-8, which remains.

    Parameters
    ----------
    dim
        The number of features of the state.
    span
        The length of a series, in units of time. Initial frequencies lie on a logarithmic scale
        between ``2 / span`` and `FASTEST`, initial rates between ``0.05 / span`` and ``5 / span``.
    cycles
        Periods, in units of time, that the first oscillators start with instead.

    References
    ----------
    Orvieto et al., *Resurrecting Recurrent Neural Networks for Long Sequences*, 2023,
    arXiv:2303.06349; Smith et al., *Simplified State Space Layers for Sequence Modeling*, 2023,
    arXiv:2208.04933.

    Examples
    --------
    >>> flow = LinearFlow(4)
    >>> s, t, x = torch.rand(5, 1), torch.rand(5, 1), torch.rand(5, 4)
    >>> torch.allclose(flow(t, flow(s, x)), flow(s + t, x), atol=1e-6)
    True
    """

    semigroup = scannable = closed_inverse = closed_log_det = True

    def __init__(self, dim: int, *, span: float = SPAN, cycles: Sequence[float] = ()) -> None:
        super().__init__(dim)
        if not 0 < span < math.inf:
            raise ValueError(f"span must be a positive number of units of time, got {span}")
        if not all(0 < cycle < math.inf for cycle in cycles):
            raise ValueError(f"cycles must be positive periods, got {list(cycles)}")
        self.num_modes = (dim + 1) // 2
        turns = _spread(min(SLOWEST / span, FASTEST), FASTEST, dim // 2)
        known = torch.tensor(cycles[: len(turns)], dtype=turns.dtype)
        turns[: len(known)] = 1 / known
        # In a different order than the frequencies, so that high and low ones get rates of all
        # sizes.
        rates = _spread(0.05 / span, 5 / span, self.num_modes)
        golden = (torch.arange(self.num_modes) * 0.6180339887) % 1
        rates = rates[golden.argsort().argsort()]
        self.rate = nn.Parameter(in_default_dtype(_inverse_softplus(rates)))
        self.frequency = nn.Parameter(in_default_dtype(_inverse_softplus(turns)))

    def exponent(self) -> tuple[Tensor, Tensor]:
        """Return the rates ``(N,)``, and the turns per unit of time ``(N,)`` in float64."""
        turns = F.softplus(self.frequency.double())
        return F.softplus(self.rate), F.pad(turns, (0, self.dim % 2))

    def prepare(self) -> FlowMap:
        """Constrain rates and frequencies, and return the flow."""
        rates, turns = self.exponent()

        def step(t: Tensor, x: Tensor) -> Tensor:
            return self._turned(exponential(rates, turns, t, x.dtype), x)

        return step

    def inverse(
        self, t: Tensor, y: Tensor, *, tol: float | None = None, max_iter: int = 1000
    ) -> Tensor:
        """Return ``F(-t, y)``, with a relative error of a few roundings in each dimension.

        Raises
        ------
        FlowInversionError
            If a dimension decays below the smallest number of this dtype, which cannot be inverted,
            or if the rounding error exceeds ``tol``.
        """
        self.check_inputs(t, y)
        self._check_decay(t, y.dtype)
        rates, turns = self.exponent()
        x = self._turned(exponential(-rates, -turns, t, y.dtype), y)
        if tol is not None and x.numel():
            error = 4 * torch.finfo(y.dtype).eps * float(x.detach().norm(dim=-1).max())
            if not error <= tol:
                raise FlowInversionError(
                    f"the inverse is exact to {error:.1e} in {y.dtype}, which exceeds tol={tol:g}: "
                    "use float64, or a larger tol"
                )
        return x

    def check_inputs(self, t: Tensor, x: Tensor) -> None:
        """Check shapes and times as every flow does, and that negative times are not too large.

        Raises
        ------
        FlowInversionError
            If a time is negative and the states at that time would overflow in this dtype.
        """
        super().check_inputs(t, x)
        self._check_decay(-t, x.dtype)

    def _check_decay(self, t: Tensor, dtype: torch.dtype) -> None:
        """Raise a `FlowInversionError` if states underflow within a time t."""
        if torch.compiler.is_compiling() or not t.numel():
            return
        try:
            time, rate = float(t.detach().max()), float(F.softplus(self.rate.detach()).max())
        except RuntimeError:  # from vmap, which hides the values
            return
        if rate * time > -math.log(torch.finfo(dtype).tiny):
            raise FlowInversionError(
                f"within a time of {time:g}, states decay below the smallest number of {dtype}, "
                "so they cannot be recovered: go back over shorter times"
            )

    def vector_field(self, t: Tensor, x: Tensor) -> Tensor:
        r"""Return :math:`\Lambda F(t, x)`, of shape :math:`(*, D)`."""
        self.check_inputs(t, x)
        rates, turns = self.exponent()
        exponent = -rates, (2 * math.pi * turns).to(rates.dtype)
        return self._turned(exponent, self.prepare()(t, x))

    def log_abs_det_jacobian(self, t: Tensor, x: Tensor) -> Tensor:
        r"""Return :math:`t \, \mathrm{tr} \Lambda`, of shape :math:`(*)`."""
        self.check_inputs(t, x)
        rates = F.softplus(self.rate)
        trace = -rates.sum() - rates[: self.dim // 2].sum()
        shape = torch.broadcast_shapes(t.shape[:-1], x.shape[:-1])
        return (trace * t.squeeze(-1)).expand(shape)

    def _turned(self, factors: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """Multiply states ``(*, D)`` by complex numbers ``(*, N)``."""
        (real, imaginary), count = factors, self.num_modes
        x_real, x_imaginary = x[..., :count], F.pad(x[..., count:], (0, self.dim % 2))
        y_real = real * x_real - imaginary * x_imaginary
        y_imaginary = real * x_imaginary + imaginary * x_real
        return torch.cat([y_real, y_imaginary[..., : self.dim // 2]], -1)


def exponential(
    rates: Tensor, turns: Tensor, t: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    r"""Return real and imaginary part of :math:`e^{(-r + 2 \pi i \nu) t}`.

    Parameters
    ----------
    rates, turns, t
        :math:`r`, :math:`\nu` in float64, and :math:`t`, which broadcast against each other.
    dtype
        The dtype of the result.
    """
    size = torch.exp(-(rates * t)).to(dtype)
    cos, sin = rotation(turns, t, dtype)
    return size * cos, size * sin


def rotation(turns: Tensor, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    r"""Return cosine and sine of :math:`2 \pi \nu t`, where :math:`\nu` is in float64.

    Whole turns are dropped, exactly, before the phase is cast to ``dtype``.
    """
    phase = (turns * t.double()).frac_().to(dtype).mul_(2 * math.pi)
    return phase.cos(), phase.sin() if phase.requires_grad else phase.sin_()


def _spread(lowest: float, highest: float, count: int) -> Tensor:
    """Return the midpoints of ``count`` equal parts of a logarithmic range, in increasing order."""
    position = (torch.arange(count, dtype=torch.float64) + 0.5) / max(count, 1)
    return lowest * (highest / lowest) ** position


def _inverse_softplus(values: Tensor) -> Tensor:
    return values + torch.log(-torch.expm1(-values))
