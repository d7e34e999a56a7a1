"""The ResNet flow: a residual step that is invertible because its network contracts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltaflow.flows.compose import FlowStack
from deltaflow.flows.contractive import ContractiveMLP
from deltaflow.flows.fixed_point import solve
from deltaflow.flows.flow import INITIAL_STEP, Flow, FlowMap
from deltaflow.flows.time_embedding import BOUNDED_TIME_EMBEDDINGS, make_time_embedding


class ResNetLayer(Flow):
    r"""One residual step :math:`F(t, x) = x + \varphi(t) \odot g(t, x)`.

    It is invertible because :math:`0 \le \varphi \le 1` and :math:`\mathrm{Lip}_x(g) \le L < 1`:
    the residual contracts for all weights. :math:`F` itself need not contract.

    Parameters
    ----------
    dim
        The number of features of the state.
    hidden_dims
        The widths of the hidden layers of :math:`g`; a single one as wide as the state if None.
    time_embedding
        The name of :math:`\varphi` in ``BOUNDED_TIME_EMBEDDINGS``.
    lipschitz
        The bound :math:`L`, in :math:`(0, 1)`. The closer it is to 1, the more expressive the flow
        is; but the iterations that the inverse takes, and its error, grow as :math:`1 / (1 - L)`.

    References
    ----------
    Biloš et al., 2021, arXiv:2110.13040, section 3.1; Behrmann et al., *Invertible Residual
    Networks*, 2019, arXiv:1811.00995, theorem 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden_dims: Sequence[int] | None = (64,),
        time_embedding: str = "tanh",
        lipschitz: float = 0.95,
    ) -> None:
        super().__init__(dim)
        widths = (dim,) if hidden_dims is None else hidden_dims
        self.g = ContractiveMLP(dim, dim, widths, lipschitz=lipschitz)
        with torch.no_grad():
            self.g.weights[-1] *= INITIAL_STEP
        self.phi = make_time_embedding(time_embedding, dim, BOUNDED_TIME_EMBEDDINGS)

    @property
    def lipschitz_bound(self) -> float:
        r"""A bound on :math:`\mathrm{Lip}_x(\varphi \odot g)` that holds for all weights and t."""
        return self.g.lipschitz

    def prepare(self) -> FlowMap:
        """Normalise the network, and return the step."""
        g, phi = self.g.prepare(), self.phi.prepare()
        return lambda t, x: torch.addcmul(x, phi(t), g(t, x))

    def inverse(
        self, t: Tensor, y: Tensor, *, tol: float | None = None, max_iter: int = 1000
    ) -> Tensor:
        """Iterate to the fixed point, see :func:`~deltaflow.flows.fixed_point.solve`."""
        self.check_inputs(t, y)
        return solve(
            self.prepare(), t, y, lipschitz=self.lipschitz_bound, tol=tol, max_iter=max_iter
        )


class ResNetFlow(FlowStack):
    r"""A stack of residual steps :math:`x + \varphi(t) \odot g(t, x)`, see :class:`ResNetLayer`.

    Parameters
    ----------
    dim
        The number of features of the state.
    num_layers
        The number of steps.
    hidden_dims, time_embedding, lipschitz
        As in :class:`ResNetLayer`.

    Examples
    --------
    >>> flow = ResNetFlow(3, num_layers=2)
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
        lipschitz: float = 0.95,
    ) -> None:
        super().__init__(
            ResNetLayer(
                dim, hidden_dims=hidden_dims, time_embedding=time_embedding, lipschitz=lipschitz
            )
            for _ in range(num_layers)
        )
