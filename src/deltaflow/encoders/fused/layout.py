"""The memory layout of a batch in the fused recurrence."""

from __future__ import annotations

from torch import Tensor


class Layout:
    """Series as columns, the longest first, without steps in which no series takes part.

    Parameters
    ----------
    running
        ``(B, T)`` whether a series takes part in a step: True up to its length, False after.

    Attributes
    ----------
    counts
        The number of series that take part in each step. These are the first columns.

    Examples
    --------
    >>> import torch
    >>> layout = Layout(torch.tensor([[True, False, False], [True, True, False]]))
    >>> layout.counts
    [2, 1]
    >>> layout.columns(torch.tensor([[[1], [0], [0]], [[2], [3], [0]]]))
    tensor([[[2, 1]],
    <BLANKLINE>
            [[3, 0]]])
    """

    def __init__(self, running: Tensor) -> None:
        self.counts: list[int] = [count for count in running.sum(0).tolist() if count]
        self.num_rows, self.num_series = len(running), max(self.counts, default=0)
        lengths = running.sum(1)
        if bool((lengths.diff() <= 0).all()):
            self.order: Tensor | slice = slice(self.num_series)
        else:
            self.order = lengths.argsort(descending=True)[: self.num_series]

    def columns(self, rows: Tensor) -> Tensor:
        """Turn ``(B, T, R)`` into ``(T, R, N)``."""
        rows = rows[self.order, : len(self.counts)]
        shape = len(self.counts), rows.shape[-1], self.num_series
        return rows.flatten(1).T.contiguous().view(shape)

    def rows(self, columns: Tensor) -> Tensor:
        """Turn ``(R, N)`` into ``(B, R)``, with 0 for series that took part in no step."""
        if isinstance(self.order, slice) and self.num_series == self.num_rows:
            return columns.T
        rows = columns.new_zeros(self.num_rows, len(columns))
        rows[self.order] = columns.T
        return rows
