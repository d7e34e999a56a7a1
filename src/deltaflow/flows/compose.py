"""A stack of flows: their composition, which is also a flow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from deltaflow.flows.flow import Flow, FlowMap
from deltaflow.flows.linear import LinearFlow


class FlowStack(Flow):
    r"""The composition :math:`F(t, x) = F_n(t, \dots F_2(t, F_1(t, x)))`.

    Every flow evolves the state over the same time :math:`t`, so the composition is the identity at
    :math:`t = 0`. Its inverse applies the inverses of the flows in reverse order. It is a semigroup
    if it consists of a single semigroup, or of linear flows only.

    Parameters
    ----------
    flows
        Flows of the same dimension, in the order in which they are applied.

    Examples
    --------
    >>> from deltaflow.flows import CouplingFlow, ResNetFlow
    >>> flow = FlowStack([ResNetFlow(3), CouplingFlow(3)])
    >>> flow(torch.rand(5, 1), torch.rand(5, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(self, flows: Iterable[Flow]) -> None:
        flows = list(flows)
        dims = {flow.dim for flow in flows}
        if len(dims) != 1:
            raise ValueError(
                "a stack needs at least one flow, and all flows must have the same dimension; "
                f"got {len(flows)} flows of dimensions {sorted(dims)}"
            )
        super().__init__(dims.pop())
        self.flows = nn.ModuleList(flows)
        # A composition of semigroups is one only if they commute. Linear flows do, because they
        # are diagonal in the same basis.
        commute = len(flows) == 1 or all(type(flow) is LinearFlow for flow in flows)
        self.semigroup = commute and all(flow.semigroup for flow in flows)
        self.scannable = commute and all(flow.scannable for flow in flows)
        bounds = {flow.bound for flow in flows}
        self.bound = bounds.pop() if len(bounds) == 1 else math.inf
        self.closed_inverse = all(flow.closed_inverse for flow in flows)
        self.closed_log_det = all(flow.closed_log_det for flow in flows)

    def __iter__(self) -> Iterator[Flow]:
        return iter(cast("Iterable[Flow]", self.flows))

    def __len__(self) -> int:
        return len(self.flows)

    def prepare(self) -> FlowMap:
        """Prepare every flow, and return their composition."""
        steps = [flow.prepare() for flow in self]

        def stacked(t: Tensor, x: Tensor) -> Tensor:
            for step in steps:
                x = step(t, x)
            return x

        return stacked

    def inverse(
        self, t: Tensor, y: Tensor, *, tol: float | None = None, max_iter: int = 1000
    ) -> Tensor:
        """Invert the flows, the last one first. ``tol`` and ``max_iter`` apply to each of them."""
        self.check_inputs(t, y)
        for flow in reversed(list(self)):
            y = flow.inverse(t, y, tol=tol, max_iter=max_iter)
        return y

    def log_abs_det_jacobian(self, t: Tensor, x: Tensor) -> Tensor:
        """Sum the log-determinants of the flows along the path of ``x``."""
        self.check_inputs(t, x)
        total = torch.zeros(())
        for flow in self:
            total = total + flow.log_abs_det_jacobian(t, x)
            x = flow(t, x)
        return total
