"""The coupling flow: each half of the state is scaled and shifted by a function of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from deltaflow.flows.compose import FlowStack
from deltaflow.flows.flow import INITIAL_STEP, Flow, FlowMap
from deltaflow.flows.time_embedding import TIME_EMBEDDINGS, make_time_embedding
from deltaflow.flows.time_mlp import TimeMLP


class AffineParameters(nn.Module):
    r"""The log-scale and shift of some features as functions of the other features.

    .. math:: s = s_{\max} \tanh(u(t, x) \odot \varphi_u(t)), \qquad b = v(t, x) \odot \varphi_v(t)

    The outer tanh limits :math:`s`, so that :math:`e^s` does not overflow after a long time.

    Parameters
    ----------
    given, moved
        The number of features that are read, and the number that are scaled and shifted. Either
        may be 0.
    hidden_dims
        The widths of the hidden layers of :math:`u` and :math:`v`.
    time_embedding
        The name of :math:`\varphi` in ``TIME_EMBEDDINGS``.
    max_log_scale
        The bound :math:`s_{\max}`.
    """

    def __init__(
        self,
        given: int,
        moved: int,
        *,
        hidden_dims: Sequence[int],
        time_embedding: str,
        max_log_scale: float,
    ) -> None:
        super().__init__()
        self.max_log_scale = max_log_scale
        # tanh bounds the hidden layers of u and v, so an unbounded phi enters the product once.
        self.network = TimeMLP(given, 2 * moved, hidden_dims, activation=torch.tanh)
        with torch.no_grad():
            self.network.weights[-1] *= INITIAL_STEP
        self.phi = make_time_embedding(time_embedding, 2 * moved, TIME_EMBEDDINGS)

    def prepare(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return a function from ``(t, x)`` to log-scale and shift, for use in a loop."""
        network, phi, limit = self.network.prepare(), self.phi.prepare(), self.max_log_scale

        def parameters(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            log_scale, shift = (network(t, x) * phi(t)).chunk(2, -1)
            return limit * torch.tanh(log_scale), shift

        return parameters


class CouplingLayer(Flow):
    r"""A pair of affine steps, each changing one part of the state :math:`x = (x_A, x_B)`.

    .. math:: y_A = x_A \odot e^{s_1(t, x_B)} + b_1(t, x_B), \qquad
              y_B = x_B \odot e^{s_2(t, y_A)} + b_2(t, y_A)

    Log-scales and shifts (:class:`AffineParameters`) vanish at :math:`t = 0`. The inverse and the
    log-determinant are in closed form. With a single dimension :math:`x_B` is empty, and log-scale
    and shift depend on t alone.

    Parameters
    ----------
    dim
        The number of features of the state.
    hidden_dims
        The widths of the hidden layers, at least one; a single one as wide as the state if None.
    time_embedding
        The name of the time embedding in ``TIME_EMBEDDINGS``.
    max_log_scale
        The bound on the log-scale: a layer scales a feature by at most the exponential of it.

    References
    ----------
    Biloš et al., 2021, arXiv:2110.13040, section 3.3; Dinh et al., *Density estimation using Real
    NVP*, 2017, arXiv:1605.08803, section 3.
    """

    closed_inverse = True
    closed_log_det = True

    def __init__(
        self,
        dim: int,
        *,
        hidden_dims: Sequence[int] | None = (64,),
        time_embedding: str = "tanh",
        max_log_scale: float = 2.0,
    ) -> None:
        widths = (dim,) if hidden_dims is None else hidden_dims
        if not widths:
            raise ValueError(
                "hidden_dims must not be empty: a coupling layer needs a hidden layer, "
                "which bounds the change of the state"
            )
        if not max_log_scale > 0:
            raise ValueError(f"max_log_scale must be positive, got {max_log_scale}")
        super().__init__(dim)
        self.sizes = size_a, size_b = dim - dim // 2, dim // 2

        parameters = partial(
            AffineParameters,
            hidden_dims=widths,
            time_embedding=time_embedding,
            max_log_scale=max_log_scale,
        )
        self.first = parameters(size_b, size_a)
        self.second = parameters(size_a, size_b)

    def prepare(self) -> FlowMap:
        """Prepare both networks, and return the pair of steps."""
        first, second, sizes = self.first.prepare(), self.second.prepare(), self.sizes

        def step(t: Tensor, x: Tensor) -> Tensor:
            x_a, x_b = x.split(sizes, -1)
            log_scale, shift = first(t, x_b)
            y_a = torch.addcmul(shift, x_a, log_scale.exp())
            log_scale, shift = second(t, y_a)
            y_b = torch.addcmul(shift, x_b, log_scale.exp())
            return torch.cat([y_a, y_b], -1)

        return step

    def inverse(
        self, t: Tensor, y: Tensor, *, tol: float | None = None, max_iter: int = 1000
    ) -> Tensor:
        """Invert the two steps in closed form; ``tol`` and ``max_iter`` are ignored."""
        self.check_inputs(t, y)
        y_a, y_b = y.split(self.sizes, -1)
        log_scale, shift = self.second.prepare()(t, y_a)
        x_b = (y_b - shift) * (-log_scale).exp()
        log_scale, shift = self.first.prepare()(t, x_b)
        x_a = (y_a - shift) * (-log_scale).exp()
        return torch.cat([x_a, x_b], -1)

    def log_abs_det_jacobian(self, t: Tensor, x: Tensor) -> Tensor:
        """Sum the log-scales, because the Jacobians of both steps are triangular."""
        self.check_inputs(t, x)
        x_a, x_b = x.split(self.sizes, -1)
        log_scale_a, shift = self.first.prepare()(t, x_b)
        log_scale_b, _ = self.second.prepare()(t, x_a * log_scale_a.exp() + shift)
        return log_scale_a.sum(-1) + log_scale_b.sum(-1)


class CouplingFlow(FlowStack):
    r"""A stack of affine coupling layers, see :class:`CouplingLayer`.

    Parameters
    ----------
    dim
        The number of features of the state.
    num_layers
        The number of layers.
    hidden_dims, time_embedding, max_log_scale
        As in :class:`CouplingLayer`.

    Examples
    --------
    >>> flow = CouplingFlow(3, num_layers=2)
    >>> t, x = torch.rand(5, 1), torch.rand(5, 3)
    >>> torch.allclose(flow.inverse(t, flow(t, x)), x, atol=1e-4)
    True
    """

    def __init__(
        self,
        dim: int,
        *,
        num_layers: int = 2,
        hidden_dims: Sequence[int] | None = (64,),
        time_embedding: str = "tanh",
        max_log_scale: float = 2.0,
    ) -> None:
        super().__init__(
            CouplingLayer(
                dim,
                hidden_dims=hidden_dims,
                time_embedding=time_embedding,
                max_log_scale=max_log_scale,
            )
            for _ in range(num_layers)
        )
