"""Gaussian processes in time: their parts, how they are fitted, and what they forecast."""

from deltaflow.forecast.gaussian_process.predictor import (
    CONTEXT,
    GaussianProcessPredictor,
    SquaredNormal,
)
from deltaflow.forecast.gaussian_process.processes import PROCESSES, Curve, predictive

__all__ = [
    "CONTEXT",
    "PROCESSES",
    "Curve",
    "GaussianProcessPredictor",
    "SquaredNormal",
    "predictive",
]
