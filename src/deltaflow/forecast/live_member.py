"""The networks of a live forecaster: each reads what it knows into states of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaflow.data.matching import match
from deltaflow.data.schema import TICKS_PER_SECOND, Schema
from deltaflow.data.series import phases_at
from deltaflow.data.validation import TimeColumn
from deltaflow.errors import DeltaflowError
from deltaflow.forecast.conformal import ConformalPredictor
from deltaflow.forecast.ensemble import EnsemblePredictor
from deltaflow.forecast.forecasts import EnsembleForecast, RealTimeForecast
from deltaflow.forecast.network_predictor import IrregularPredictor, finite
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.forecast.support import SupportPredictor
from deltaflow.model.running import Running, RunningNetwork

QUERIES_AT_ONCE = 2**14
"""About this many queries are forecast together."""

UNKNOWN_LEVEL = -1
"""The code of a level of a category that the training data do not have."""


class Static(NamedTuple):
    """Static features of I items: numbers ``(I, S)``, NaN where unknown, and codes ``(I, N)``."""

    real: np.ndarray
    cat: np.ndarray


class Member:
    """A network of the predictor, which reads data of the predictor's schema by name.

    Parameters
    ----------
    predictor
        The predictor of the network.
    schema
        The schema of the data.

    Attributes
    ----------
    parts
        An example of the parts of its state.
    """

    def __init__(self, predictor: IrregularPredictor, schema: Schema) -> None:
        if predictor.sampling != "marginal":
            raise DeltaflowError(
                f"a predictor with sampling={predictor.sampling!r} draws paths, which a live "
                "forecaster does not: train one with sampling='marginal'"
            )
        self.predictor = predictor
        self.network = RunningNetwork(predictor.reader, predictor.network)
        self._schema, own = schema, predictor.schema
        self._found = match(schema, own)
        observed = [*schema.target, *schema.past_feat_dynamic_real]
        self._channels = [observed.index(n) for n in (*own.target, *own.past_feat_dynamic_real)]
        self._known = [schema.feat_dynamic_real.index(name) for name in own.feat_dynamic_real]
        self._real = [schema.feat_static_real.index(name) for name in own.feat_static_real]
        self._cat = [list(schema.feat_static_cat).index(name) for name in own.feat_static_cat]
        self._started = self._start(
            np.full((1, len(schema.feat_static_real)), np.nan),
            np.full((1, len(schema.feat_static_cat)), UNKNOWN_LEVEL),
        )
        count = len(predictor.reader.statistics.covariate_center)
        nothing = np.full((1, len(self._channels)), np.nan)
        try:
            read = self.network.read(self._started, np.zeros(1), nothing, np.zeros((1, count)))
        except DeltaflowError as error:
            raise DeltaflowError(
                f"the encoder {predictor.network_arguments['encoder']!r} cannot read one "
                f"observation at a time: {error}"
            ) from error
        self.parts = [leaf.cpu() for leaf in _leaves((read.encoded, read.memory))]

    def covariates(self, times: TimeColumn, known: np.ndarray) -> np.ndarray:
        """Return the network's covariates and calendar phases ``(N, K)`` at times ``(N,)``."""
        known = known[:, self._known]
        cycles = self.predictor.reader.seasonality
        if not cycles:
            return known
        seconds = times.ticks / float(TICKS_PER_SECOND[times.resolution])
        return np.hstack([known, phases_at(seconds, cycles).T])

    def start(self, static: Static) -> list[Tensor]:
        """Return the parts of the states of new items, in main memory."""
        running = self._start(static.real, static.cat)
        return [leaf.cpu() for leaf in _leaves((running.encoded, running.memory))]

    def _start(self, real: np.ndarray, cat: np.ndarray) -> Running:
        codes = [
            known[np.maximum(cat[:, column], UNKNOWN_LEVEL)]
            for column, known in zip(self._cat, self._found.codes, strict=True)
        ]  # fmt: skip
        codes = np.stack(codes, axis=-1) if codes else np.empty((len(cat), 0), dtype=np.int64)
        return self.network.start(real[:, self._real], codes)

    def read(
        self,
        parts: Sequence[Tensor],
        gaps: np.ndarray,
        ages: np.ndarray,
        values: np.ndarray,
        covariates: np.ndarray,
    ) -> None:
        """Read one more observation of each item into the parts of their states.

        ``gaps`` ``(I,)`` are the seconds since the last observation, and ``ages`` ``(I, C)`` those
        from the last value of each channel to the last observation.
        """
        running = self._running(parts, ages)
        read = self.network.read(running, gaps, values[:, self._channels], covariates)
        for part, new in zip(parts, _leaves((read.encoded, read.memory)), strict=True):
            part.copy_(new)

    def forecast(
        self,
        parts: Sequence[Tensor],
        gaps: np.ndarray,
        ages: np.ndarray,
        covariates: np.ndarray,
        bounds: np.ndarray,
    ) -> RealTimeForecast:
        """Forecast all queries ``(N,)`` of I items in one forecast.

        ``gaps`` ``(N,)`` and ``ages`` ``(I, C)`` are in seconds; item ``i`` owns the queries
        ``bounds[i]:bounds[i + 1]``.
        """
        counts = np.diff(bounds)
        order = np.argsort(-counts, kind="stable")
        pieces: list[tuple[Tensor, ...]] = []
        while len(order):
            most = int(counts[order[0]])
            size = max(1, QUERIES_AT_ONCE // most)
            own, order = order[:size], order[size:]
            steps = np.arange(most)
            asked = steps < counts[own, None]  # (I, Q)
            rows = bounds[own, None] + np.minimum(steps, counts[own, None] - 1)
            running = self._running([part[own] for part in parts], ages[own])
            args, loc, scale = self.network.forecast(running, gaps[rows], covariates[rows])
            item, _ = np.nonzero(asked)
            mask = torch.from_numpy(asked)
            pieces.append(
                (
                    torch.from_numpy(rows[asked]),
                    loc.cpu()[item],
                    scale.cpu()[item],
                    *(finite(arg).double().cpu()[mask] for arg in args),
                )
            )
        rows, *columns = (torch.cat(column) for column in zip(*pieces, strict=True))
        loc, scale, *args = (column[rows.argsort()] for column in columns)
        whole = np.array([0, len(rows)])
        (make,) = self.predictor.forecasts_from(args, loc, scale, whole, [self._found.channels])
        forecast = make(start_date=None, item_id=None, info=None)
        return forecast.labelled(None, self._schema.target)

    def is_finite(self, parts: Sequence[Tensor]) -> bool:
        """Tell whether all hidden states are finite."""
        return bool(_like(self._started.encoded, iter(parts)).state.hidden.isfinite().all())

    def _running(self, parts: Sequence[Tensor], ages: np.ndarray) -> Running:
        """Return the state whose parts these are, with times counted from the last observation."""
        leaves = (part.to(self.predictor.device) for part in parts)
        encoded, memory = _like((self._started.encoded, self._started.memory), leaves)
        return Running(encoded, memory, np.zeros(len(ages)), -ages[:, self._channels])


def networks_in(predictor: DeltaflowPredictor) -> Iterator[IrregularPredictor]:
    """Yield the predictors with a network in an ensemble, within any wrappers, in their order."""
    if isinstance(predictor, IrregularPredictor):
        yield predictor
    elif isinstance(predictor, EnsemblePredictor | ConformalPredictor | SupportPredictor):
        for member in predictor.members:
            yield from networks_in(member)
    else:
        raise DeltaflowError(
            f"a {type(predictor).__name__} keeps no state that could be updated: forecast by "
            "predict_df, or train with blend=False"
        )


def combined(
    predictor: DeltaflowPredictor, given: Iterator[RealTimeForecast], lead: np.ndarray
) -> RealTimeForecast:
    """Return the forecast of a predictor from those of its networks, in the same order.

    ``lead`` ``(N,)`` are the seconds from the last observations to the queries.
    """
    if isinstance(predictor, SupportPredictor):
        return predictor.bounded(combined(predictor.predictor, given, lead))
    if isinstance(predictor, ConformalPredictor):
        return predictor.calibrated(combined(predictor.predictor, given, lead), lead)
    if isinstance(predictor, EnsemblePredictor):
        parts = [combined(one, given, lead) for one in predictor.predictors]
        return EnsembleForecast(parts, predictor.weights)
    return next(given)


def _leaves(part: Any) -> list[Tensor]:
    """Return the tensors in nested tuples."""
    return [part] if isinstance(part, Tensor) else [leaf for own in part for leaf in _leaves(own)]


def _like(example: Any, leaves: Iterator[Tensor]) -> Any:
    """Put tensors into nested tuples like those of an example."""
    if isinstance(example, Tensor):
        return next(leaves)
    parts = [_like(own, leaves) for own in example]
    return type(example)(*parts) if hasattr(example, "_fields") else tuple(parts)
