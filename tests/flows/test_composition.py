"""Stacks of different flows, and the particulars of the coupling flow."""

import math

import pytest
import torch

from deltaflow.flows import CouplingFlow, FlowStack, GRUFlow, ResNetFlow


def test_different_flows_make_a_flow():
    first, second = ResNetFlow(3).double(), CouplingFlow(3).double()
    stack = FlowStack([first, second])
    t, x = torch.rand(5, 1, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    assert torch.equal(stack(t, x), second(t, first(t, x)))
    torch.testing.assert_close(stack.inverse(t, stack(t, x)), x, atol=1e-11, rtol=0)
    assert list(stack) == [first, second]
    assert len(stack) == 2


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


def test_coupling_inverse_needs_no_iterations():
    flow = CouplingFlow(4).double()
    t, x = torch.rand(5, 1, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64)
    y = flow(t, x)
    assert torch.equal(flow.inverse(t, y, max_iter=0, tol=math.inf), flow.inverse(t, y))


def test_one_dimensional_coupling_depends_on_time_alone():
    flow = CouplingFlow(1).double()
    t, x = torch.ones(1, dtype=torch.float64), torch.rand(9, 1, dtype=torch.float64)
    slope = (flow(t, x)[1:] - flow(t, x)[:-1]) / (x[1:] - x[:-1])
    torch.testing.assert_close(slope, slope[:1].expand_as(slope))


@pytest.mark.parametrize("options", [{"max_log_scale": 0.0}, {"hidden_dims": ()}], ids=str)
def test_unbounded_coupling_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CouplingFlow(4, **options)
