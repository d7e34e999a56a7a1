"""The contract of a flow: a map of time and state that represents the solution of an ODE."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from deltaflow.errors import DeltaflowError
from deltaflow.flows.time_embedding import check_times

FlowMap: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A map ``(t, x) -> F(t, x)`` whose weights are fixed."""

INITIAL_STEP = 0.1
"""The factor by which the initial step of a new flow is reduced.

A flow starts close to the identity, so that the state keeps its memory across many gaps until the
flow has learned what to forget. Growth, too, would compound from gap to gap.
"""

MAX_JACOBIAN_DIM = 64
"""The largest dimension for which the log-determinant is computed from the full Jacobian."""


class FlowInversionError(DeltaflowError, RuntimeError):
    """The inverse of a flow does not exist, or was not found to the requested accuracy."""


class Flow(nn.Module, ABC):
    r"""A map :math:`F(t, x)` that is the identity at :math:`t = 0` and invertible for every t.

    It replaces an ODE solver: :math:`F(t, x_0)` is the value, after a time :math:`t`, of the
    solution that starts at :math:`x_0`.

    In every method ``t`` is :math:`(*, 1)`, ``x`` is :math:`(*, D)`, and their leading axes
    broadcast: states :math:`(B, 1, D)` are evolved to :math:`Q` times :math:`(B, Q, 1)` in one
    call. Times are finite; they are negative only where the flow is a semigroup.

    A subclass implements :meth:`prepare` and :meth:`inverse`, and promises that

    - ``flow(0, x)`` equals ``x`` bit for bit;
    - values and gradients stay finite up to a million typical gaps;
    - the module contains only parameters, so that it can be copied, pickled, and differentiated any
      number of times.

    The attributes below declare further properties, none of which hold by default.

    Parameters
    ----------
    dim
        The number of features :math:`D` of the state.

    Attributes
    ----------
    semigroup
        Whether :math:`F(t, F(s, x)) = F(s + t, x)` at all times, negative ones included, so that
        :math:`F(-t, \cdot)` is the inverse. The flow then solves an ODE that does not depend on
        time, and a gap may be crossed in any number of steps.
    scannable
        Whether :math:`F(t, x) = A(t) \, x`, with :math:`A(t)` diagonal in a basis that is the same
        at all times. The steps of the recurrence :math:`h \leftarrow F(\Delta t, h) + u` then
        compose associatively, and a parallel scan can read a whole series.
    bound
        The half-width :math:`b` of the cube :math:`[-b, b]^D` on which the flow is defined and
        which it never leaves. Infinite if any vector may be a state.
    closed_inverse
        Whether :meth:`inverse` is in closed form; otherwise it iterates.
    closed_log_det
        Whether :meth:`log_abs_det_jacobian` is in closed form, and cheap in any dimension.

    References
    ----------
    Biloš et al., *Neural Flows: Efficient Alternative to Neural ODEs*, 2021, arXiv:2110.13040,
    section 2.
    """

    semigroup: bool = False
    scannable: bool = False
    bound: float = math.inf
    closed_inverse: bool = False
    closed_log_det: bool = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"a flow needs at least one dimension, got dim={dim}")
        self.dim = dim

    @abstractmethod
    def prepare(self) -> FlowMap:
        """Return the flow as a function of ``(t, x)``, with its constrained weights computed once.

        Whatever depends on the weights alone, such as a spectral norm, is computed here and shared
        by all calls of the returned map. The map belongs to the current autograd graph: prepare it
        once per forward pass, outside the loop over time, and do not keep it for the next pass.
        Unlike :meth:`forward`, the map does not check its inputs.
        """

    @abstractmethod
    def inverse(
        self, t: Tensor, y: Tensor, *, tol: float | None = None, max_iter: int = 1000
    ) -> Tensor:
        r"""Return the :math:`x` for which :math:`F(t, x) = y`, of shape :math:`(*, D)`.

        Parameters
        ----------
        t
            Times, :math:`(*, 1)`.
        y
            States, :math:`(*, D)`.
        tol
            The largest Euclidean error of a row of :math:`x`. By default, the accuracy that the
            dtype of ``y`` allows.
        max_iter
            The largest number of iterations, if the flow iterates.

        Raises
        ------
        FlowInversionError
            If ``tol`` was not reached, or no such :math:`x` exists.
        """

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        r"""Return :math:`F(t, x)`, of shape :math:`(*, D)`."""
        self.check_inputs(t, x)
        return self.prepare()(t, x)

    def vector_field(self, t: Tensor, x: Tensor) -> Tensor:
        r"""Return :math:`\partial F(t, x) / \partial t`, of shape :math:`(*, D)`.

        This is the right-hand side, at :math:`F(t, x)`, of the ODE that the flow solves. It is
        exact: the derivative is taken in forward mode.
        """
        self.check_inputs(t, x)
        step = self.prepare()
        return torch.func.jvp(lambda time: step(time, x), (t,), (torch.ones_like(t),))[1]

    def semigroup_defect(self, s: Tensor, t: Tensor, x: Tensor) -> Tensor:
        r"""Return :math:`F(t, F(s, x)) - F(s + t, x)`, of shape :math:`(*, D)`.

        It is 0, up to rounding, if the flow is a semigroup. For other flows it measures how much
        the result changes if a gap is interrupted, for example by an observation of another
        channel: the flows of Biloš et al. restart their clock at each observation.

        Parameters
        ----------
        s, t
            The times of the two steps, each :math:`(*, 1)`.
        x
            States, :math:`(*, D)`.
        """
        self.check_inputs(s + t, x)
        step = self.prepare()
        return step(t, step(s, x)) - step(s + t, x)

    def log_abs_det_jacobian(self, t: Tensor, x: Tensor) -> Tensor:
        r"""Return :math:`\log |\det \partial F(t, x) / \partial x|`, of shape :math:`(*)`.

        A flow that has no closed form computes the full Jacobian, at a cost of :math:`O(D^3)` per
        row.

        Raises
        ------
        ValueError
            If there is no closed form and :math:`D` exceeds ``MAX_JACOBIAN_DIM``.
        """
        self.check_inputs(t, x)
        if self.dim > MAX_JACOBIAN_DIM:
            raise ValueError(
                f"{type(self).__name__} computes its log-determinant from the full Jacobian, "
                f"which is supported up to dim={MAX_JACOBIAN_DIM}; this flow has dim={self.dim}"
            )
        shape = torch.broadcast_shapes(t.shape[:-1], x.shape[:-1])
        rows = math.prod(shape)
        jacobian = torch.func.vmap(torch.func.jacrev(self.prepare(), argnums=1))(
            t.expand(*shape, 1).reshape(rows, 1),
            x.expand(*shape, self.dim).reshape(rows, self.dim),
        )  # (N, D, D)
        return torch.linalg.slogdet(jacobian).logabsdet.reshape(shape)

    def check_inputs(self, t: Tensor, x: Tensor) -> None:
        """Raise a ``ValueError`` unless this flow is defined at ``t`` and ``x``.

        The error names the shapes that do not match, or a time that is not finite, or one that is
        negative although the flow is not a semigroup. Every public method that takes times and
        states calls this method first.
        """
        for name, tensor, size in (("states", x, self.dim), ("times", t, 1)):
            if tensor.shape[-1:] != (size,):
                raise ValueError(
                    f"{type(self).__name__} expects {name} of shape (..., {size}), "
                    f"got {tuple(tensor.shape)}"
                )
        try:
            torch.broadcast_shapes(t.shape[:-1], x.shape[:-1])
        except RuntimeError as error:
            raise ValueError(
                f"times of shape {tuple(t.shape)} do not broadcast against "
                f"states of shape {tuple(x.shape)}"
            ) from error
        check_times(t, earliest=-math.inf if self.semigroup else 0.0)

    def extra_repr(self) -> str:
        """Return the dimension as text."""
        return f"dim={self.dim}"
