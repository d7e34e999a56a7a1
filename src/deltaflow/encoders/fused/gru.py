"""The stage of the GRU flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltaflow.encoders.fused.inputs import phi_columns
from deltaflow.encoders.fused.stage import NamedRows, Product, Stage, for_shares
from deltaflow.flows.contractive import spectral_normalise
from deltaflow.flows.gru import ALPHA, BETA, GRULayer


def gru_stages(layers: Sequence[GRULayer], t: Tensor, clock: Tensor) -> list[Stage]:
    """Return the stages of the layers, whose weights are normalised together in one call."""
    weight = torch.stack([layer.weight for layer in layers])  # (L, 3, D, D)
    bias = torch.stack([layer.bias for layer in layers])
    time_weight = torch.stack([layer.time_weight for layer in layers])
    coefficient = weight.new_tensor([layer.coefficient for layer in layers])
    weight = spectral_normalise(weight, coefficient.view(-1, 1, 1, 1))
    weight_zr, bias_zr = for_shares(weight[:, :2], bias[:, :2])
    of_clock = torch.stack([time_weight[:, :2], bias_zr], -1)  # (L, 2, D, 2)
    gates = torch.cat([of_clock, weight_zr], -1).flatten(1, 2)
    of_clock = torch.stack([time_weight[:, 2], bias[:, 2]], -1)  # (L, D, 2)
    candidates = 2 * torch.cat([-BETA * weight[:, 2], of_clock], -1)
    return [
        GRUStage(of_gates, of_candidate, clock, phi_columns(layer.phi, t, ALPHA))
        for layer, of_gates, of_candidate in zip(layers, gates, candidates, strict=True)
    ]


class GRUStage(Stage):
    r"""The gated step :math:`y = x + w \odot (s - x)`, where :math:`w = \alpha \varphi \odot z`.

    The candidate is :math:`s = \sigma(W_s q + \dots)`, where
    :math:`q = -r \odot h = r \odot (1 - 2x)`. The Jacobian is

    .. math:: D_{1 - w} + D_{w s (1 - s)} W_s (D_{-2 r} + D_{q (1 - r)} W_r)
              + D_{(s - x) z (\alpha \varphi - w)} W_z.

    Parameters
    ----------
    gates, candidate
        The weights ``[w, b, W]`` of z and r, and ``[W, w, b]`` of s.
    clock, phi
        The rows of the clock, and :math:`\alpha \varphi` in columns.
    """

    forward_views = (
        slice("clock", "x"), slice("q", "clock"), slice("z", "r"), "x", "phi", "q", "z", "r", "s"
    )  # fmt: skip
    backward_views = "y", ("phi", "z"), ("r", "q"), "s", "kept", slice("z", "q")

    def __init__(self, gates: Tensor, candidate: Tensor, clock: Tensor, phi: Tensor) -> None:
        dim = self.dim = phi.shape[1]
        self.tape = {"phi": dim, "q": dim, "clock": 2, "x": dim}
        self.tape |= {"z": dim, "r": dim, "s": dim}
        self.kept = slice("q", "s")
        self.work = dict.fromkeys(("y", "phi", "s", "kept", "z", "r", "q"), dim)
        self.inputs = {"clock": clock, "phi": phi}
        self.input_gradients = {"phi": "phi"}
        self.products = [
            Product(gates, of=slice("clock", "x"), gradient=slice("z", "r")),
            Product(candidate, of=slice("q", "clock"), gradient="s"),
        ]
        self.gates, self.candidate = gates.detach(), candidate.detach()
        # The matrices of the gradients: to x, from z, r and q; and to q, from s.
        self.gates_back = torch.cat([self.gates[:, 2:].T, torch.eye(dim).to(phi)], 1)
        self.candidate_back = self.candidate[:, :dim].T.contiguous()

    def forward(self, out, clock_x, q_clock, zr, x, phi, q, z, r, s) -> None:
        """See :meth:`Stage.forward`."""
        torch.mm(self.gates, clock_x, out=zr).sigmoid_()
        torch.addcmul(r, r, x, value=-2, out=q)
        torch.mm(self.candidate, q_clock, out=s).sigmoid_()
        torch.lerp(x, s, phi.mul_(z), out=out)

    def factors(self, tape: NamedRows, work: NamedRows) -> None:
        """Fill in the diagonals of the Jacobian."""
        x, z, r, s, q, phi = (tape[name] for name in ("x", "z", "r", "s", "q", "phi"))
        by_phi = torch.sub(s, x, out=work["phi"]).mul_(z)
        w = torch.mul(phi, z, out=work["z"])
        by_s = torch.mul(w, s, out=work["s"])
        by_s.addcmul_(by_s, s, value=-1)
        torch.sub(1, w, out=work["kept"])
        torch.sub(phi, w, out=work["z"]).mul_(by_phi)
        torch.addcmul(q, q, r, value=-1, out=work["r"])
        torch.mul(r, -2, out=work["q"])

    def backward(self, out, y, phi_s_kept_z, r_q, s, kept, z_r_q) -> None:
        """See :meth:`Stage.backward`."""
        phi_s_kept_z.mul_(y)
        r_q.mul_(torch.mm(self.candidate_back, s, out=out))
        torch.addmm(kept, self.gates_back, z_r_q, out=out)
