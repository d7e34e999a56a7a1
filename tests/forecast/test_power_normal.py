import math

import numpy as np
import pytest
import torch

from deltaflow.forecast.gaussian_process.power_normal import POWERS, PowerNormal

LEVELS = [0.1, 0.5, 0.9, 0.99]


def variables(power):
    loc, scale = torch.tensor([2.0, 0.3, -0.5]).double(), torch.tensor([0.5, 1.0, 0.7]).double()
    return PowerNormal(loc, scale, torch.full((3,), power).double())


@pytest.mark.parametrize("power", POWERS)
def test_quantiles_mean_and_density_are_those_of_its_samples(power):
    variable = variables(power)
    torch.manual_seed(0)
    drawn = variable.sample(torch.Size((200_000,)))
    np.testing.assert_allclose(variable.mean, drawn.mean(0), rtol=0.02)
    levels = torch.tensor(LEVELS).double()[:, None]
    expected = np.quantile(drawn, LEVELS, axis=0)
    np.testing.assert_allclose(variable.icdf(levels), expected, atol=0.03, rtol=0.02)
    at_zero = variable.log_prob(torch.zeros(1).double()).exp().numpy() if power == 0.5 else 0.0
    grid = torch.linspace(1e-4, 100, 1_000_000).double()[:, None]
    inside = torch.trapezoid(variable.log_prob(grid).exp(), grid[:, 0], dim=0).numpy()
    expected = (drawn > 0).double().mean(0).numpy()
    np.testing.assert_allclose(inside, expected, atol=0.01)
    if power < 1:
        np.testing.assert_allclose(inside + at_zero, 1.0, atol=0.01)


def test_variables_of_several_powers_are_those_of_each():
    loc, scale = torch.ones(3).double(), torch.full((3,), 0.4).double()
    together = PowerNormal(loc, scale, torch.tensor(POWERS).double())
    for number, power in enumerate(POWERS):
        alone = PowerNormal(loc[:1], scale[:1], torch.tensor([power]).double())
        for question in ("mean", "icdf", "log_prob"):
            mine, own = (getattr(one, question) for one in (together, alone))
            if question != "mean":
                mine, own = mine(torch.tensor(0.7).double()), own(torch.tensor(0.7).double())
            torch.testing.assert_close(mine[number], own[0])


def test_forecasts_of_logarithms_stay_finite():
    """However far they go beyond the data."""
    scale = torch.tensor([0.1, 30.0, 1e3]).double()
    far = PowerNormal(torch.tensor([0.0, 50.0, 1e5]).double(), scale, torch.zeros(3))
    levels = torch.tensor([[0.001], [0.999]]).double()
    for answer in (far.mean, far.icdf(levels), far.log_prob(torch.ones(1).double())):
        assert torch.isfinite(answer).all()
    # Of a narrow one, the mean is that of all values.
    assert far.mean[0] == pytest.approx(math.exp(0.1**2 / 2), rel=1e-3)
