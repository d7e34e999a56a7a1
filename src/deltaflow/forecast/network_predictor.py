"""The predictor with a trained network."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.torch.distributions import QuantileOutput
from torch import Tensor

from deltaflow.data import Batch, Reader
from deltaflow.data.series import Series
from deltaflow.errors import DeltaflowError, check_registered, check_whole, warn_once
from deltaflow.forecast.forecasts import (
    DistributionForecast,
    QuantileForecast,
    RealTimeForecast,
    SampleForecast,
    SharedDistribution,
)
from deltaflow.forecast.predictor import DeltaflowPredictor, ReadEntry, find_device, read_data
from deltaflow.heads import describe_output, make_output
from deltaflow.heads.head import distribution_of
from deltaflow.model.networks import make_network
from deltaflow.process import one_thread
from deltaflow.randomness import ItemSeeds, check_seed, seeded
from deltaflow.saving import reading

_WEIGHTS = "prediction-net-state.pt"
SAMPLING = ("marginal", "path")
"""The ways to forecast several queries: independently, or as coherent trajectories."""


@dataclass(frozen=True)
class ReadBatch:
    """A batch of read entries, for any network with the same reader."""

    reader: Reader
    items: list[ReadEntry]

    @property
    def series(self) -> list[Series]:
        """The read entries."""
        return [item.series for item in self.items]

    @cached_property
    def batch(self) -> Batch:
        """The entries as the input of a network."""
        return self.reader.collate([self.reader.window(one, one.length) for one in self.series])


class IrregularPredictor(DeltaflowPredictor):
    """Forecasts series at their query times with a trained network.

    Usually created by an estimator's ``train``. Its arguments are plain values, which
    :meth:`serialize` writes as JSON beside the weights.

    Parameters
    ----------
    reader
        How series are read, as `Reader.to_dict` gives it.
    prediction_length
        The number of queries of a GluonTS window.
    network
        Arguments of `make_network`.
    distr_output
        The head, as `describe_output` gives it.
    sampling
        ``"marginal"``: an exact distribution at each query, independent of the other queries;
        ``"path"``: sampled trajectories, with each value fed back.
    num_parallel_samples
        The default number of trajectories per series.
    batch_size
        The number of series that are forecast together.
    device
        The device, ``"auto"`` for an accelerator if there is one.
    """

    @validated()
    def __init__(
        self,
        reader: dict,
        prediction_length: int,
        network: dict,
        distr_output: Any = "student_t",
        sampling: str = "marginal",
        num_parallel_samples: int = 100,
        batch_size: int = 64,
        device: str = "auto",
    ) -> None:
        check_whole(
            1,
            prediction_length=prediction_length,
            num_parallel_samples=num_parallel_samples,
            batch_size=batch_size,
        )
        check_registered("sampling", sampling, SAMPLING)
        self.device = find_device(device)
        self.reader = Reader.from_dict(reader)
        super().__init__(prediction_length, self.reader.schema)
        output = make_output(distr_output)
        if sampling == "path" and isinstance(output, QuantileOutput):
            raise DeltaflowError(
                "paths are sampled from distributions, which a quantile output does not have: "
                "choose sampling='marginal', or a distribution such as 'student_t'"
            )
        self.network_arguments = network
        self.distr_output = describe_output(distr_output)
        self.sampling = sampling
        self.num_parallel_samples = num_parallel_samples
        self.batch_size = batch_size
        # The initial weights are never used, so they must not change the caller's random state.
        with seeded(0):
            self.network = make_network(self.reader, output, **network).eval()
        self.to(self.device)

    def to(self, device: str | torch.device) -> "IrregularPredictor":
        """Move the network to a device, and return the predictor."""
        self.device = find_device(device)
        self.network.to(self.device)
        return self

    def with_unlimited_context(self) -> "IrregularPredictor":
        """See `DeltaflowPredictor.with_unlimited_context`; both predictors share one network."""
        if self.reader.is_short:
            return self
        arguments = self._arguments()
        reader = {**arguments["reader"], "context_length": sys.maxsize, "context": None}
        unlimited = type(self)(**{**arguments, "reader": reader, "device": str(self.device)})
        unlimited.network = self.network
        return unlimited

    @property
    def draws_paths(self) -> bool:
        """Whether samples are coherent trajectories."""
        return self.sampling == "path"

    def predict(
        self, dataset: Dataset, num_samples: int | None = None, seed: int | None = None
    ) -> Iterator[RealTimeForecast]:
        """Forecast each entry at its query times; see `DeltaflowPredictor.predict`.

        Without ``num_samples``, a marginal forecast is an exact distribution or quantiles, or
        ``num_parallel_samples`` samples if the distribution has no quantile function; a path
        forecast has as many trajectories. Each forecast has its channels in the order of the entry.

        Raises
        ------
        DataError
            If an entry does not fit the training data, has no query times, or has one before its
            last observation.
        DeltaflowError
            If the network's forecast is not a number, for example after training with too high a
            learning rate; if ``num_samples`` is less than 1 or ``seed`` less than 0.
        """
        yield from self.answer(self.read(dataset), num_samples, seed)

    def answer(
        self, batches: Iterable[ReadBatch], num_samples: int | None, seed: int | None
    ) -> Iterator[RealTimeForecast]:
        """Forecast entries that this predictor, or one with the same reader, has :meth:`read`."""
        check_whole(1, num_samples=num_samples)
        check_seed(seed)
        seeds = ItemSeeds(seed)
        unobserved: list[str | None] = []
        try:
            for asked in batches:
                unobserved += [
                    one.item_id for one in asked.series if not np.isfinite(one.values).any()
                ]
                yield from self._forecast_batch(asked, num_samples, seeds)
        finally:
            # GluonTS's evaluation closes this generator instead of exhausting it.
            if unobserved:
                warn_once(
                    "nothing is observed before the forecast origin of some items "
                    f"({len(unobserved)}, such as {unobserved[0]!r}): their forecasts use only "
                    "the statistics of the training set"
                )

    def read(self, dataset: Dataset) -> Iterator[ReadBatch]:
        """Read the entries in batches, which are smaller if there are many queries."""
        batch: list[ReadEntry] = []
        most = 0
        cycles = self.reader.seasonality
        for one in read_data(dataset, self.schema, self.prediction_length, cycles):
            queries = one.series.num_queries
            most = max(most, queries)
            size = len(batch) + 1
            if batch and (size > self.batch_size or size * most > self._queries_at_once):
                yield ReadBatch(self.reader, batch)
                batch, most = [], queries
            batch.append(one)
        if batch:
            yield ReadBatch(self.reader, batch)

    @property
    def _queries_at_once(self) -> int:
        return self.batch_size * max(self.prediction_length, 64)

    def _forecast_batch(
        self, asked: ReadBatch, num_samples: int | None, seeds: ItemSeeds
    ) -> Iterator[RealTimeForecast]:
        own = [seeds.of(item.series.item_id, item.origin) for item in asked.items]
        with torch.no_grad(), one_thread(), advising():
            if self.sampling == "path":
                forecasts = self._paths(asked, num_samples or self.num_parallel_samples, own)
            else:
                forecasts = self._marginals(asked, num_samples, own)

        for item, forecast in zip(asked.items, forecasts, strict=True):
            yield item.answer(forecast)

    def _paths(
        self, asked: ReadBatch, num_samples: int, seeds: Sequence[int | None]
    ) -> Iterable[RealTimeForecast]:
        """Sample trajectories through the queries, in order of time."""
        drawn = self.network.sample_paths(self._on_device(asked.batch), num_samples, seeds)
        samples = finite(drawn).cpu().numpy()  # (B, N, Q, D)
        return [
            SampleForecast(own[:, : item.series.num_queries, item.found.channels], coherent=True)
            for own, item in zip(samples, asked.items, strict=True)
        ]

    def _marginals(
        self, read: ReadBatch, num_samples: int | None, seeds: Sequence[int | None]
    ) -> Iterable[RealTimeForecast]:
        """Forecast each query independently, by a distribution, quantiles or samples."""
        batch = read.batch
        counts = np.array([one.num_queries for one in read.series])
        bounds = np.concatenate([[0], counts.cumsum()])
        asked = torch.arange(max(counts)) < torch.from_numpy(counts).unsqueeze(-1)  # (B, Q)
        # The R queries of all series, one series after the other: (R, D), or (R, D, K).
        args = [finite(arg).double().cpu()[asked] for arg in self._decoded(batch)]
        number = asked.nonzero()[:, 0]
        loc, scale = batch.loc[number], batch.scale[number]
        channels = [item.found.channels for item in read.items]
        return self.forecasts_from(args, loc, scale, bounds, channels, num_samples, seeds)

    def forecasts_from(
        self,
        args: Sequence[Tensor],
        loc: Tensor,
        scale: Tensor,
        bounds: np.ndarray,
        channels: Sequence[int | list[int]],
        num_samples: int | None = None,
        seeds: Sequence[int | None] | None = None,
    ) -> Sequence[RealTimeForecast]:
        """Return the forecasts of several items, not yet labelled with their items.

        Parameters
        ----------
        args
            The arguments ``(R, D)`` of the head's distributions at the R queries of all items, one
            item after the other, in float64.
        loc, scale
            ``(R, D)`` float64 location and scale of the targets.
        bounds
            ``(N + 1,)``: item ``n`` owns the rows ``bounds[n]:bounds[n + 1]``.
        channels
            The channels of each item's forecast, in its order; see `Match`.
        num_samples
            See :meth:`predict`.
        seeds
            The seed of each item's samples; torch's random state is used where it is None.
        """
        head = self.network.head
        rows = [slice(*pair) for pair in itertools.pairwise(bounds.tolist())]

        if head.quantile_levels is not None:
            *mean, quantiles = args
            keys = ["mean"] * len(mean) + [str(level) for level in head.quantile_levels]
            scaled = torch.stack([*mean, *quantiles.unbind(-1)])
            values = (loc + scale * scaled).numpy()  # (K, R, D)
            exact: list[RealTimeForecast] = [
                QuantileForecast(values[:, own][..., chosen], keys)
                for own, chosen in zip(rows, channels, strict=True)
            ]
            is_drawn = num_samples and len(head.quantile_levels) > 1  # a single one has no samples
        else:
            family = partial(distribution_of, head.output)
            shared = SharedDistribution(family, [loc, scale, *args], bounds)
            exact = [DistributionForecast(shared, *numbered) for numbered in enumerate(channels)]
            is_drawn = num_samples or not head.has_quantiles
        if not is_drawn:
            return exact
        drawn = []
        for forecast, seed in zip(exact, seeds or [None] * len(exact), strict=True):
            with seeded(seed):
                drawn.append(forecast.to_sample_forecast(num_samples or self.num_parallel_samples))
        return drawn

    def _decoded(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the arguments ``(B, Q, D)`` at any number of queries, in chunks that fit."""
        batch = self._on_device(batch)
        encoded = self.network.encode(batch)
        size = max(1, self._queries_at_once // len(batch.lengths))
        pieces = zip(
            batch.query_delta_t.split(size, dim=1),
            batch.query_covariates.split(size, dim=1),
            strict=True,
        )
        parts = [self.network.decode(encoded, *piece) for piece in pieces]
        return tuple(torch.cat(arg, dim=1) for arg in zip(*parts, strict=True))

    def _on_device(self, batch: Batch) -> Batch:
        return Batch(*(part.to(self.device) for part in batch))

    def write_state(self, folder: Path) -> None:
        """Write the weights."""
        weights = BytesIO()  # so that a full disk raises an OSError, as elsewhere
        torch.save(self.network.state_dict(), weights)
        (folder / _WEIGHTS).write_bytes(weights.getbuffer())

    @classmethod
    def restore(cls, arguments: dict[str, Any], folder: Path, device: str) -> "IrregularPredictor":
        """Return the predictor with the stored weights; nothing else is unpickled."""
        predictor = super().restore({**arguments, "device": device}, folder, device)
        with reading(folder / _WEIGHTS):
            weights = torch.load(
                folder / _WEIGHTS, map_location=predictor.device, weights_only=True
            )
            load_weights(predictor.network, weights)
        return predictor

    def _inside(self) -> list[str]:
        return [self.network_arguments["encoder"]]

    def _arguments(self) -> Mapping[str, Any]:
        return {**super()._arguments(), "distr_output": self.distr_output}

    def summary(self) -> dict[str, Any]:
        """Return a description of the predictor in a few plain values."""
        return super().summary() | {
            "encoder": self.network_arguments["encoder"],
            "network": self.network_arguments["network"],
            "distr_output": self.distr_output,
            "scaling": self.reader.scaling,
            "sampling": self.sampling,
            "num_parameters": sum(part.numel() for part in self.network.parameters()),
        }


def load_weights(network: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load stored weights into a network; raise an error if they do not fit or are not finite."""
    network.load_state_dict(weights)
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"the weights {name!r} are not finite")


@contextmanager
def advising(
    advice: str = "the network's forecast is not a number: train again, at a lower learning rate",
) -> Iterator[None]:
    """Add advice to torch's errors about values that are not finite."""
    try:
        yield
    except (ValueError, torch.linalg.LinAlgError) as error:
        if isinstance(error, DeltaflowError):
            raise
        raise DeltaflowError(advice) from error


def finite(values: Tensor) -> Tensor:
    """Return the values, or raise a ValueError if one of them is not finite."""
    if not torch.isfinite(values).all():
        raise ValueError("not finite")
    return values
