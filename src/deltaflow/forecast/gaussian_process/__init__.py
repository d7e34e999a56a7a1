"""Gaussian processes in time: kernels, fitting and forecasts."""
