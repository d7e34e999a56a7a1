"""The head: from the features at a query to the arguments of a distribution for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from gluonts.torch.distributions import (
    DistributionOutput,
    ISQFOutput,
    Output,
    PiecewiseLinearOutput,
    QuantileOutput,
)
from torch import Tensor, nn
from torch.distributions import Distribution, constraints


def is_discrete(output: Output) -> bool:
    """Return whether the distribution is one of counts; only its parameters are then scaled."""
    support = getattr(getattr(output, "distr_cls", None), "support", None)
    return bool(getattr(support, "is_discrete", False))


def is_centred(output: Output) -> bool:
    """Return whether the distribution covers the real line, so that targets may be centred."""
    support = getattr(getattr(output, "distr_cls", None), "support", constraints.real)
    # Distributions built from transforms, such as GluonTS's splines, declare no simple support.
    return not is_discrete(output) and (
        support is constraints.real or not isinstance(support, constraints.Constraint)
    )


def has_quantiles(distribution: Distribution) -> bool:
    """Return whether a distribution implements ``icdf``, its quantile function."""
    try:
        distribution.icdf(torch.tensor(0.5))
    except NotImplementedError:
        return False
    return True


class Head(nn.Module):
    """A small network for all channels, whose result a GluonTS output turns into distributions.

    Parameters
    ----------
    in_features
        The number of features I at a query.
    num_targets
        The number D of channels.
    output
        A GluonTS output of univariate distributions or quantiles.
    width
        The width of the network's two layers.
    dropout
        The share of the inner features that is dropped in training.
    """

    def __init__(
        self, in_features: int, num_targets: int, output: Output, width: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_targets = num_targets
        self.output = output
        self.sizes = [int(size) for size in output.args_dim.values()]
        out_features = num_targets * sum(self.sizes)
        self.network = nn.Sequential(
            nn.Linear(in_features, width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(width, out_features),
        )
        # A linear path around the network passes the last values on to the forecast undistorted.
        self.skip = nn.Linear(in_features, out_features, bias=False)
        nn.init.zeros_(self.skip.weight)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Map ``(..., I)`` to the arguments, each ``(..., D)`` (quantiles: ``(..., D, K)``)."""
        return self.arguments(self.raw(features).unflatten(-1, (self.num_targets, -1)))

    def at(self, features: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Return the arguments ``(N,)`` only where ``mask``, ``(..., D)``, is True."""
        raw = self.raw(features).reshape(mask.numel(), -1)
        return self.arguments(raw.index_select(0, mask.flatten().nonzero().squeeze(1)))

    def raw(self, features: Tensor) -> Tensor:
        """Map ``(..., I)`` to the unbounded numbers that become the arguments of all targets."""
        return self.network(features) + self.skip(features)

    def arguments(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Map unbounded numbers, ``(..., A)`` for each target, to the distribution's arguments."""
        return self.output.domain_map(*raw.split(self.sizes, dim=-1))

    def loss(self, target: Tensor, args: tuple[Tensor, ...], scale: Tensor) -> Tensor:
        """Return the loss of each scaled target.

        Parameters
        ----------
        target
            ``(...)`` scaled targets, all of them observed.
        args
            Their results of :meth:`forward` or :meth:`at`.
        scale
            ``(...)`` scale of each target, in the units of its channel, for distributions of
            counts.
        """
        if is_discrete(self.output):
            scale = scale.to(target.dtype)
            return self.output.loss((target * scale).round(), _copied(args), scale=scale)
        if isinstance(self.output, (ISQFOutput, PiecewiseLinearOutput)):
            # GluonTS's quantile splines have no density; their loss is the CRPS.
            return self.output.distribution(args).crps(target)
        return self.output.loss(target, args)

    def distribution(self, args: Sequence[Tensor], loc: Tensor, scale: Tensor) -> Distribution:
        """Return the distribution for the result of :meth:`forward`; see `distribution_of`."""
        return distribution_of(self.output, loc, scale, *args)

    @cached_property
    def has_quantiles(self) -> bool:
        """Whether quantiles can be computed, instead of only samples drawn."""
        if self.quantile_levels is not None:
            return True
        one = torch.ones(1, 1, dtype=torch.float64)
        args = self.arguments(one.expand(1, 1, sum(self.sizes)))
        return has_quantiles(self.distribution(args, one, one))

    @property
    def quantile_levels(self) -> list[float] | None:
        """The levels, if the output consists of quantiles instead of a distribution."""
        return self.output.quantiles if isinstance(self.output, QuantileOutput) else None


def distribution_of(output: Output, loc: Tensor, scale: Tensor, *args: Tensor) -> Distribution:
    """Return the distribution with the given arguments, in the units of its channels.

    Parameters
    ----------
    output
        An output of distributions.
    loc, scale
        Location and scale, in the shape of the distribution. For counts the location is ignored.
    args
        The arguments of the output.
    """
    assert isinstance(output, DistributionOutput)
    if is_discrete(output):
        return output.distribution(_copied(args), scale=scale)
    return output.distribution(args, loc=loc, scale=scale)


def _copied(args: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copy the arguments, because GluonTS scales those of count distributions in place."""
    return tuple(arg.clone() for arg in args)
