"""The contract of an encoder: observations in, a state out that can be queried at any time."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from deltaflow.encoders.evolution import VectorField
from deltaflow.errors import DeltaflowError


class State(NamedTuple):
    """The state of B series at their last observation.

    Attributes
    ----------
    hidden
        ``(B, H)`` hidden state: what the encoder remembers of the past.
    last
        ``(B, C)`` last observed value of each channel; 0 before its first observation.
    age
        ``(B, C)`` time since that observation, in typical gaps; before the first observation of a
        channel, time since the series began.
    seen
        ``(B, C)`` bool, whether the channel has been observed.
    """

    hidden: Tensor
    last: Tensor
    age: Tensor
    seen: Tensor


class Encoder(nn.Module, ABC):
    """The contract of an encoder, which reads irregular observations one by one.

    Calling it on a whole padded batch and calling :meth:`update` once per observation give the
    same state. The result does not depend on padding or on the other series of the batch.

    A subclass implements :meth:`step` and :meth:`evolve`, and :meth:`read` if it knows a faster
    way to read a batch.

    Parameters
    ----------
    num_channels
        The number C of channels that are read.
    num_features
        The number F of covariates and static features that are read with each observation.
    hidden_size
        The size H of the hidden state.

    Attributes
    ----------
    oscillates
        Whether the hidden state rotates and decays between observations, so that the state at a
        query hardly reveals that at the last observation.
    length_ratio
        The largest ratio between the lengths of series that had better be read in one batch, with
        the shorter ones padded.
    """

    oscillates: ClassVar[bool] = False
    length_ratio: ClassVar[float] = 4.0

    def __init__(self, num_channels: int, num_features: int, hidden_size: int) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.num_features = num_features
        self.hidden_size = hidden_size

    @property
    def num_evaluations(self) -> int:
        """The number of vector field evaluations since the last reset; 0 if there are no fields."""
        return sum(field.num_evaluations for field in self._vector_fields())

    def reset_num_evaluations(self) -> None:
        """Reset the count of vector field evaluations to 0."""
        for field in self._vector_fields():
            field.num_evaluations = 0

    def _vector_fields(self) -> list[VectorField]:
        return [module for module in self.modules() if isinstance(module, VectorField)]

    def initial_state(self, batch_size: int) -> State:
        """Return the state of ``batch_size`` series before their first observation."""
        parameter = next(self.parameters())
        channels = parameter.new_zeros(batch_size, self.num_channels)
        hidden = parameter.new_zeros(batch_size, self.hidden_size)
        return State(hidden, channels, channels, channels.bool())

    def forward(
        self,
        values: Tensor,
        observed: Tensor,
        delta_t: Tensor,
        lengths: Tensor,
        features: Tensor,
    ) -> State:
        """Read a padded batch of series from their beginning.

        Parameters
        ----------
        values
            ``(B, T, C)`` scaled values, 0 where not observed.
        observed
            ``(B, T, C)`` bool observed mask.
        delta_t
            ``(B, T)`` time since the previous observation, in typical gaps; 0 at the first.
        lengths
            ``(B,)`` number of observation times. Steps beyond it are padding: their values, even
            NaN, affect neither the state nor any gradient.
        features
            ``(B, T, F)`` covariates and static features.

        Returns
        -------
        State
            The state of each series at its last observation; the initial state if it has none.

        Raises
        ------
        DeltaflowError
            If T is 0.
        """
        if not values.shape[1]:
            raise DeltaflowError("the batch has no observation time: pad it to one, with length 0")
        # int32 and the longest axis last make `newest` four times as fast.
        steps = torch.arange(1, values.shape[1] + 1, dtype=torch.int32, device=values.device)
        running = steps <= lengths.unsqueeze(-1)  # (B, T)
        padding = ~running
        if padding.any():
            delta_t = delta_t.masked_fill(padding, 0.0)
            padding = padding.unsqueeze(-1)
            values, features = (part.masked_fill(padding, 0.0) for part in (values, features))
            observed = observed.masked_fill(padding, False)
        hidden = self.read(values, observed, delta_t, running, features)

        elapsed = delta_t.double().cumsum(-1)  # (B, T)
        newest = (observed.mT.contiguous() * steps).amax(-1)  # (B, C), 0 if never observed
        seen = newest > 0
        index = (newest - 1).clamp(min=0).long()
        last = values.gather(1, index.unsqueeze(1)).squeeze(1)
        since = elapsed.gather(1, index)
        age = (elapsed[:, -1:] - torch.where(seen, since, 0.0)).to(delta_t.dtype)
        return State(hidden, torch.where(seen, last, 0.0), age, seen)

    def update(
        self, state: State, delta_t: Tensor, values: Tensor, observed: Tensor, features: Tensor
    ) -> State:
        """Read one more observation of each series.

        Parameters
        ----------
        state
            The state at the previous observation.
        delta_t
            ``(B,)`` time since then, in typical gaps.
        values, observed
            ``(B, C)`` the scaled values, 0 where not observed, and their mask.
        features
            ``(B, F)`` covariates and static features.
        """
        age = state.age + delta_t.unsqueeze(-1)
        return State(
            hidden=self.step(state, delta_t, values, observed, features),
            last=torch.where(observed, values, state.last),
            age=torch.where(observed, 0.0, age),
            seen=state.seen | observed,
        )

    def frozen(self) -> Encoder:
        """Return the encoder for fixed weights.

        An encoder that prepares its weights before each step overrides this to prepare them once.
        """
        return self

    def read(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Return the hidden state ``(B, H)`` after the whole batch, see :meth:`forward`.

        An encoder with a faster way than :meth:`read_plainly`, such as a fused loop or a parallel
        scan, overrides this. States and gradients must be the same, up to rounding.

        ``running`` ``(B, T)`` is False on the padding. There the state must not change, and all
        other arguments are 0.
        """
        return self.read_plainly(values, observed, delta_t, running, features)

    def read_plainly(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Return the same as :meth:`read`, by a plain loop over :meth:`update`.

        It is the reference for every faster implementation. Autograd can differentiate it any
        number of times, and `torch.func` can transform it.
        """
        state = self.initial_state(len(values))
        parts = running.unsqueeze(-1), delta_t, values, observed, features
        for active, *inputs in steps_of(*parts):
            updated = self.update(state, *inputs)
            state = updated._replace(hidden=torch.where(active, updated.hidden, state.hidden))
        return state.hidden

    @abstractmethod
    def step(
        self, state: State, delta_t: Tensor, values: Tensor, observed: Tensor, features: Tensor
    ) -> Tensor:
        """Return the hidden state ``(B, H)`` after one more observation; see :meth:`update`."""

    @abstractmethod
    def evolve(self, state: State, delta_t: Tensor) -> Tensor:
        """Return the hidden state at queries ``(B, Q)`` after the last observation: ``(B, Q, H)``.

        The result at one query does not depend on the other queries.
        """

    def evolve_each(self, state: State, delta_t: Tensor, row: Tensor) -> Tensor:
        """Return the hidden state at any number of queries of each series: ``(N, H)``.

        Query n lies ``delta_t[n]`` after the last observation of series ``row[n]``.
        """
        each = State(*(part.index_select(0, row) for part in state))
        return self.evolve(each, delta_t.unsqueeze(-1)).squeeze(1)


def steps_of(*sequences: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Return the steps ``(B, …)`` of sequences ``(B, T, …)``, one after the other.

    Each sequence is unbound once: an index per step would make the backward pass quadratic.
    """
    return zip(*(sequence.unbind(1) for sequence in sequences), strict=True)


def known_before(values: Tensor, observed: Tensor, delta_t: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``last`` and ``age`` of a `State` as they are just before each observation.

    Parameters
    ----------
    values, observed, delta_t
        ``(B, T, C)``, ``(B, T, C)`` and ``(B, T)``, as in `Encoder.forward`.

    Returns
    -------
    last, age
        ``(B, T, C)`` the last value of each channel before the observation, and the time since
        then, in the units of ``delta_t``.
    """
    steps = torch.arange(values.shape[1], device=values.device).unsqueeze(-1)
    newest = torch.where(observed, steps, -1).cummax(1).values
    newest = torch.cat([torch.full_like(newest[:, :1], -1), newest[:, :-1]], dim=1)  # (B, T, C)
    seen, index = newest >= 0, newest.clamp(min=0)
    elapsed = delta_t.cumsum(1).unsqueeze(-1).expand_as(values)
    last = torch.where(seen, values.gather(1, index), 0.0)
    age = elapsed - torch.where(seen, elapsed.gather(1, index), 0.0)
    return last, age


def own_precision(tensor: Tensor) -> torch.autocast:
    """Disable autocast, because a state's rounding errors would add up over hundreds of steps."""
    return torch.autocast(tensor.device.type, enabled=False)


M = TypeVar("M", bound=nn.Module)


def replaced(module: M, name: str, part: nn.Module) -> M:
    """Return a shallow copy of a module with one part replaced."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, name: part}
    return twin
