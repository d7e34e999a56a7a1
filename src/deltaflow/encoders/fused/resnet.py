"""The stage of the ResNet flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from deltaflow.encoders.fused.inputs import matrices_with_clock, phi_columns
from deltaflow.encoders.fused.stage import NamedRows, Product, Stage
from deltaflow.flows.resnet import ResNetLayer


def resnet_stages(layers: Sequence[ResNetLayer], t: Tensor, clock: Tensor) -> list[Stage] | None:
    """Return the stages of the layers, or None unless each network has one hidden layer."""
    stages: list[Stage] = []
    for layer in layers:
        matrices = matrices_with_clock(layer.g, F.elu)
        if matrices is None:
            return None
        first, second = matrices
        stages.append(ResNetStage(first, second / 2, clock, phi_columns(layer.phi, t)))
    return stages


class ResNetStage(Stage):
    r"""The residual step :math:`y = x + \varphi \odot g`, where :math:`g = W_2 a + b_2`.

    Its Jacobian is :math:`I + D_\varphi W_2 D_{a'} W_1`, where :math:`a' = \min(a, 0) + 1` for the
    ELU.

    Parameters
    ----------
    first, second
        ``[W, w, b]``, see :func:`matrices_with_clock`, and half of ``[0, b, W]``: the share x moves
        half as far as the state.
    clock, phi
        The rows of the clock, and :math:`\varphi` in columns.
    """

    forward_views = slice("x", "clock"), slice("clock", "a"), "x", "phi", "a", "g"
    backward_views = ("phi", "g"), "y", "g", "a", "back"

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
        # The matrices of the gradients: to x, from a before the ELU; and to a, from g.
        self.first_back = self.first[:, :dim].T.contiguous()
        self.second_back = self.second[:, 2:].T.contiguous()

    def forward(self, out, x_clock, clock_a, x, phi, a, g) -> None:
        """See :meth:`Stage.forward`."""
        F.elu_(torch.mm(self.first, x_clock, out=a))
        torch.mm(self.second, clock_a, out=g)
        torch.addcmul(x, phi, g, out=out)

    def factors(self, tape: NamedRows, work: NamedRows) -> None:
        """Fill in the diagonals of the Jacobian."""
        work["phi"].copy_(tape["g"])
        work["g"].copy_(tape["phi"])
        torch.clamp(tape["a"], max=0, out=work["a"]).add_(1)

    def backward(self, out, phi_g, y, g, a, back) -> None:
        """See :meth:`Stage.backward`."""
        phi_g.mul_(y)
        a.mul_(torch.mm(self.second_back, g, out=back))
        torch.addmm(y, self.first_back, a, out=out)
