"""The inverse of a flow by Banach's fixed point theorem."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deltaflow.flows.flow import FlowInversionError, FlowMap

ROUNDINGS = 32
"""The assumed rounding error of one evaluation of a flow, in units of the state's rounding
error."""


def solve(
    flow: FlowMap,
    t: Tensor,
    y: Tensor,
    *,
    lipschitz: float,
    tol: float | None,
    max_iter: int,
    bound: float = math.inf,
) -> Tensor:
    r"""Solve :math:`F(t, x) = y` for :math:`x \in [-b, b]^D`, row by row.

    If the residual :math:`F(t, x) - x` has a Lipschitz constant :math:`L < 1`, the iteration
    :math:`x_n = P(x_{n-1} + y - F(t, x_{n-1}))` contracts, where :math:`P` projects to the cube,
    and

    .. math:: \|x_n - x\|_2 \le \frac{L}{1 - L} \, \|x_n - x_{n-1}\|_2.

    It stops once the right-hand side is within the tolerance for every row. The inverse magnifies
    an error of :math:`y` by up to :math:`1 / (1 - L)`, so that no method can guarantee more than

    .. math:: \varepsilon \, (1 + \|x\|_2 + \|y\|_2) / (1 - L)

    with the machine epsilon :math:`\varepsilon`. The 1 stands for the activations inside
    :math:`F`, whose rounding errors do not shrink with :math:`x`. The default tolerance is
    ``ROUNDINGS`` times this value.

    The iteration can converge to a point at the edge of the cube that does not solve the equation.
    The equation then has no solution in the cube.

    Parameters
    ----------
    flow
        The map :math:`F`.
    t
        Times, :math:`(*, 1)`.
    y
        Values, :math:`(*, D)`.
    lipschitz
        The bound :math:`L`, valid on the cube.
    tol
        The largest Euclidean error of a row. The default is given above.
    max_iter
        The largest number of iterations.
    bound
        The half-width :math:`b` of the cube.

    Raises
    ------
    FlowInversionError
        If a row did not converge, or has no solution.

    Examples
    --------
    >>> y = torch.tensor([3.0, -1.5])
    >>> solve(
    ...     lambda t, x: x + 0.5 * t * x,
    ...     torch.ones(1),
    ...     y,
    ...     lipschitz=0.5,
    ...     tol=1e-5,
    ...     max_iter=100,
    ... )
    tensor([ 2.0000, -1.0000])
    """

    def tolerance(x: Tensor) -> Tensor:
        if tol is not None:
            return x.new_tensor(tol)
        scale = 1 + torch.linalg.vector_norm(x, dim=-1) + torch.linalg.vector_norm(y, dim=-1)
        return ROUNDINGS * torch.finfo(y.dtype).eps * scale / (1 - lipschitz)

    x, error = y.clamp(-bound, bound), y.new_tensor(math.inf)
    for _ in range(max_iter):
        previous, x = x, (x + (y - flow(t, x))).clamp(-bound, bound)
        error = lipschitz / (1 - lipschitz) * torch.linalg.vector_norm(x - previous, dim=-1)
        if (error <= tolerance(x)).all():
            break
    else:
        missed = ~(error <= tolerance(x))  # unlike ">", this counts NaN
        raise FlowInversionError(
            f"{missed.sum()} of {missed.numel()} rows did not converge within max_iter={max_iter} "
            f"iterations: their error may be as large as {error.max():.1e}, the tolerance is "
            f"{tolerance(x).min():.1e}; raise max_iter or tol"
        )

    # x is within the tolerance of the fixed point, and F at most doubles distances.
    defect = torch.linalg.vector_norm(flow(t, x) - y, dim=-1)
    missed = defect > 2 * tolerance(x)
    if missed.any():
        raise FlowInversionError(
            f"{missed.sum()} of {missed.numel()} rows have no pre-image in "
            f"[{-bound:g}, {bound:g}]: the closest value of the flow is off by up to "
            f"{defect.max():.1e}"
        )
    return x
