"""A layer of a flow inside a recurrence: its derivative by hand, its work laid out for speed.

A recurrence of small steps spends most of its time around its arithmetic: on the autograd graph, on
calls, on memory. So a flow may offer its layers as stages, next to :meth:`Flow.prepare`, and the
recurrence runs them forward and backward with nothing recorded per step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Span: TypeAlias = "str | slice"
"""The name of some rows, or a slice ``first:last`` of names, both included."""


class Rows:
    """A tensor (K, R, N), for K steps and N series, whose rows have names.

    Parameters
    ----------
    data
        The tensor.
    sizes
        The number of rows of each name, in order.

    Examples
    --------
    >>> rows = Rows(torch.arange(6.0).reshape(1, 3, 2), {"x": 2, "one": 1})
    >>> rows["one"]
    tensor([[[4., 5.]]])
    >>> rows["x":"one"].shape
    torch.Size([1, 3, 2])
    """

    def __init__(self, data: Tensor, sizes: Mapping[str, int]) -> None:
        self.data = data
        self.sizes = sizes
        self.parts = dict(zip(sizes, data.split(list(sizes.values()), 1), strict=True))

    def steps(self, start: int, stop: int) -> Rows:
        """Return the rows of some of the steps."""
        whole = stop - start == len(self.data)
        return self if whole else Rows(self.data[start:stop], self.sizes)

    def __getitem__(self, span: Span) -> Tensor:
        if isinstance(span, str):
            return self.parts[span]
        start, stop = rows_of(span, self.sizes)
        return self.data[:, start:stop]

    def stacked(self, first: str, last: str) -> Tensor:
        """Return rows of one size side by side, :math:`(K, names, size, N)`."""
        return self[first:last].unflatten(1, (-1, self.sizes[first]))


def rows_of(span: Span, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Return where the rows of a span begin and end.

    >>> rows_of("one", {"x": 2, "one": 1})
    (2, 3)
    """
    first, last = (span, span) if isinstance(span, str) else (span.start, span.stop)
    stops = dict(zip(sizes, accumulate(sizes.values()), strict=True))
    return stops[first] - sizes[first], stops[last]


def names_of(span: Span, sizes: Mapping[str, int]) -> list[str]:
    """Return the names in a span.

    >>> names_of(slice("x", "one"), {"x": 2, "one": 1, "y": 2})
    ['x', 'one']
    """
    names = list(sizes)
    first, last = (span, span) if isinstance(span, str) else (span.start, span.stop)
    return names[names.index(first) : names.index(last) + 1]


class Product(NamedTuple):
    """A matrix product of a stage.

    Attributes
    ----------
    weight
        The matrix, :math:`(M, R)`.
    of
        The R rows of the tape that it multiplies.
    gradient
        The M rows of the work that hold the gradient of the product.
    """

    weight: Tensor
    of: Span
    gradient: Span


class Stage(ABC):
    r"""One map of the state :math:`x \mapsto y` at all steps of a recurrence.

    A state h stands here as :math:`x = (1 + h) / 2`: by :math:`\tanh(p) = 2 \sigma(2p) - 1`, a
    state that is a tanh is then a sigmoid, which is the faster function, and nothing else. What a
    matrix makes of h, it makes of x by the weights of :func:`of_shares`.

    States are columns, :math:`(D, N)`, so that the gates of one product are blocks of memory. The
    recurrence lends every stage the rows of a few steps, and calls nothing per step but
    :meth:`forward` and :meth:`backward`, which work in place on views made beforehand. Whatever
    can be done for several steps at once is left to the other methods.

    Attributes
    ----------
    dim
        The size D of the state.
    tape, kept
        Rows of the forward pass, and those of them that are kept for the backward pass. It has the
        inputs too, kept or not.
    work
        Rows of the backward pass.
    state, gradient
        The rows of the tape that hold x, and the rows of the work that hold the gradient of y.
    products
        All matrix products.
    inputs
        What the stage reads beside the state: rows of the tape at all steps, :math:`(T, R, N)`.
    input_gradients
        The rows of the work that hold the gradients of inputs, apart from what they owe to
        products.
    stretches
        Whether states :math:`h \in [-1, 1]^D` may leave that cube.
    """

    dim: int
    tape: dict[str, int]
    kept: Span
    work: dict[str, int]
    state: Span = "x"
    gradient: Span = "y"
    products: list[Product]
    inputs: dict[str, Tensor]
    input_gradients: Mapping[str, Span] = {}
    stretches = True

    def tensors(self) -> list[Tensor]:
        """Return what the stage is differentiated by."""
        return [*(product.weight for product in self.products), *self.inputs.values()]

    @abstractmethod
    def forward_views(self, tape: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """Return what :meth:`forward` works on, with the steps as first axis; y goes to ``out``."""

    @abstractmethod
    def forward(self, *views: Tensor) -> None:
        """Compute y at one step."""

    @abstractmethod
    def factors(self, tape: Rows, work: Rows) -> None:
        """Fill the work with what :meth:`backward` multiplies by gradients."""

    @abstractmethod
    def backward_views(self, work: Rows, out: Tensor) -> tuple[Tensor, ...]:
        """Return what :meth:`backward` works on; the gradient of x goes to ``out``."""

    @abstractmethod
    def backward(self, *views: Tensor) -> None:
        """Compute the gradients of x, of the products and of the inputs at one step."""


def clock_of(t: Tensor) -> Tensor:
    """Return ``log(1 + t)`` and 1, the rows by which time and a bias enter a product.

    >>> clock_of(torch.zeros(1, 1, 2))
    tensor([[[0., 0.],
             [1., 1.]]])
    """
    return torch.cat([t.log1p(), torch.ones_like(t)], dim=1)


def of_shares(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the weights by which :math:`W h + b` is read from :math:`x = (1 + h) / 2`.

    Parameters
    ----------
    weight
        The matrix W, :math:`(*, M, D)`.
    bias
        The vector b, :math:`(*, M)`.

    Examples
    --------
    >>> of_shares(torch.tensor([[1.0, 3.0]]), torch.tensor([5.0]))
    (tensor([[2., 6.]]), tensor([1.]))
    """
    return 2 * weight, bias - weight.sum(-1)
