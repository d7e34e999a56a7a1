"""The GRU flow: a gated step towards a candidate state, made invertible."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltaflow.flows.compose import FlowStack
from deltaflow.flows.contractive import check_coefficient, spectral_normalise
from deltaflow.flows.fixed_point import solve
from deltaflow.flows.flow import INITIAL_STEP, Flow, FlowMap
from deltaflow.flows.initial import orthogonal, uniform
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
    :math:`\|W\|_2 \le \lambda < 1`. The step is a convex combination of :math:`h` and :math:`c`, so
    it stays in the cube. Its image is only a part of the cube.

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
        with torch.no_grad():  # otherwise the sigmoid in z would start at 1/2
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

        which is 1 for :math:`\lambda = 1`, and less for a smaller :math:`\lambda`.
        """
        norm = self.coefficient
        return ALPHA * norm / 2 + ALPHA * (1 + norm * BETA * (1 + norm / 4))

    def prepare(self) -> FlowMap:
        """Normalise the three gates in one call, and return the step."""
        weight = spectral_normalise(self.weight, self.coefficient)
        # z and r share one product (2 D, D). W_c (beta r h) = (beta W_c) (r h) saves another.
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

    def inverse(
        self, t: Tensor, y: Tensor, *, tol: float | None = None, max_iter: int = 1000
    ) -> Tensor:
        """Iterate to the fixed point, see :func:`~deltaflow.flows.fixed_point.solve`.

        Iterates are projected to the cube, because the residual need not contract outside it.

        Raises
        ------
        FlowInversionError
            If ``tol`` was not reached, or ``y`` is not the value of any state in the cube.
        """
        self.check_inputs(t, y)
        limits = {"lipschitz": self.lipschitz_bound, "bound": self.bound}
        return solve(self.prepare(), t, y, tol=tol, max_iter=max_iter, **limits)

    def extra_repr(self) -> str:
        """Return the dimension and the bound as text."""
        return f"{super().extra_repr()}, coefficient={self.coefficient}"


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
