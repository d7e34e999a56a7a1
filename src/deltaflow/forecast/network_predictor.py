"""The predictor with a network: entries in, forecasts out."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from gluonts.core.component import validated
from gluonts.dataset.common import DataEntry, Dataset
from gluonts.torch.distributions import QuantileOutput
from torch import Tensor

from deltaflow.data import WindowSpec
from deltaflow.data.series import Series, is_irregular
from deltaflow.data.windows import Batch
from deltaflow.errors import (
    DeltaflowError,
    DeltaflowWarning,
    UnknownNameError,
    check_at_least_one,
)
from deltaflow.forecast.forecasts import (
    DistributionForecast,
    QuantileForecast,
    RealTime,
    SampleForecast,
)
from deltaflow.forecast.predictor import DeltaflowPredictor, find_device
from deltaflow.heads import describe_output, has_quantiles, is_discrete, make_output
from deltaflow.model.networks import make_network
from deltaflow.randomness import check_seed, derived_seed, seeded
from deltaflow.saving import reading

_WEIGHTS = "prediction-net-state.pt"
_T = TypeVar("_T")

SAMPLING = ("marginal", "path")
"""The ways to forecast several queries: each on its own, or as coherent trajectories."""


class IrregularPredictor(DeltaflowPredictor):
    """Forecasts series at their query times with a trained network.

    Usually made by an estimator's ``train``. Its arguments are plain values, which
    :meth:`serialize` writes as JSON beside the weights.

    Parameters
    ----------
    spec
        How windows are cut, as `WindowSpec.to_dict` gives it.
    network
        Arguments of `make_network`.
    distr_output
        The head, as `describe_output` gives it.
    sampling
        ``"marginal"``: an exact distribution at each query, which does not depend on what other
        queries are asked; ``"path"``: sampled trajectories, each value fed back.
    num_parallel_samples
        Trajectories per series, where ``predict`` does not say.
    batch_size
        Series forecast at once.
    device
        Where to compute, ``"auto"`` for an accelerator if there is one.
    """

    @validated()
    def __init__(
        self,
        spec: dict,
        network: dict,
        distr_output: Any = "student_t",
        sampling: str = "marginal",
        num_parallel_samples: int = 100,
        batch_size: int = 64,
        device: str = "auto",
    ) -> None:
        check_at_least_one(num_parallel_samples=num_parallel_samples, batch_size=batch_size)
        if sampling not in SAMPLING:
            raise UnknownNameError("sampling", sampling, SAMPLING)
        self.device = find_device(device)
        self.spec = WindowSpec.from_dict(spec)
        super().__init__(self.spec.prediction_length, self.spec.schema)
        output = make_output(distr_output)
        if sampling == "path" and isinstance(output, QuantileOutput):
            raise DeltaflowError(
                "paths are sampled from distributions, which a quantile output does not have: "
                "choose sampling='marginal', or a distribution such as 'student_t'"
            )
        self.network_arguments = network
        self.distr_output = distr_output
        self.sampling = sampling
        self.num_parallel_samples = num_parallel_samples
        self.batch_size = batch_size
        # The initial weights are never used, so they must not move the caller's random state.
        with seeded(0):
            self.network = make_network(self.spec, output, **network).eval()
        self.to(self.device)

    def to(self, device: str | torch.device) -> "IrregularPredictor":
        """Move the network to a device, and return the predictor."""
        self.device = find_device(device)
        self.network.to(self.device)
        return self

    def predict(
        self, dataset: Dataset, num_samples: int | None = None, seed: int | None = None
    ) -> Iterator[RealTime]:
        """Forecast each entry at its query times.

        Parameters
        ----------
        dataset
            Entries whose ``feat_dynamic_real`` goes on for ``prediction_length`` query times
            after the last observation; ordinary GluonTS entries if the model is of such.
        num_samples
            Number of samples per series. If None, a marginal forecast is an exact distribution,
            or quantiles, and a path forecast has ``num_parallel_samples`` trajectories; so many
            samples also stand for a distribution that has no quantile function in GluonTS.
        seed
            Seed of the samples; the global random state is left alone then.

        Yields
        ------
        DistributionForecast, QuantileForecast or SampleForecast
            In the order of the data set.

        Raises
        ------
        DataError
            If an entry does not fit the training data, or its query times are unknown, too many
            or before the last observation.
        DeltaflowError
            If the network's forecast is no number, as after a training at too high a learning
            rate; if ``num_samples`` is less than 1, or ``seed`` than 0.
        """
        check_at_least_one(num_samples=num_samples)
        check_seed(seed)
        unseen = 0
        entries = iter(dataset)
        try:
            for number, batch in enumerate(_batches(entries, self.batch_size)):
                series = [self._read(entry) for entry in batch]
                unseen += sum(not np.isfinite(one.values).any() for one in series)
                batch_seed = None if seed is None else derived_seed(seed, number)
                yield from self._forecast_batch(batch, series, num_samples, batch_seed)
        finally:
            # The evaluation of GluonTS does not exhaust this generator, it closes it.
            if unseen:
                warnings.warn(
                    f"{unseen} items have nothing observed before their forecast origin; their "
                    "forecasts rest on the training set's statistics",
                    DeltaflowWarning,
                    stacklevel=2,
                )

    def _read(self, entry: DataEntry) -> Series:
        return self.spec.read(entry, num_queries=self.prediction_length)

    def _forecast_batch(
        self,
        entries: list[DataEntry],
        series: list[Series],
        num_samples: int | None,
        seed: int | None,
    ) -> Iterator[RealTime]:
        cpu = self.spec.collate([self.spec.cut(one, one.length) for one in series])
        batch = Batch(*(part.to(self.device) for part in cpu))
        shape = (len(series), self.prediction_length, self.network.num_targets)
        loc = cpu.loc.unsqueeze(1).expand(shape)  # (B, Q, D)
        scale = cpu.scale.unsqueeze(1).expand(shape)
        with torch.no_grad(), seeded(seed, self.device), _in_numbers():
            if self.sampling == "path":
                count = num_samples or self.num_parallel_samples
                forecasts = self._samples(batch, count, loc, scale)
            else:
                args = tuple(_finite(arg).double().cpu() for arg in self.network(batch))
                forecasts = self._marginals(args, loc, scale, num_samples)

        for entry, one, forecast in zip(entries, series, forecasts, strict=True):
            start = entry["start"] + one.length
            made = forecast(start_date=start, item_id=one.item_id, info=entry.get("info"))
            yield made.on_real_time(query_times_of(entry), self.schema.target)

    def _samples(
        self, batch: Batch, count: int, loc: Tensor, scale: Tensor
    ) -> Iterator[Callable[..., RealTime]]:
        drawn = _finite(self.network.sample_paths(batch, count)).double().cpu()  # (B, N, Q, D)
        if not is_discrete(self.network.head.output):
            drawn = loc.unsqueeze(1) + scale.unsqueeze(1) * drawn
        return (partial(SampleForecast, self._univariate(own).numpy()) for own in drawn)

    def _marginals(
        self, args: tuple[Tensor, ...], loc: Tensor, scale: Tensor, num_samples: int | None
    ) -> Iterator[Callable[..., RealTime]]:
        head = self.network.head
        if head.quantile_levels is not None:
            *mean, quantiles = args
            keys = ["mean"] * len(mean) + [str(level) for level in head.quantile_levels]
            scaled = torch.cat([*(part.unsqueeze(-1) for part in mean), quantiles], dim=-1)
            values = loc.unsqueeze(-1) + scale.unsqueeze(-1) * scaled  # (B, Q, D, K)
            arrays = self._univariate(values.movedim(-1, 1)).numpy()
            return (partial(QuantileForecast, own, forecast_keys=keys) for own in arrays)
        joint = head.distribution(args, loc, scale)
        if num_samples or not has_quantiles(joint):
            drawn = joint.sample(torch.Size((num_samples or self.num_parallel_samples,)))
            return (
                partial(SampleForecast, self._univariate(own).numpy()) for own in drawn.unbind(1)
            )
        if self.schema.univariate:
            loc, scale = loc.squeeze(-1), scale.squeeze(-1)
            args = tuple(arg.squeeze(2) for arg in args)
        return (
            partial(DistributionForecast, head.distribution(own_args, own_loc, own_scale))
            for *own_args, own_loc, own_scale in zip(*args, loc, scale, strict=True)
        )

    def _univariate(self, values: Tensor) -> Tensor:
        """Drop the channel axis, the last one, of a univariate forecast, as GluonTS expects it."""
        return values.squeeze(-1) if self.schema.univariate else values

    def write_state(self, folder: Path) -> None:
        """Write the weights."""
        weights = BytesIO()  # so that a full disk is an OSError, as elsewhere
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

    def _arguments(self) -> Mapping[str, Any]:
        return {**super()._arguments(), "distr_output": describe_output(self.distr_output)}

    def summary(self) -> dict[str, Any]:
        """Return what the predictor is, in a few plain values."""
        return super().summary() | {
            "encoder": self.network_arguments["encoder"],
            "network": self.network_arguments["network"],
            "distr_output": describe_output(self.distr_output),
            "scaling": self.spec.scaling,
            "sampling": self.sampling,
            "num_parameters": sum(part.numel() for part in self.network.parameters()),
        }


def load_weights(network: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put stored weights into a network; it is an error if they do not fit, or are not finite."""
    network.load_state_dict(weights)
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"the weights {name!r} are not finite")


@contextmanager
def _in_numbers() -> Iterator[None]:
    """Turn the refusal of what is no number into advice."""
    try:
        yield
    except (ValueError, torch.linalg.LinAlgError) as error:
        if isinstance(error, DeltaflowError):
            raise
        raise DeltaflowError(
            "the network's forecast is no number: train again, at a lower learning rate"
        ) from error


def _finite(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise ValueError("not finite")
    return values


def _batches(items: Iterator[_T], size: int) -> Iterator[list[_T]]:
    while batch := list(islice(items, size)):
        yield batch


def query_times_of(entry: DataEntry) -> np.ndarray | None:
    """Return the elapsed times ``(Q,)`` that an irregular entry asks for, None if it is regular."""
    if not is_irregular(entry):
        return None
    return np.array(entry["feat_dynamic_real"][0, np.shape(entry["target"])[-1] :])
