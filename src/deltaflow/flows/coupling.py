"""The coupling flow: one half of the state moves by what the other half says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from deltaflow.flows.compose import FlowStack
from deltaflow.flows.flow import INITIAL_STEP, Flow, FlowMap
from deltaflow.flows.stage import Product, Rows, Stage
from deltaflow.flows.time_embedding import TIME_EMBEDDINGS, make_time_embedding
from deltaflow.flows.time_mlp import TimeMLP


class AffineParameters(nn.Module):
    r"""Log-scale and shift of some features, given the others.

    .. math:: s = s_{\max} \tanh(u(t, x) \odot \varphi_u(t)), \qquad b = v(t, x) \odot \varphi_v(t)

    The soft clamp keeps the scale :math:`e^s` from overflowing after a long time.

    Parameters
    ----------
    given, moved
        The numbers of features that are read, and that log-scale and shift are for. Either may
        be 0.
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
        # tanh bounds u and v, so that an unbounded phi is a factor once and not once per layer.
        self.network = TimeMLP(given, 2 * moved, hidden_dims, activation=torch.tanh)
        with torch.no_grad():
            self.network.weights[-1] *= INITIAL_STEP
        self.phi = make_time_embedding(time_embedding, 2 * moved, TIME_EMBEDDINGS)

    def prepare(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return log-scale and shift as a function of ``(t, x)`` for use in a loop."""
        network, phi, limit = self.network.prepare(), self.phi.prepare(), self.max_log_scale

        def parameters(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            log_scale, shift = (network(t, x) * phi(t)).chunk(2, -1)
            return limit * torch.tanh(log_scale), shift

        return parameters


class CouplingLayer(Flow):
    r"""A pair of affine steps, each moving one part of the state :math:`x = (x_A, x_B)`.

    .. math:: y_A = x_A \odot e^{s_1(t, x_B)} + b_1(t, x_B), \qquad
              y_B = x_B \odot e^{s_2(t, y_A)} + b_2(t, y_A)

    Log-scales and shifts (:class:`AffineParameters`) vanish at :math:`t = 0`. The inverse and the
    log-determinant are in closed form. With one dimension :math:`x_B` is empty, and the step
    depends on t alone.

    Parameters
    ----------
    dim
        The number of features of the state.
    hidden_dims
        The widths of the hidden layers, at least one.
    time_embedding
        The name of the time embedding in ``TIME_EMBEDDINGS``.
    max_log_scale
        One layer scales no feature by more than the exponential of this.

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
        hidden_dims: Sequence[int] = (64,),
        time_embedding: str = "tanh",
        max_log_scale: float = 2.0,
    ) -> None:
        if not hidden_dims:
            raise ValueError("a coupling layer needs hidden_dims: they bound how far it moves")
        if not max_log_scale > 0:
            raise ValueError(f"max_log_scale must be positive, got {max_log_scale}")
        super().__init__(dim)
        self.sizes = size_a, size_b = dim - dim // 2, dim // 2

        def parameters(given: int, moved: int) -> AffineParameters:
            return AffineParameters(
                given,
                moved,
                hidden_dims=hidden_dims,
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

    def stages(self, t: Tensor, clock: Tensor) -> list[Stage] | None:
        """Return both steps as stages, if they have one hidden layer each and a part to read."""
        stages: list[Stage] = []
        for part in (self.first, self.second):
            matrices = part.network.matrices_with_clock()
            if matrices is None or self.dim == 1:
                return None
            stages.append(CouplingStage(*matrices, clock, part.phi.columns(t), part.max_log_scale))
        return stages

    def inverse(
        self, t: Tensor, y: Tensor, *, tol: float | None = None, max_iter: int = 1000
    ) -> Tensor:
        """Undo the two steps in closed form; there is nothing to iterate."""
        self.check_inputs(t, y)
        y_a, y_b = y.split(self.sizes, -1)
        log_scale, shift = self.second.prepare()(t, y_a)
        x_b = (y_b - shift) * (-log_scale).exp()
        log_scale, shift = self.first.prepare()(t, x_b)
        x_a = (y_a - shift) * (-log_scale).exp()
        return torch.cat([x_a, x_b], -1)

    def log_abs_det_jacobian(self, t: Tensor, x: Tensor) -> Tensor:
        """Sum the log-scales: the Jacobians of both steps are triangular."""
        self.check_inputs(t, x)
        x_a, x_b = x.split(self.sizes, -1)
        log_scale_a, shift = self.first.prepare()(t, x_b)
        log_scale_b, _ = self.second.prepare()(t, x_a * log_scale_a.exp() + shift)
        return log_scale_a.sum(-1) + log_scale_b.sum(-1)


class CouplingStage(Stage):
    r"""The step :math:`(h, h') \mapsto (h', h \odot e^s + b)`: the next one moves the other part.

    For :math:`x = (1 + h) / 2` it is
    :math:`\tfrac{1}{2} + (x - \tfrac{1}{2}) \odot e^s + \tfrac{b}{2}`. By
    :math:`\tanh(p) = 2 \sigma(2p) - 1`, there are constants in the weights, and only sigmoids:

    .. math:: s = s_{\max} (2 \sigma(u \odot \varphi_u) - 1), \qquad
              \tfrac{b}{2} = v \odot \varphi_v, \qquad (u, v) = W_2 \sigma(W_1 x').

    The Jacobian of the part that moves is

    .. math:: D_{e^s} \quad \text{by } x, \qquad
              \begin{pmatrix} D_{q \varphi_u} & D_{\varphi_v} \end{pmatrix}
              W_2 D_{\sigma'} W_1 \quad \text{by } x',

    where :math:`q = (x - \tfrac{1}{2}) e^s \, 2 s_{\max} \sigma'(u \varphi_u)`.

    Parameters
    ----------
    first, second
        ``[W, w, b]`` and ``[0, b, W]``, see :meth:`TimeMLP.matrices_with_clock`.
    clock, phi
        The rows of the clock, and :math:`\varphi` in columns.
    max_log_scale
        The bound :math:`s_{\max}`.
    """

    state = slice("x", "given")
    gradient = slice("y_given", "y")

    def __init__(
        self, first: Tensor, second: Tensor, clock: Tensor, phi: Tensor, max_log_scale: float
    ) -> None:
        moved, (hidden, given) = phi.shape[1] // 2, (len(first), first.shape[1] - 2)
        self.dim = moved + given
        self.tape = {"phi": 2 * moved, "x": moved, "given": given, "clock": 2, "a": hidden}
        self.tape |= {"u": moved, "v": moved, "scale": moved, "s": moved}
        self.kept = slice("x", "s")
        self.work = {"y_given": given, "y": moved, "phi_u": moved, "phi_v": moved, "u": moved}
        self.work |= {"v": moved, "q": moved, "scale": moved, "a": hidden, "back": hidden}
        self.inputs = {"clock": clock, "phi": phi}
        self.input_gradients = {"phi": slice("phi_u", "phi_v")}
        first, second = 2 * first, _of_sigmoids(second, moved)
        self.products = [
            Product(first, of=slice("given", "clock"), gradient="a"),
            Product(second, of=slice("clock", "a"), gradient=slice("u", "v")),
        ]
        self.first, self.second = first.detach(), second.detach()
        self.twice_limit = 2 * max_log_scale
        self.minus_limit, self.half = first.new_tensor(-max_log_scale), first.new_tensor(0.5)

    @cached_property
    def first_back(self) -> Tensor:
        """The matrix by which the gradient of a, before the sigmoid, gives that of x'."""
        return self.first[:, : self.tape["given"]].T.contiguous()

    @cached_property
    def second_back(self) -> Tensor:
        """The matrix by which the gradients of u and v give that of a."""
        return self.second[:, 2:].T.contiguous()

    def forward_views(self, tape: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Stage.forward_views`."""
        given = self.tape["given"]
        rows = (tape[name] for name in ("x", "given", "a", "s", "scale", "phi"))
        products = (tape["given":"clock"], tape["clock":"a"], tape["u":"v"])
        by_phi = tape["phi"].chunk(2, 1)
        return out[:, :given], out[:, given:], *rows, *by_phi, *products

    def forward(
        self, out_given, out, x, given, a, s, scale, phi, before_s, shift, given_clock, clock_a, uv
    ) -> None:
        """See :meth:`Stage.forward`."""
        torch.mm(self.first, given_clock, out=a).sigmoid_()
        torch.mm(self.second, clock_a, out=uv)
        phi.mul_(uv)
        torch.sigmoid(before_s, out=s)
        torch.add(self.minus_limit, s, alpha=self.twice_limit, out=scale).exp_()
        torch.lerp(self.half, x, scale, out=out).add_(shift)
        out_given.copy_(given)

    def factors(self, tape: Rows, work: Rows) -> None:
        """Fill in the diagonals of the Jacobian."""
        x, s, a, scale = (tape[name] for name in ("x", "s", "a", "scale"))
        phi_u, phi_v = tape["phi"].chunk(2, 1)
        q = torch.mul(s, self.twice_limit, out=work["q"])
        q.addcmul_(q, s, value=-1).mul_(x - 0.5).mul_(scale)
        torch.mul(q, tape["u"], out=work["phi_u"])
        torch.mul(q, phi_u, out=work["u"])
        work["phi_v"].copy_(tape["v"])
        work["v"].copy_(phi_v)
        torch.addcmul(a, a, a, value=-1, out=work["a"])
        work["scale"].copy_(scale)

    def backward_views(self, work: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Stage.backward_views`."""
        moved = self.work["y"]
        rows = (work[name] for name in ("y", "y_given", "a", "back", "scale"))
        return out[:, :moved], out[:, moved:], *rows, work["u":"v"], work.stacked("phi_u", "v")

    def backward(self, out, out_given, y, y_given, a, back, scale, uv, phi_uv) -> None:
        """See :meth:`Stage.backward`."""
        phi_uv.mul_(y)
        a.mul_(torch.mm(self.second_back, uv, out=back))
        torch.mul(y, scale, out=out)
        torch.addmm(y_given, self.first_back, a, out=out_given)


def _of_sigmoids(weight: Tensor, moved: int) -> Tensor:
    """Turn ``[0, b, W]`` of tanh into that of sigmoids. Double u, which enters one; halve v."""
    bias, matrix = weight[:, 1:2], weight[:, 2:]
    weight = torch.cat([weight[:, :1], bias - matrix.sum(1, keepdim=True), 2 * matrix], 1)
    return torch.cat([2 * weight[:moved], weight[moved:] / 2])


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
        hidden_dims: Sequence[int] = (64,),
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
