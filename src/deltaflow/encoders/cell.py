"""What follows a flow at each step of a recurrence: a limit, and the update by a GRU cell."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaflow.flows.stage import Product, Rows, Stage


class ClampStage(Stage):
    """Hold the state within a limit; beyond it, there is no gradient.

    Parameters
    ----------
    dim
        The size of the state.
    limit
        The largest absolute value.
    """

    def __init__(self, dim: int, limit: float) -> None:
        self.dim = dim
        self.tape = {"x": dim}
        self.kept = "x"
        self.work = {"y": dim, "inside": dim}
        self.products = []
        self.inputs = {}
        self.limit = limit

    def forward_views(self, tape: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """See `Stage.forward_views`."""
        return out, tape["x"]

    def forward(self, out: Tensor, x: Tensor) -> None:
        """See `Stage.forward`."""
        torch.clamp(x, -self.limit, self.limit, out=out)

    def factors(self, tape: Rows, work: Rows) -> None:
        """Mark where the state is within the limit."""
        work["inside"].copy_(tape["x"].abs() <= self.limit)

    def backward_views(self, work: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """See `Stage.backward_views`."""
        return out, work["y"], work["inside"]

    def backward(self, out: Tensor, y: Tensor, inside: Tensor) -> None:
        """See `Stage.backward`."""
        torch.mul(y, inside, out=out)


class GRUCellStage(Stage):
    r"""The update by an observation u, as in `torch.nn.GRU`.

    It is :math:`y = z \odot x + (1 - z) \odot n`, where :math:`n = \tanh(W u + b + r \odot h)` and
    :math:`h = W_h x + b_h`. Its Jacobian is

    .. math:: D_z + D_{(x - n) z (1 - z)} W_z
              + D_{(1 - z) (1 - n^2)} (D_r W_h + D_{h r (1 - r)} W_r).

    All four products are one, of u and x.

    Parameters
    ----------
    hidden
        ``[b, W]`` by which the state enters h, r and z, :math:`(3D, 1 + D)`.
    inputs
        ``[W, b]`` by which the observation enters r, z and n, :math:`(3D, I + 1)`.
    observations
        What is observed at each step, :math:`(T, I, N)`.
    """

    stretches = False

    def __init__(self, hidden: Tensor, inputs: Tensor, observations: Tensor) -> None:
        dim, num_inputs = len(hidden) // 3, observations.shape[1]
        self.dim = dim
        self.tape = {"u": num_inputs, "one": 1, **dict.fromkeys(("x", "h", "r", "z", "n"), dim)}
        self.kept = slice("u", "n")
        self.work = dict.fromkeys(("y", "h", "r", "z", "n", "kept"), dim)
        self.inputs = {"u": observations, "one": torch.ones_like(observations[:, :1])}
        self.products = [
            Product(hidden, of=slice("one", "x"), gradient=slice("h", "z")),
            Product(inputs, of=slice("u", "one"), gradient=slice("r", "n")),
        ]
        hidden, inputs = hidden.detach(), inputs.detach()
        self.hidden_back = hidden[:, 1:].T.contiguous()
        self.weight = hidden.new_zeros(4 * dim, num_inputs + 1 + dim)
        self.weight[: 3 * dim, num_inputs:] += hidden
        self.weight[dim:, : num_inputs + 1] += inputs
        self.weight[3 * dim :] *= 2  # tanh(p) = 2 σ(2p) - 1
        self.minus_one = hidden.new_tensor(-1.0)

    def forward_views(self, tape: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """See `Stage.forward_views`."""
        rows = (tape[name] for name in ("x", "h", "r", "z", "n"))
        return out, tape["u":"x"], tape["h":"n"], tape["r":"z"], *rows

    def forward(
        self,
        out: Tensor,
        u_x: Tensor,
        gates: Tensor,
        rz: Tensor,
        x: Tensor,
        h: Tensor,
        r: Tensor,
        z: Tensor,
        n: Tensor,
    ) -> None:
        """See `Stage.forward`."""
        torch.mm(self.weight, u_x, out=gates)
        rz.sigmoid_()
        n.addcmul_(r, h, value=2).sigmoid_()
        torch.add(self.minus_one, n, alpha=2, out=n)
        torch.lerp(n, x, z, out=out)

    def factors(self, tape: Rows, work: Rows) -> None:
        """Fill in the diagonals of the Jacobian."""
        x, h, r, z, n = (tape[name] for name in ("x", "h", "r", "z", "n"))
        rest = 1 - z
        by_n = torch.addcmul(rest, rest * n, n, value=-1, out=work["n"])
        by_h = torch.mul(by_n, r, out=work["h"])
        torch.addcmul(by_h, by_h, r, value=-1, out=work["r"]).mul_(h)
        torch.mul((x - n) * z, rest, out=work["z"])
        work["kept"].copy_(z)

    def backward_views(self, work: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """See `Stage.backward_views`."""
        return out, work["y"], work.stacked("h", "kept"), work["h":"z"], work["kept"]

    def backward(self, out: Tensor, y: Tensor, gates: Tensor, hrz: Tensor, kept: Tensor) -> None:
        """See `Stage.backward`."""
        gates.mul_(y)
        torch.addmm(kept, self.hidden_back, hrz, out=out)
