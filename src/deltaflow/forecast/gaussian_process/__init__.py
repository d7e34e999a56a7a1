"""Gaussian processes in time: their parts, how they are fitted, and what they forecast."""
