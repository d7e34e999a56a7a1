"""The network inside a flow: a function of a state and a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltaflow.flows.flow import FlowMap
from deltaflow.flows.initial import orthogonal, uniform
from deltaflow.flows.time_embedding import check_times


class TimeMLP(nn.Module):
    r"""A multilayer perceptron of :math:`x` and :math:`\log(1 + t)`.

    .. math:: f(t, x) = W_n \, \sigma(\dots \sigma(W_1 x + w \log(1 + t) + b_1) \dots) + b_n

    The logarithm is close to linear near :math:`t = 0`, distinguishes orders of magnitude further
    out, and stays small: :math:`10^6` gaps become 14.

    Matrices start orthogonal, with spectral norm 1, so that no direction of the state is lost.

    Parameters
    ----------
    in_dim
        The number of features of :math:`x`; may be 0, for a function of time alone.
    out_dim
        The number of output features.
    hidden_dims
        The widths of the hidden layers; may be empty.
    activation
        The function :math:`\sigma`.

    Examples
    --------
    >>> network = TimeMLP(3, 2, [16], activation=torch.tanh)
    >>> network(torch.rand(5, 1), torch.rand(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dims: Sequence[int],
        *,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.activation = activation
        self.widths = (in_dim, *hidden_dims, out_dim)
        self.weights = nn.ParameterList(
            orthogonal(n_out, n_in) for n_in, n_out in pairwise(self.widths)
        )
        self.biases = nn.ParameterList(torch.zeros(n_out) for n_out in self.widths[1:])
        self.time_weight = nn.Parameter(uniform(self.widths[1]))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        r"""Map times :math:`(*, 1)` and states :math:`(*, D_{in})` to :math:`(*, D_{out})`.

        Raises
        ------
        ValueError
            If a time is negative or not finite.
        """
        check_times(t)
        return self.prepare()(t, x)

    def matrices(self) -> list[Tensor]:
        """Return the matrices that the network multiplies by."""
        return list(self.weights)

    def prepare(self) -> FlowMap:
        """Return the network as a function of ``(t, x)`` for use in a loop."""
        first, *others = zip(self.matrices(), self.biases, strict=True)
        time_weight, activation = self.time_weight, self.activation

        def network(t: Tensor, x: Tensor) -> Tensor:
            hidden = torch.addcmul(F.linear(x, *first), time_weight, t.log1p())
            for weight, bias in others:
                hidden = F.linear(activation(hidden), weight, bias)
            return hidden

        return network

    def extra_repr(self) -> str:
        """Return the widths as text."""
        return f"widths={self.widths}"
