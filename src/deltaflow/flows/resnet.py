"""The ResNet flow: a residual step that is invertible because its network contracts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from deltaflow.flows.compose import FlowStack
from deltaflow.flows.contractive import ContractiveMLP
from deltaflow.flows.fixed_point import solve
from deltaflow.flows.flow import INITIAL_STEP, Flow, FlowMap
from deltaflow.flows.stage import Product, Rows, Stage
from deltaflow.flows.time_embedding import BOUNDED_TIME_EMBEDDINGS, make_time_embedding


class ResNetLayer(Flow):
    r"""One residual step :math:`F(t, x) = x + \varphi(t) \odot g(t, x)`.

    It is invertible because :math:`0 \le \varphi \le 1` and :math:`\mathrm{Lip}_x(g) \le L < 1`:
    the residual contracts, whatever the weights. :math:`F` itself need not.

    Parameters
    ----------
    dim
        The number of features of the state.
    hidden_dims
        The widths of the hidden layers of :math:`g`.
    time_embedding
        The name of :math:`\varphi` in ``BOUNDED_TIME_EMBEDDINGS``.
    lipschitz
        The bound :math:`L`, in :math:`(0, 1)`. Closer to 1 the flow is more expressive, and the
        inverse costs more iterations and digits, by :math:`1 / (1 - L)`.

    References
    ----------
    Biloš et al., 2021, arXiv:2110.13040, section 3.1; Behrmann et al., *Invertible Residual
    Networks*, 2019, arXiv:1811.00995, theorem 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden_dims: Sequence[int] = (64,),
        time_embedding: str = "tanh",
        lipschitz: float = 0.95,
    ) -> None:
        super().__init__(dim)
        self.g = ContractiveMLP(dim, dim, hidden_dims, lipschitz=lipschitz)
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

    def stages(self, t: Tensor, clock: Tensor) -> list[Stage] | None:
        """Normalise the network, and return the step as a stage if g has one hidden layer."""
        matrices = self.g.matrices_with_clock()
        if matrices is None:
            return None
        first, second = matrices
        return [ResNetStage(first, second / 2, clock, self.phi.columns(t))]

    def inverse(
        self, t: Tensor, y: Tensor, *, tol: float | None = None, max_iter: int = 1000
    ) -> Tensor:
        """Iterate to the fixed point, see :func:`~deltaflow.flows.fixed_point.solve`."""
        self.check_inputs(t, y)
        return solve(
            self.prepare(), t, y, lipschitz=self.lipschitz_bound, tol=tol, max_iter=max_iter
        )


class ResNetStage(Stage):
    r"""The residual step :math:`y = x + \varphi \odot g`, where :math:`g = W_2 a + b_2`.

    Its Jacobian is :math:`I + D_\varphi W_2 D_{a'} W_1`, where :math:`a' = \min(a, 0) + 1` for the
    ELU.

    Parameters
    ----------
    first, second
        ``[W, w, b]``, see :meth:`TimeMLP.matrices_with_clock`, and half of ``[0, b, W]``: x moves
        half as far as the state that it stands for.
    clock, phi
        The rows of the clock, and :math:`\varphi` in columns.
    """

    def __init__(self, first: Tensor, second: Tensor, clock: Tensor, phi: Tensor) -> None:
        dim, hidden = phi.shape[1], len(first)
        self.dim = dim
        self.tape = {"phi": dim, "x": dim, "clock": 2, "a": hidden, "g": dim}
        self.kept = slice("x", "g")
        self.work = {"y": dim, "phi": dim, "g": dim, "a": hidden, "back": hidden}
        self.inputs = {"clock": clock, "phi": phi}
        self.input_gradients = {"phi": "phi"}
        self.products = [
            Product(first, of=slice("x", "clock"), gradient="a"),
            Product(second, of=slice("clock", "a"), gradient="g"),
        ]
        self.first, self.second = first.detach(), second.detach()

    @cached_property
    def first_back(self) -> Tensor:
        """The matrix by which the gradient of a, before the ELU, gives that of x."""
        return self.first[:, : self.dim].T.contiguous()

    @cached_property
    def second_back(self) -> Tensor:
        """The matrix by which the gradient of g gives that of a."""
        return self.second[:, 2:].T.contiguous()

    def forward_views(self, tape: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Stage.forward_views`."""
        rows = (tape[name] for name in ("x", "phi", "a", "g"))
        return out, tape["x":"clock"], tape["clock":"a"], *rows

    def forward(self, out, x_clock, clock_a, x, phi, a, g) -> None:
        """See :meth:`Stage.forward`."""
        F.elu_(torch.mm(self.first, x_clock, out=a))
        torch.mm(self.second, clock_a, out=g)
        torch.addcmul(x, phi, g, out=out)

    def factors(self, tape: Rows, work: Rows) -> None:
        """Fill in the diagonals of the Jacobian."""
        work["phi"].copy_(tape["g"])
        work["g"].copy_(tape["phi"])
        torch.clamp(tape["a"], max=0, out=work["a"]).add_(1)

    def backward_views(self, work: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Stage.backward_views`."""
        rows = (work[name] for name in ("y", "g", "a", "back"))
        return out, work.stacked("phi", "g"), *rows

    def backward(self, out, phi_g, y, g, a, back) -> None:
        """See :meth:`Stage.backward`."""
        phi_g.mul_(y)
        a.mul_(torch.mm(self.second_back, g, out=back))
        torch.addmm(y, self.first_back, a, out=out)


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
        hidden_dims: Sequence[int] = (64,),
        time_embedding: str = "tanh",
        lipschitz: float = 0.95,
    ) -> None:
        super().__init__(
            ResNetLayer(
                dim, hidden_dims=hidden_dims, time_embedding=time_embedding, lipschitz=lipschitz
            )
            for _ in range(num_layers)
        )
