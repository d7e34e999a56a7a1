"""The stages that follow the flow at each observation: a clamp, and the update by a GRU cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltaflow.encoders.fused.stage import NamedRows, Product, Stage, for_shares


class ClampStage(Stage):
    """Clamp the state to a limit. The gradient beyond the limit is 0.

    Parameters
    ----------
    dim
        The size of the state.
    limit
        The largest absolute value of a state h. Its share lies within ``limit / 2`` of 1/2.
    """

    forward_views = ("x",)
    backward_views = "y", "inside"

    def __init__(self, dim: int, limit: float) -> None:
        self.dim = dim
        self.tape = {"x": dim}
        self.kept = "x"
        self.work = {"y": dim, "inside": dim}
        self.products = []
        self.inputs = {}
        self.lowest, self.highest = (1 - limit) / 2, (1 + limit) / 2

    def forward(self, out: Tensor, x: Tensor) -> None:
        """See `Stage.forward`."""
        torch.clamp(x, self.lowest, self.highest, out=out)

    def factors(self, tape: NamedRows, work: NamedRows) -> None:
        """Mark where the state is within the limit."""
        work["inside"].copy_((tape["x"] >= self.lowest) & (tape["x"] <= self.highest))

    def backward(self, out: Tensor, y: Tensor, inside: Tensor) -> None:
        """See `Stage.backward`."""
        torch.mul(y, inside, out=out)


class GRUCellStage(Stage):
    r"""The update by an observation u, as in `torch.nn.GRU`.

    It is :math:`y = z \odot x + (1 - z) \odot n`, where :math:`n = \sigma(W u + r \odot h)` and
    :math:`h = W_h x + b_h`. Like x, n is a share: that of the candidate. The Jacobian is

    .. math:: D_z + D_{(x - n) z (1 - z)} W_z
              + D_{(1 - z) n (1 - n)} (D_r W_h + D_{h r (1 - r)} W_r).

    Parameters
    ----------
    of_u, of_x
        The matrices from u to h, r, z and n, and from x to h, r and z; see `cell_matrices`.
    observations
        The observations at each step, followed by a row of ones, :math:`(T, I + 1, N)`.
    """

    forward_views = slice("u", "x"), slice("h", "n"), slice("r", "z"), "x", "h", "r", "z", "n"
    backward_views = "y", ("h", "kept"), slice("h", "z"), "kept"

    def __init__(self, of_u: Tensor, of_x: Tensor, observations: Tensor) -> None:
        dim = self.dim = of_x.shape[1]
        self.tape = {"u": observations.shape[1], **dict.fromkeys(("x", "h", "r", "z", "n"), dim)}
        self.kept = slice("x", "n")
        self.work = dict.fromkeys(("y", "h", "r", "z", "n", "kept"), dim)
        self.inputs = {"u": observations}
        self.products = [
            Product(of_u, of="u", gradient=slice("h", "n")),
            Product(of_x, of="x", gradient=slice("h", "z")),
        ]
        # A quarter of this matrix is zero, but a single product saves calls in the forward pass.
        self.weight = torch.cat([of_u.detach(), F.pad(of_x.detach(), (0, 0, 0, dim))], -1)
        self.weight_back = of_x.detach().T.contiguous()  # to x, from h, r and z

    def forward(self, out, u_x, gates, rz, x, h, r, z, n) -> None:
        """See `Stage.forward`."""
        torch.mm(self.weight, u_x, out=gates)
        rz.sigmoid_()
        n.addcmul_(r, h).sigmoid_()
        torch.lerp(n, x, z, out=out)

    def factors(self, tape: NamedRows, work: NamedRows) -> None:
        """Fill in the diagonals of the Jacobian."""
        x, h, r, z, n = (tape[name] for name in ("x", "h", "r", "z", "n"))
        rest = 1 - z
        by_n = torch.mul(rest, n, out=work["n"])
        by_n.addcmul_(by_n, n, value=-1)
        by_h = torch.mul(by_n, r, out=work["h"])
        torch.addcmul(by_h, by_h, r, value=-1, out=work["r"]).mul_(h)
        torch.mul((x - n) * z, rest, out=work["z"])
        work["kept"].copy_(z)

    def backward(self, out, y, gates, hrz, kept) -> None:
        """See `Stage.backward`."""
        gates.mul_(y)
        torch.addmm(kept, self.weight_back, hrz, out=out)


def cell_matrices(inputs: nn.Linear, hidden: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return the matrices of a `GRUCellStage`, of shapes ``(4 H, I + 1)`` and ``(3 H, H)``.

    Parameters
    ----------
    inputs, hidden
        The maps ``(I,) -> (3 H,)`` and ``(H,) -> (3 H,)`` from observation and state to r, z
        and n.
    """
    size, given = hidden.in_features, inputs.in_features
    weight, bias = for_shares(hidden.weight, hidden.bias)
    of_u = torch.cat([inputs.weight, inputs.bias.unsqueeze(-1)], -1)
    # In the stage, h, the hidden part of n, comes first.
    of_u = F.pad(of_u, (0, 0, size, 0)) + F.pad(bias.roll(size).unsqueeze(-1), (given, 0, 0, size))
    # The input of n is doubled, because tanh(p) = 2 σ(2p) - 1.
    doubled = bias.new_ones(4, 1, 1)
    doubled[::3] = 2
    of_u = (of_u.unflatten(0, (4, size)) * doubled).flatten(0, 1)
    return of_u, (weight.roll(size, 0).unflatten(0, (3, size)) * doubled[:3]).flatten(0, 1)
