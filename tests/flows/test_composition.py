"""Stacks of different flows, and the particulars of the coupling flow."""

import math

import pytest
import torch

from deltaflow.flows import CouplingFlow, Flow, FlowStack, GRUFlow, LinearFlow, ResNetFlow


def test_different_flows_make_a_flow():
    first, second = ResNetFlow(3).double(), CouplingFlow(3).double()
    stack = FlowStack([first, second])
    t, x = torch.rand(5, 1, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    assert torch.equal(stack(t, x), second(t, first(t, x)))
    torch.testing.assert_close(stack.inverse(t, stack(t, x)), x, atol=1e-11, rtol=0)
    assert list(stack) == [first, second]
    assert len(stack) == 2


def test_a_stack_claims_what_its_flows_claim():
    gru, coupling = GRUFlow(3, num_layers=2), CouplingFlow(3)
    assert gru.bound == 1.0
    assert coupling.closed_inverse
    assert coupling.closed_log_det
    assert FlowStack([gru, gru]).bound == 1.0
    mixed = FlowStack([gru, coupling])
    assert mixed.bound == math.inf
    assert not mixed.closed_inverse
    assert not mixed.closed_log_det


class Shear(Flow):
    """The solution of da/dt = b, or of db/dt = a: semigroups that do not commute."""

    semigroup = scannable = True

    def __init__(self, moved: int) -> None:
        super().__init__(2)
        self.moved = moved

    def prepare(self):
        direction = torch.eye(2, dtype=torch.float64)[self.moved]
        return lambda t, x: x + t * x[..., 1 - self.moved, None] * direction

    def inverse(self, t, y, *, tol=None, max_iter=1000):
        return self.prepare()(-t, y)


class DampedSpring(LinearFlow):
    """A linear flow with a formula of its own, whose basis nobody knows."""

    def prepare(self):
        step, turn = super().prepare(), torch.tensor([[0.8, 0.6], [-0.6, 0.8]]).double()
        return lambda t, x: step(t, x @ turn) @ turn.T


def test_a_stack_of_linear_flows_is_a_semigroup():
    stack = FlowStack([LinearFlow(2), LinearFlow(2, span=5.0)])
    assert stack.semigroup
    assert stack.scannable
    assert not FlowStack([LinearFlow(2), DampedSpring(2)]).semigroup
    assert not FlowStack([LinearFlow(2), ResNetFlow(2)]).scannable


def test_a_stack_of_semigroups_is_none_unless_they_commute():
    t, x = torch.ones(1, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    alone, both = FlowStack([Shear(0)]), FlowStack([Shear(0), Shear(1)])
    assert alone.semigroup
    assert alone.scannable
    torch.testing.assert_close(alone(-t, alone(t, x)), x)
    assert both.semigroup_defect(t, t, x).abs().max() > 0.1
    assert not both.semigroup
    assert not both.scannable


def test_flows_of_different_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"2 flows of dimensions \[2, 3\]"):
        FlowStack([GRUFlow(3), GRUFlow(2)])


def test_an_empty_stack_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        FlowStack([])


def test_coupling_scale_stays_below_its_limit():
    """After a long time each of 3 layers scales by e^0.5 or e^-0.5."""
    flow = CouplingFlow(1, num_layers=3, max_log_scale=0.5, time_embedding="linear").double()
    t = torch.full((1,), 1e6, dtype=torch.float64)
    log_det = flow.log_abs_det_jacobian(t, torch.rand(16, 1, dtype=torch.float64)).abs()
    nearest = torch.where(log_det < 1, 0.5, 1.5).double()
    torch.testing.assert_close(log_det, nearest)


def test_one_dimensional_coupling_depends_on_time_alone():
    flow = CouplingFlow(1).double()
    t, x = torch.ones(1, dtype=torch.float64), torch.rand(9, 1, dtype=torch.float64)
    slope = (flow(t, x)[1:] - flow(t, x)[:-1]) / (x[1:] - x[:-1])
    torch.testing.assert_close(slope, slope[:1].expand_as(slope))


@pytest.mark.parametrize("options", [{"max_log_scale": 0.0}, {"hidden_dims": ()}], ids=str)
def test_unbounded_coupling_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CouplingFlow(4, **options)
