"""The network inside a flow."""

import pytest
import torch

from deltaflow.flows.time_mlp import TimeMLP


def test_time_enters_by_its_logarithm():
    network = TimeMLP(2, 3, [], activation=torch.tanh).double()
    x = torch.rand(2, dtype=torch.float64)
    decades = 10.0 ** torch.arange(3, 7, dtype=torch.float64).unsqueeze(-1)
    steps = network(decades, x).diff(dim=0)
    expected = network.time_weight * torch.tensor(10.0, dtype=torch.float64).log()
    torch.testing.assert_close(steps, expected.expand(3, 3), atol=1e-3, rtol=1e-3)


def test_a_network_without_inputs_depends_on_time_alone():
    network = TimeMLP(0, 3, [8], activation=torch.tanh)
    assert network(torch.rand(5, 1), torch.empty(5, 0)).shape == (5, 3)


@pytest.mark.parametrize("time", [-2.0, float("nan")])
def test_times_before_zero_are_refused(time):
    network = TimeMLP(2, 3, [], activation=torch.tanh)
    with pytest.raises(ValueError, match="times must be finite"):
        network(torch.tensor([[1.0], [time]]), torch.rand(2, 2))
