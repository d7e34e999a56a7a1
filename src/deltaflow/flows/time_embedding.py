r"""Time embeddings :math:`\varphi(t)`: how far a flow has moved after a time t.

Time is counted in typical gaps. The rates of a new embedding are spread over orders of magnitude:
some dimensions have moved half-way after one gap, others after a hundred.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from deltaflow.errors import check_registered
from deltaflow.flows.initial import in_default_dtype

TimeMap: TypeAlias = Callable[[Tensor], Tensor]
"""A map ``t -> phi(t)`` whose weights are fixed."""

SLOWEST_RATE, FASTEST_RATE = 0.01, 3.0


def check_times(t: Tensor, earliest: float = 0.0) -> None:
    """Raise a ``ValueError`` unless all times are finite, and none lies before ``earliest``.

    Inside ``torch.func.vmap`` and ``torch.compile``, which hide the values, nothing is checked.

    >>> check_times(torch.tensor([1.0, -2.0]))
    Traceback (most recent call last):
    ValueError: times must be finite and not negative, got -2.0; go back in time by inverse(t, y)
    """
    if torch.compiler.is_compiling():
        return
    wrong = ~(t.isfinite() & (t >= earliest))
    try:
        if not wrong.any():
            return
    except RuntimeError:  # from vmap
        return
    value = t.detach()[wrong][0].item()
    if math.isfinite(value):
        raise ValueError(
            f"times must be finite and not negative, got {value}; go back in time by inverse(t, y)"
        )
    raise ValueError(f"times must be finite, got {value}")


def spread_rates(count: int) -> Tensor:
    """Draw float32 rates, one from each of ``count`` equal parts of the logarithmic range."""
    position = (torch.randperm(count) + torch.rand(count, dtype=torch.float32)) / count
    return SLOWEST_RATE * (FASTEST_RATE / SLOWEST_RATE) ** position


class TimeEmbedding(nn.Module, ABC):
    r"""A function :math:`\varphi(t) \ge 0` of time, one per dimension, with :math:`\varphi(0) = 0`.

    The value at 0 is exactly 0 by construction. An embedding with :math:`\varphi \le 1` is called
    bounded.

    Parameters
    ----------
    dim
        The number of features :math:`D` of :math:`\varphi`.

    Examples
    --------
    >>> phi = TanhTime(3)
    >>> phi(torch.zeros(1))
    tensor([0., 0., 0.], grad_fn=...)
    >>> phi.derivative(torch.rand(5, 1)).shape
    torch.Size([5, 3])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def prepare(self) -> TimeMap:
        r"""Return :math:`\varphi` as a function of ``t``, with its weights computed once."""

    def forward(self, t: Tensor) -> Tensor:
        r"""Map times :math:`(*, 1)` to :math:`\varphi(t)`, of shape :math:`(*, D)`.

        Raises
        ------
        ValueError
            If a time is negative or not finite.
        """
        check_times(t)
        return self.prepare()(t)

    def derivative(self, t: Tensor) -> Tensor:
        r"""Return :math:`\varphi'(t)`, of shape :math:`(*, D)`, exactly (in forward mode)."""
        check_times(t)
        return torch.func.jvp(self.prepare(), (t,), (torch.ones_like(t),))[1]

    def extra_repr(self) -> str:
        """Name the dimension."""
        return f"dim={self.dim}"


