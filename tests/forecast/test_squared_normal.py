import numpy as np
import torch

from deltaflow.forecast.gaussian_process.predictor import SquaredNormal


def test_quantiles_mean_and_density_are_those_of_its_samples():
    loc, scale = torch.tensor([2.0, 0.3, -0.5]).double(), torch.tensor([0.5, 1.0, 1.0]).double()
    squared = SquaredNormal(loc, scale)
    torch.manual_seed(0)
    drawn = squared.sample(torch.Size((200_000,)))
    np.testing.assert_allclose(squared.mean, drawn.mean(0), rtol=0.02)
    levels = torch.tensor([0.1, 0.5, 0.9, 0.99]).double()[:, None]
    expected = np.quantile(drawn, [0.1, 0.5, 0.9, 0.99], axis=0)
    np.testing.assert_allclose(squared.icdf(levels), expected, atol=0.03, rtol=0.02)
    grid = torch.linspace(1e-4, 40, 400_000).double()[:, None]
    inside = torch.trapezoid(squared.log_prob(grid).exp(), grid[:, 0], dim=0)
    at_zero = squared.log_prob(torch.zeros(1).double()).exp()
    np.testing.assert_allclose(inside + at_zero, 1.0, atol=0.01)
    np.testing.assert_allclose(at_zero, (drawn == 0).double().mean(0), atol=0.01)
