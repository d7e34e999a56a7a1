"""The contract of a stage: one map of the fused recurrence, with a hand-written derivative."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from torch import Tensor

Span: TypeAlias = "str | slice"
"""The name of some rows, or a slice ``first:last`` of names, which includes both ends."""

View: TypeAlias = "Span | tuple[str, str]"
"""A span; or the first and last name of equally sized rows, which get a separate axis."""


class NamedRows:
    """A tensor (K, R, N), for K steps and N series, whose rows have names.

    Parameters
    ----------
    data
        The tensor.
    sizes
        The number of rows of each name, in order.

    Examples
    --------
    >>> import torch
    >>> rows = NamedRows(torch.arange(6.0).reshape(1, 3, 2), {"x": 2, "one": 1})
    >>> rows["one"]
    tensor([[[4., 5.]]])
    >>> rows["x":"one"].shape
    torch.Size([1, 3, 2])
    """

    def __init__(self, data: Tensor, sizes: Mapping[str, int]) -> None:
        self.data = data
        self.sizes = sizes
        self.parts = dict(zip(sizes, data.split(list(sizes.values()), 1), strict=True))

    def steps(self, start: int, stop: int) -> NamedRows:
        """Return the rows of some of the steps."""
        whole = stop - start == len(self.data)
        return self if whole else NamedRows(self.data[start:stop], self.sizes)

    def __getitem__(self, view: View) -> Tensor:
        if isinstance(view, str):
            return self.parts[view]
        if isinstance(view, tuple):  # (K, names, size, N)
            return self[slice(*view)].unflatten(1, (-1, self.sizes[view[0]]))
        start, stop = rows_of(view, self.sizes)
        return self.data[:, start:stop]


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
        The M rows of the work memory that hold the gradient of the product.
    """

    weight: Tensor
    of: Span
    gradient: Span


class Stage(ABC):
    r"""One map of the state :math:`x \mapsto y` at all steps of a recurrence.

    Inside the recurrence a state h is stored as its share :math:`x = (1 + h) / 2`. Because
    :math:`\tanh(p) = 2 \sigma(2p) - 1`, a state that is a tanh becomes a sigmoid, which is faster
    to compute. :func:`for_shares` adapts the weights that are multiplied by h.

    States are columns, :math:`(D, N)`, so that the gates of one product are contiguous in memory.
    The recurrence gives every stage memory for a few steps, in rows that the stage names: the tape
    for the forward pass, the work memory for the backward pass. Per step it only calls
    :meth:`forward` and :meth:`backward`, which work in place on views made beforehand. Whatever can
    be done for several steps at once belongs in the other methods.

    Attributes
    ----------
    dim
        The size D of the state.
    tape
        The number of rows per name in the forward pass.
    kept
        The rows of the tape that are kept for the backward pass, in addition to the inputs.
    work
        The number of rows per name in the backward pass.
    state, gradient
        The rows of the tape that hold x, and the rows of the work memory that hold the gradient
        of y.
    parts
        The numbers of rows in which y is written, if it is not written as a whole. The gradient of
        x is written in these numbers in the opposite order.
    forward_views, backward_views
        What :meth:`forward` reads and writes of the tape, and :meth:`backward` of the work memory.
    products
        All matrix products.
    inputs
        The rows of the tape, besides the state, that the stage reads, at all steps:
        :math:`(T, R, N)`.
    input_gradients
        The rows of the work memory that hold gradients of inputs, except those through products.
    """

    dim: int
    tape: dict[str, int]
    kept: Span
    work: dict[str, int]
    state: Span = "x"
    gradient: Span = "y"
    parts: Sequence[int] = ()
    forward_views: Sequence[View]
    backward_views: Sequence[View]
    products: list[Product]
    inputs: dict[str, Tensor]
    input_gradients: Mapping[str, Span] = {}

    def tensors(self) -> list[Tensor]:
        """Return the tensors that may get a gradient: weights and inputs."""
        return [*(product.weight for product in self.products), *self.inputs.values()]

    def forward_arguments(self, tape: NamedRows, out: Tensor) -> tuple[Tensor, ...]:
        """Return the views for :meth:`forward`, with steps as the first axis; y goes to ``out``."""
        parts = out.split(list(self.parts) or self.dim, 1)
        return *parts, *(tape[view] for view in self.forward_views)

    @abstractmethod
    def forward(self, *views: Tensor) -> None:
        """Compute y at one step."""

    @abstractmethod
    def factors(self, tape: NamedRows, work: NamedRows) -> None:
        """Fill the work memory with the factors by which :meth:`backward` multiplies gradients."""

    def backward_arguments(self, work: NamedRows, out: Tensor) -> tuple[Tensor, ...]:
        """Return the views for :meth:`backward`; the gradient of x goes to ``out``."""
        parts = out.split(list(reversed(self.parts)) or self.dim, 1)
        return *parts, *(work[view] for view in self.backward_views)

    @abstractmethod
    def backward(self, *views: Tensor) -> None:
        """Compute the gradients of x, of the products and of the inputs at one step."""


def for_shares(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the weights that give :math:`W h + b` when multiplied by :math:`x = (1 + h) / 2`.

    Parameters
    ----------
    weight
        The matrix W, :math:`(*, M, D)`.
    bias
        The vector b, :math:`(*, M)`.

    Examples
    --------
    >>> import torch
    >>> for_shares(torch.tensor([[1.0, 3.0]]), torch.tensor([5.0]))
    (tensor([[2., 6.]]), tensor([1.]))
    """
    return 2 * weight, bias - weight.sum(-1)
