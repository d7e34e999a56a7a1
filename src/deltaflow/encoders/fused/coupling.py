"""The stage of the coupling flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltaflow.encoders.fused.inputs import matrices_with_clock, phi_columns
from deltaflow.encoders.fused.stage import NamedRows, Product, Stage
from deltaflow.flows.coupling import CouplingLayer


def coupling_stages(
    layers: Sequence[CouplingLayer], t: Tensor, clock: Tensor
) -> list[Stage] | None:
    """Return two stages for each layer.

    Return None unless each network has one hidden layer and the state has several dimensions.
    """
    stages: list[Stage] = []
    for layer in layers:
        for part in (layer.first, layer.second):
            matrices = matrices_with_clock(part.network, torch.tanh)
            if matrices is None or layer.dim == 1:
                return None
            phi = phi_columns(part.phi, t)
            stages.append(CouplingStage(*matrices, clock, phi, part.max_log_scale))
    return stages


class CouplingStage(Stage):
    r"""The step :math:`(h, h') \mapsto (h', h \odot e^s + b)`. The next step moves the other part.

    For :math:`x = (1 + h) / 2` it is
    :math:`\tfrac{1}{2} + (x - \tfrac{1}{2}) \odot e^s + \tfrac{b}{2}`. Since
    :math:`\tanh(p) = 2 \sigma(2p) - 1`, sigmoids can replace all tanhs once the weights include
    the constants:

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
        ``[W, w, b]`` and ``[0, b, W]``, see :func:`matrices_with_clock`.
    clock, phi
        The rows of the clock, and :math:`\varphi` in columns.
    max_log_scale
        The bound :math:`s_{\max}`.
    """

    state = slice("x", "given")
    gradient = slice("y_given", "y")
    forward_views = (
        "x", "given", "a", "s", "scale", "phi",
        slice("given", "clock"), slice("clock", "a"), slice("u", "v"),
    )  # fmt: skip
    backward_views = "y", "y_given", "a", "back", "scale", slice("u", "v"), ("phi_u", "v")

    def __init__(
        self, first: Tensor, second: Tensor, clock: Tensor, phi: Tensor, max_log_scale: float
    ) -> None:
        moved, (hidden, given) = phi.shape[1] // 2, (len(first), first.shape[1] - 2)
        self.dim, self.parts = moved + given, (given, moved)
        self.tape = {"phi": 2 * moved, "x": moved, "given": given, "clock": 2, "a": hidden}
        self.tape |= {"u": moved, "v": moved, "scale": moved, "s": moved}
        self.kept = slice("x", "s")
        self.work = {"y_given": given, "y": moved, "phi_u": moved, "phi_v": moved, "u": moved}
        self.work |= {"v": moved, "q": moved, "scale": moved, "a": hidden, "back": hidden}
        self.inputs = {"clock": clock, "phi": phi}
        self.input_gradients = {"phi": slice("phi_u", "phi_v")}
        first, second = 2 * first, _for_sigmoids(second, moved)
        self.products = [
            Product(first, of=slice("given", "clock"), gradient="a"),
            Product(second, of=slice("clock", "a"), gradient=slice("u", "v")),
        ]
        self.first, self.second = first.detach(), second.detach()
        self.twice_limit = 2 * max_log_scale
        self.minus_limit, self.half = first.new_tensor(-max_log_scale), first.new_tensor(0.5)
        # The matrices of the gradients: to x', from a before the sigmoid; and to a, from u and v.
        self.first_back = self.first[:, :given].T.contiguous()
        self.second_back = self.second[:, 2:].T.contiguous()

    def forward_arguments(self, tape: NamedRows, out: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Stage.forward_arguments`; the halves of phi stand at the end."""
        return *super().forward_arguments(tape, out), *tape["phi"].chunk(2, 1)

    def forward(
        self, out_given, out, x, given, a, s, scale, phi, given_clock, clock_a, uv, before_s, shift
    ) -> None:
        """See :meth:`Stage.forward`."""
        torch.mm(self.first, given_clock, out=a).sigmoid_()
        torch.mm(self.second, clock_a, out=uv)
        phi.mul_(uv)
        torch.sigmoid(before_s, out=s)
        torch.add(self.minus_limit, s, alpha=self.twice_limit, out=scale).exp_()
        torch.lerp(self.half, x, scale, out=out).add_(shift)
        out_given.copy_(given)

    def factors(self, tape: NamedRows, work: NamedRows) -> None:
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

    def backward(self, out, out_given, y, y_given, a, back, scale, uv, phi_uv) -> None:
        """See :meth:`Stage.backward`."""
        phi_uv.mul_(y)
        a.mul_(torch.mm(self.second_back, uv, out=back))
        torch.mul(y, scale, out=out)
        torch.addmm(y_given, self.first_back, a, out=out_given)


def _for_sigmoids(weight: Tensor, moved: int) -> Tensor:
    """Adapt ``[0, b, W]`` to a hidden layer of sigmoids instead of tanhs; double u and halve v."""
    bias, matrix = weight[:, 1:2], weight[:, 2:]
    weight = torch.cat([weight[:, :1], bias - matrix.sum(1, keepdim=True), 2 * matrix], 1)
    return torch.cat([2 * weight[:moved], weight[moved:] / 2])