class Rate(nn.Module):
    """A learned positive number per dimension.

    >>> bool((Rate(3)() > 0).all())
    True
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        raw = spread_rates(dim).expm1().log()  # softplus undoes this
        self.raw = nn.Parameter(in_default_dtype(raw))

    def forward(self) -> Tensor:
        """Return the rates, of shape :math:`(D,)`."""
        return F.softplus(self.raw)


class RateTime(TimeEmbedding):
    r"""A function of :math:`a t`, where :math:`a` is a learned rate per dimension.

    Attributes
    ----------
    of
        The function.
    """

    of: Callable[[Tensor], Tensor]

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.rate = Rate(dim)

    def prepare(self) -> TimeMap:
        """Return the function of :math:`a t`."""
        rate = self.rate()
        return lambda t: self.of(rate * t)


class TanhTime(RateTime):
    r""":math:`\varphi(t) = \tanh(a t)`: bounded, and converges exponentially fast."""

    of = staticmethod(lambda moved: moved.tanh())


class LinearTime(RateTime):
    r""":math:`\varphi(t) = a t`: unbounded, at a constant rate."""

    of = staticmethod(lambda moved: moved)


class LogTime(RateTime):
    r""":math:`\varphi(t) = \log(1 + a t)`: grows by the same amount each time t grows tenfold."""

    of = staticmethod(lambda moved: moved.log1p())


class FourierTime(TimeEmbedding):
    r"""A bounded, periodic embedding:

    .. math:: \varphi(t) = \sum_k w_k \, \frac{1 - \cos \omega_k t}{2}
                         = \sum_k w_k \sin^2 \frac{\omega_k t}{2},
              \qquad w_k \ge 0, \quad \sum_k w_k = 1.

    The squared sine is exactly 0 at :math:`t = 0` and, unlike the cosine, loses no digits near it.

    Parameters
    ----------
    dim
        The number of features :math:`D` of :math:`\varphi`.
    num_frequencies
        The number of terms per feature.
    """

    def __init__(self, dim: int, num_frequencies: int = 4) -> None:
        super().__init__(dim)
        rates = spread_rates(dim * num_frequencies).reshape(dim, num_frequencies)
        self.frequency = nn.Parameter(in_default_dtype(rates))
        self.raw_weight = nn.Parameter(torch.zeros(dim, num_frequencies))

    def prepare(self) -> TimeMap:
        """Return the weighted sum of squared sines."""
        half_frequency, weight = self.frequency / 2, self.raw_weight.softmax(-1)

        def phi(t: Tensor) -> Tensor:
            waves = torch.sin(half_frequency * t.unsqueeze(-1)).square()  # (*, D, K)
            return (weight * waves).sum(-1)

        return once_per_time(phi)


def once_per_time(phi: TimeMap) -> TimeMap:
    """Return a map that computes an embedding once per distinct time.

    Thousands of gaps recorded to the minute have only a few dozen distinct values. If the
    derivative with respect to time is needed, every time is computed.

    Examples
    --------
    >>> double = once_per_time(lambda t: print(len(t), "times") or 2 * t)
    >>> double(torch.tensor([[5.0], [1.0], [5.0]])).flatten()
    2 times
    tensor([10.,  2., 10.])
    """

    def looked_up(t: Tensor) -> Tensor:
        if t.requires_grad or is_transformed() or torch.compiler.is_compiling():
            return phi(t)
        moments, place = t.squeeze(-1).unique(return_inverse=True)
        return F.embedding(place, phi(moments.unsqueeze(-1)))

    return looked_up


def is_transformed() -> bool:
    """Return whether `torch.func` or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class Saturating(TimeEmbedding):
    r""":math:`\psi = \varphi / (1 + \varphi)`: the bounded version of an unbounded embedding.

    It approaches 1 only as fast as :math:`1 / \varphi` vanishes, so it changes even after long
    times.

    Parameters
    ----------
    phi
        The embedding :math:`\varphi \ge 0`.
    """

    def __init__(self, phi: TimeEmbedding) -> None:
        super().__init__(phi.dim)
        self.phi = phi

    def prepare(self) -> TimeMap:
        r"""Return :math:`\psi`."""
        phi = self.phi.prepare()

        def psi(t: Tensor) -> Tensor:
            value = phi(t)
            return value / (1 + value)

        return psi


def make_time_embedding(
    name: str, dim: int, registry: Mapping[str, Callable[[int], TimeEmbedding]]
) -> TimeEmbedding:
    """Make the embedding that ``registry`` holds under ``name``.

    >>> make_time_embedding("tanh", 3, TIME_EMBEDDINGS).dim
    3
    """
    check_registered("time embedding", name, registry)
    return registry[name](dim)


TIME_EMBEDDINGS: dict[str, Callable[[int], TimeEmbedding]] = {
    "tanh": TanhTime,
    "linear": LinearTime,
    "log": LogTime,
    "fourier": FourierTime,
}
"""Every time embedding by its name: a function of the dimension."""

BOUNDED_TIME_EMBEDDINGS: dict[str, Callable[[int], TimeEmbedding]] = {
    "tanh": TanhTime,
    "linear": lambda dim: Saturating(LinearTime(dim)),
    "log": lambda dim: Saturating(LogTime(dim)),
    "fourier": FourierTime,
}
"""Time embeddings with values in [0, 1], as the ResNet and GRU flows need them, by name."""
