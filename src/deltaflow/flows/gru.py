"""The GRU flow: a gated step towards a candidate state, made invertible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltaflow.flows.compose import FlowStack
from deltaflow.flows.contractive import check_coefficient, spectral_normalise
from deltaflow.flows.fixed_point import solve
from deltaflow.flows.flow import INITIAL_STEP, Flow, FlowMap
from deltaflow.flows.initial import orthogonal, uniform
from deltaflow.flows.stage import Product, Rows, Stage, of_shares
from deltaflow.flows.time_embedding import BOUNDED_TIME_EMBEDDINGS, make_time_embedding

# Theorem 1 of Biloš et al.: with these bounds on the gates, the residual contracts.
ALPHA = 2 / 5
BETA = 4 / 5


class GRULayer(Flow):
    r"""One gated step towards a candidate :math:`c`, for states in :math:`[-1, 1]^D`.

    .. math::
        F(t, h) &= h + \varphi(t) \odot z(t, h) \odot (c(t, r \odot h) - h) \\
        z &= \alpha \, \sigma(W_z h + w_z \log(1 + t) + b_z) \\
        r &= \beta \, \sigma(W_r h + w_r \log(1 + t) + b_r) \\
        c &= \tanh(W_c (r \odot h) + w_c \log(1 + t) + b_c)

    with :math:`\alpha = 2/5`, :math:`\beta = 4/5`, :math:`0 \le \varphi \le 1` and spectral norms
    :math:`\|W\|_2 \le \lambda < 1`. Being a convex step, :math:`F` keeps :math:`h` in the cube. Its
    image is a part of the cube only.

    Parameters
    ----------
    dim
        The number of features of the state.
    time_embedding
        The name of :math:`\varphi` in ``BOUNDED_TIME_EMBEDDINGS``.
    coefficient
        The bound :math:`\lambda` on the spectral norms, in :math:`(0, 1)`.

    References
    ----------
    Biloš et al., 2021, arXiv:2110.13040, section 3.2 and theorem 1; De Brouwer et al.,
    *GRU-ODE-Bayes*, 2019, arXiv:1905.12374.
    """

    bound = 1.0

    def __init__(
        self, dim: int, *, time_embedding: str = "tanh", coefficient: float = 0.95
    ) -> None:
        check_coefficient(coefficient)
        super().__init__(dim)
        self.coefficient = coefficient
        gates = [orthogonal(dim, dim) for _ in range(3)]
        self.weight = nn.Parameter(torch.stack(gates))  # (3, D, D): z, r, c
        self.bias = nn.Parameter(torch.zeros(3, dim))
        with torch.no_grad():  # sigmoid(0) = 1/2 is what z would begin with
            self.bias[0] = math.log(INITIAL_STEP / (2 - INITIAL_STEP))
        self.time_weight = nn.Parameter(uniform(3, dim))
        self.phi = make_time_embedding(time_embedding, dim, BOUNDED_TIME_EMBEDDINGS)

    @property
    def lipschitz_bound(self) -> float:
        r"""A bound on the Lipschitz constant of the residual, for all weights and times.

        On the cube the residual :math:`\varphi \odot z \odot (c - h)` has the Jacobian

        .. math:: D_\varphi \left[ D_{c - h} \, D_{\alpha \sigma'} W_z
                  + D_z \left( D_{\tanh'} W_c (D_r + D_h D_{\beta \sigma'} W_r) - I \right) \right]

        where :math:`D_v` is the diagonal matrix of :math:`v`, whose spectral norm is
        :math:`\max |v|`. By :math:`\varphi, |h|, |c|, \tanh' \le 1`, :math:`\sigma' \le 1/4`,
        :math:`z \le \alpha` and :math:`r \le \beta`, its norm is at most

        .. math:: 2 \cdot \frac{\alpha \lambda}{4}
                  + \alpha \left( 1 + \lambda \beta \left( 1 + \frac{\lambda}{4} \right) \right),

        which is 1 at :math:`\lambda = 1`, and below it before.
        """
        norm = self.coefficient
        return ALPHA * norm / 2 + ALPHA * (1 + norm * BETA * (1 + norm / 4))

    def prepare(self) -> FlowMap:
        """Normalise the three gates in one call, and return the step."""
        weight = spectral_normalise(self.weight, self.coefficient)
        # z and r in one product (2 D, D); beta rides on W_c, as W_c (beta r h) = (beta W_c) (r h).
        weight_zr, bias_zr, time_zr = (
            p[:2].flatten(0, 1) for p in (weight, self.bias, self.time_weight)
        )
        weight_c, bias_c, time_c = BETA * weight[2], self.bias[2], self.time_weight[2]
        phi = self.phi.prepare()

        def step(t: Tensor, h: Tensor) -> Tensor:
            log_t = t.log1p()
            zr = torch.addcmul(F.linear(h, weight_zr, bias_zr), time_zr, log_t)
            z, r = torch.sigmoid(zr).chunk(2, -1)
            c = torch.tanh(torch.addcmul(F.linear(r * h, weight_c, bias_c), time_c, log_t))
            return torch.lerp(h, c, ALPHA * phi(t) * z)

        return step

    def stages(self, t: Tensor, clock: Tensor) -> list[Stage]:
        """Normalise the three gates in one call, and return the step as a stage."""
        return _stages([self], t, clock)

    def inverse(
        self, t: Tensor, y: Tensor, *, tol: float | None = None, max_iter: int = 1000
    ) -> Tensor:
        """Iterate to the fixed point, see :func:`~deltaflow.flows.fixed_point.solve`.

        Iterates are projected to the cube, outside of which the residual need not contract.

        Raises
        ------
        FlowInversionError
            If ``tol`` was not reached, or ``y`` is not the value of any state in the cube.
        """
        self.check_inputs(t, y)
        return solve(
            self.prepare(),
            t,
            y,
            lipschitz=self.lipschitz_bound,
            tol=tol,
            max_iter=max_iter,
            bound=self.bound,
        )

    def extra_repr(self) -> str:
        """Name the dimension and the bound."""
        return f"{super().extra_repr()}, coefficient={self.coefficient}"


def _stages(layers: Sequence[GRULayer], t: Tensor, clock: Tensor) -> list[Stage]:
    """Return the stages of layers of one coefficient, all gates normalised in one call."""
    weight = torch.stack([layer.weight for layer in layers])  # (L, 3, D, D)
    bias = torch.stack([layer.bias for layer in layers])
    time_weight = torch.stack([layer.time_weight for layer in layers])
    weight = spectral_normalise(weight, layers[0].coefficient)
    weight_zr, bias_zr = of_shares(weight[:, :2], bias[:, :2])
    of_clock = torch.stack([time_weight[:, :2], bias_zr], -1)  # (L, 2, D, 2)
    gates = torch.cat([of_clock, weight_zr], -1).flatten(1, 2)
    of_clock = torch.stack([time_weight[:, 2], bias[:, 2]], -1)  # (L, D, 2)
    candidates = 2 * torch.cat([-BETA * weight[:, 2], of_clock], -1)
    return [
        GRUStage(of_gates, of_candidate, clock, layer.phi.columns(t, ALPHA))
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
        ``[w, b, W]`` of z and r, by which they read x, and ``[W, w, b]`` of s.
    clock, phi
        The rows of the clock, and :math:`\alpha \varphi` in columns.
    """

    stretches = False

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

    @cached_property
    def gates_back(self) -> Tensor:
        """The matrix by which the gradients of z, r and q give that of x."""
        identity = torch.eye(self.dim, dtype=self.gates.dtype, device=self.gates.device)
        return torch.cat([self.gates[:, 2:].T, identity], 1)

    @cached_property
    def candidate_back(self) -> Tensor:
        """The matrix by which the gradient of s gives that of q."""
        return self.candidate[:, : self.dim].T.contiguous()

    def forward_views(self, tape: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Stage.forward_views`."""
        rows = (tape[name] for name in ("x", "phi", "q", "z", "r", "s"))
        return out, tape["clock":"x"], tape["q":"clock"], tape["z":"r"], *rows

    def forward(self, out, clock_x, q_clock, zr, x, phi, q, z, r, s) -> None:
        """See :meth:`Stage.forward`."""
        torch.mm(self.gates, clock_x, out=zr).sigmoid_()
        torch.addcmul(r, r, x, value=-2, out=q)
        torch.mm(self.candidate, q_clock, out=s).sigmoid_()
        torch.lerp(x, s, phi.mul_(z), out=out)

    def factors(self, tape: Rows, work: Rows) -> None:
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

    def backward_views(self, work: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Stage.backward_views`."""
        outer, inner = work.stacked("phi", "z"), work.stacked("r", "q")
        return out, work["y"], outer, inner, work["s"], work["kept"], work["z":"q"]

    def backward(self, out, y, phi_s_kept_z, r_q, s, kept, z_r_q) -> None:
        """See :meth:`Stage.backward`."""
        phi_s_kept_z.mul_(y)
        r_q.mul_(torch.mm(self.candidate_back, s, out=out))
        torch.addmm(kept, self.gates_back, z_r_q, out=out)


class GRUFlow(FlowStack):
    r"""A stack of gated steps on states in :math:`[-1, 1]^D`, see :class:`GRULayer`.

    Parameters
    ----------
    dim
        The number of features of the state.
    num_layers
        The number of steps.
    time_embedding, coefficient
        As in :class:`GRULayer`.

    Examples
    --------
    >>> flow = GRUFlow(3, num_layers=2)
    >>> t, h = torch.rand(5, 1), torch.rand(5, 3)
    >>> torch.allclose(flow.inverse(t, flow(t, h)), h, atol=1e-4)
    True
    """

    def __init__(
        self,
        dim: int,
        *,
        num_layers: int = 2,
        time_embedding: str = "tanh",
        coefficient: float = 0.95,
    ) -> None:
        super().__init__(
            GRULayer(dim, time_embedding=time_embedding, coefficient=coefficient)
            for _ in range(num_layers)
        )

    def stages(self, t: Tensor, clock: Tensor) -> list[Stage]:
        """Normalise the gates of all layers in one call, and return their steps as stages."""
        return _stages(cast("list[GRULayer]", [*self]), t, clock)
