"""The inputs of a stage: times in columns, and weights that include those of time and bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltaflow.encoders.fused.stage import for_shares
from deltaflow.flows.time_embedding import TanhTime, TimeEmbedding
from deltaflow.flows.time_mlp import TimeMLP


def clock_of(t: Tensor) -> Tensor:
    """Return ``log(1 + t)`` and 1, the rows through which time and biases enter a product.

    >>> clock_of(torch.zeros(1, 1, 2))
    tensor([[[0., 0.],
             [1., 1.]]])
    """
    return torch.cat([t.log1p(), torch.ones_like(t)], dim=1)


def matrices_with_clock(
    network: TimeMLP, activation: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Return ``[W_1, w, b_1]`` and ``[0, b_2, W_2]`` of a network with one hidden layer.

    The first is multiplied by shares, see :class:`Stage`. Columns of w and b are multiplied by the
    rows of :func:`clock_of`. Return None for a network of another depth, activation or formula.
    """
    if (
        len(network.widths) != 3
        or network.activation is not activation
        or type(network).prepare is not TimeMLP.prepare
    ):
        return None
    (first, second), (bias, out_bias) = network.matrices(), network.biases
    first, bias = for_shares(first, bias)
    clock = torch.stack([network.time_weight, bias], -1)
    out_clock = torch.stack([torch.zeros_like(out_bias), out_bias], -1)
    return torch.cat([first, clock], -1), torch.cat([out_clock, second], -1)


def phi_columns(phi: TimeEmbedding, t: Tensor, scale: float = 1.0) -> Tensor:
    r"""Map times :math:`(T, 1, N)` to :math:`c \varphi(t)` in columns, :math:`(T, D, N)`."""
    if type(phi) is TanhTime:
        return _ScaledTanh.apply(phi.rate(), t, scale)  # type: ignore[return-value]
    return scale * phi.prepare()(t.mT).mT


class _ScaledTanh(torch.autograd.Function):
    r"""The map :math:`a, t \mapsto c \tanh(a t) = c (2 \sigma(2 a t) - 1)` in columns.

    Autograd's own derivative would need several times the memory, which is large. The rounding
    error of the result is relative to the scale c, not to the result.
    """

    @staticmethod
    def forward(ctx: Any, rate: Tensor, t: Tensor, scale: float) -> Tensor:
        value = (2 * rate.unsqueeze(-1) * t).sigmoid_()
        torch.add(value.new_tensor(-scale), value, alpha=2 * scale, out=value)
        ctx.save_for_backward(rate, t, value)
        ctx.scale = scale
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rate, t, value = ctx.saved_tensors
        of_product = (gradient * value).mul_(value).div_(-ctx.scale)
        of_product.add_(gradient, alpha=ctx.scale)  # c (1 - tanh²)
        of_t = (rate @ of_product).unsqueeze(1) if ctx.needs_input_grad[1] else None
        return (of_product @ t.mT).sum(0).squeeze(-1), of_t, None
