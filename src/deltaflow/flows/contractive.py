"""Maps that shrink distances: matrices and networks with a bounded Lipschitz constant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from deltaflow.flows.time_mlp import TimeMLP


def check_coefficient(coefficient: float) -> None:
    """Raise a ``ValueError`` unless ``coefficient`` is above 0 and below 1, as in a contraction."""
    if not 0 < coefficient < 1:
        raise ValueError(f"a contraction needs a coefficient in (0, 1), got {coefficient}")


def spectral_normalise(weight: Tensor, coefficient: float | Tensor) -> Tensor:
    r"""Scale matrices down to a spectral norm of at most ``coefficient``.

    .. math:: W^* = \begin{cases} c \, W / \|W\|_2 & \text{if } \|W\|_2 > c \\
                                  W & \text{otherwise} \end{cases}

    The norm is the exact largest singular value. Power iteration would underestimate it, and leave
    matrices above the bound that the inverse relies on.

    Parameters
    ----------
    weight
        Matrices, :math:`(*, M, N)`.
    coefficient
        The bound :math:`c > 0`, or one bound per matrix, :math:`(*, 1, 1)`.

    References
    ----------
    Behrmann et al., *Invertible Residual Networks*, 2019, arXiv:1811.00995, section 2.1.

    Examples
    --------
    >>> spectral_normalise(torch.tensor([[4.0, 0.0], [0.0, 2.0]]), 0.5)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.2500]])
    """
    # torch has no eigenvalues in half precision, and a square could overflow there.
    exact = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
    wide = weight.shape[-2] < weight.shape[-1]
    gram = exact @ exact.mT if wide else exact.mT @ exact
    # The square of the norm: its derivative needs the eigenvectors on one side only.
    square = torch.linalg.eigvalsh(gram)[..., -1, None, None]
    return (exact * (square / coefficient**2).clamp(min=1.0).rsqrt()).to(weight.dtype)


class ContractiveMLP(TimeMLP):
    r"""A network with :math:`\|g(t, x) - g(t, y)\|_2 \le L \, \|x - y\|_2` for every t.

    The activation is the ELU, which is smooth and 1-Lipschitz. The Lipschitz constant is then at
    most the product of the spectral norms, so each of the :math:`n` matrices is limited to
    :math:`L^{1/n}`. The weights of time are not constrained.

    Parameters
    ----------
    in_dim
        The number of features of :math:`x`.
    out_dim
        The number of output features.
    hidden_dims
        The widths of the hidden layers; may be empty.
    lipschitz
        The bound :math:`L`, in :math:`(0, 1)`.

    Examples
    --------
    >>> network = ContractiveMLP(3, 3, [16], lipschitz=0.9)
    >>> t, x, y = torch.rand(5, 1), torch.rand(5, 3), torch.rand(5, 3)
    >>> distance = (network(t, x) - network(t, y)).norm(dim=-1)
    >>> bool((distance < 0.9 * (x - y).norm(dim=-1)).all())
    True
    """

    def __init__(
        self, in_dim: int, out_dim: int, hidden_dims: Sequence[int], *, lipschitz: float
    ) -> None:
        check_coefficient(lipschitz)
        super().__init__(in_dim, out_dim, hidden_dims, activation=F.elu)
        self.lipschitz = lipschitz

    def matrices(self) -> list[Tensor]:
        """Return the matrices, scaled down to their spectral norm's bound."""
        coefficient = self.lipschitz ** (1 / len(self.weights))
        return [spectral_normalise(weight, coefficient) for weight in self.weights]

    def extra_repr(self) -> str:
        """Return the widths and the bound as text."""
        return f"{super().extra_repr()}, lipschitz={self.lipschitz}"
