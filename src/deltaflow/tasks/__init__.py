"""Named data sets: a shipped sample of real clinical data, and generators of synthetic series."""

from .clinical import VITALS, clinical_sample
from .synthetic import (
    WAVES,
    irregular_sine,
    irregular_wave,
    regular_seasonal,
    sparse_multivariate,
)

__all__ = [
    "VITALS",
    "WAVES",
    "clinical_sample",
    "irregular_sine",
    "irregular_wave",
    "regular_seasonal",
    "sparse_multivariate",
]
