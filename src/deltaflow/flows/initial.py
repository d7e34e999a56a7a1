"""Initial weights, drawn in float32 and then converted to torch's default dtype.

A seed thus gives the same weights under every default dtype. It also makes half precision work,
in which torch cannot draw an orthogonal matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def in_default_dtype(drawn: Tensor) -> Tensor:
    """Convert initial weights to torch's default dtype."""
    return drawn.to(torch.get_default_dtype())


def orthogonal(rows: int, columns: int) -> Tensor:
    """Draw a matrix with orthonormal rows or columns, of spectral norm 1."""
    return in_default_dtype(nn.init.orthogonal_(torch.empty(rows, columns, dtype=torch.float32)))


def uniform(*shape: int) -> Tensor:
    """Draw numbers between -1 and 1."""
    return in_default_dtype(torch.empty(shape, dtype=torch.float32).uniform_(-1, 1))


def orthogonal_(weight: Tensor) -> None:
    """Fill a matrix as :func:`orthogonal` does."""
    with torch.no_grad():
        weight.copy_(orthogonal(*weight.shape))
