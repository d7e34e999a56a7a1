"""An ensemble: the average forecast of several trained predictors."""

import math
from collections.abc import Iterator, Sequence
from itertools import tee
from typing import Any, TypeGuard

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset

from deltaflow.data.matching import common_schema
from deltaflow.data.series import entries_of
from deltaflow.errors import DataError, DeltaflowError
from deltaflow.forecast.forecasts import EnsembleForecast, RealTimeForecast
from deltaflow.forecast.network_predictor import IrregularPredictor
from deltaflow.forecast.predictor import DeltaflowPredictor, sampled
from deltaflow.randomness import check_seed, derived_seed


class EnsemblePredictor(DeltaflowPredictor):
    """Averages the forecasts of several predictors.

    Means are averaged, and quantiles level by level: the average of several forecasts of the same
    shape has that shape, and a width between theirs (Lichtendahl, Grushka-Cockayne & Winkler,
    *Is It Better to Average Probabilities or Quantiles?*, 2013).

    Parameters
    ----------
    predictors
        At least one predictor; all trained on data with the same names, in any order, and the same
        ``prediction_length``.
    weights
        The weights of the average, positive numbers with sum 1; equal by default.

    Attributes
    ----------
    schema
        The schema of the data; the levels of a category are those of all predictors.

    Raises
    ------
    DeltaflowError
        If they are not predictors of deltaflow, or do not fit together.

    Examples
    --------
    >>> from deltaflow import HoldPredictor, IrregularDataset
    >>> from deltaflow.tasks import irregular_sine
    >>> data = IrregularDataset.from_long_dataframe(irregular_sine(num_series=4))
    >>> parts = [data.select([0, 1]), data.select([2, 3])]
    >>> ensemble = EnsemblePredictor([HoldPredictor.fit(part, 8) for part in parts])
    >>> ensemble.prediction_length
    8
    """

    @validated()
    def __init__(self, predictors: list, weights: list | None = None) -> None:
        if not predictors or not all(isinstance(p, DeltaflowPredictor) for p in predictors):
            names = ", ".join(type(member).__name__ for member in predictors) or "none"
            raise DeltaflowError(
                f"an ensemble is made of predictors of deltaflow, got {names}: give the "
                "results of its estimators"
            )
        first = predictors[0]
        for number, member in enumerate(predictors):
            if member.prediction_length != first.prediction_length:
                raise DeltaflowError(
                    f"predictor {number} of the ensemble has prediction_length "
                    f"{member.prediction_length}, the first {first.prediction_length}: train all "
                    "with the same"
                )
        try:
            schema = common_schema((None, member.schema) for member in predictors)
        except DataError as error:
            raise DeltaflowError(
                f"the predictors of the ensemble were trained on other channels or features than "
                f"each other: {error}"
            ) from None
        for member in predictors:
            member.schema.warn_with(schema)
        super().__init__(first.prediction_length, schema)
        self.predictors: list[DeltaflowPredictor] = list(predictors)
        equal = [1 / len(predictors)] * len(predictors)
        self.weights: list[float] = equal if weights is None else list(weights)
        if len(self.weights) != len(predictors) or not all(one > 0 for one in self.weights):
            raise DeltaflowError(
                f"{weights} are not the weights of {len(predictors)} predictors: give a positive "
                "number for each"
            )
        if not math.isclose(sum(self.weights), 1, rel_tol=1e-6):
            raise DeltaflowError(f"the weights {weights} do not sum to 1")

    @classmethod
    def of(cls, predictors: Sequence[DeltaflowPredictor]) -> DeltaflowPredictor:
        """Return the average of predictors; of a single one, the predictor itself."""
        return predictors[0] if len(predictors) == 1 else cls(list(predictors))

    def predict(
        self, dataset: Dataset, num_samples: int | None = None, seed: int | None = None
    ) -> Iterator[RealTimeForecast]:
        """Forecast each entry by every predictor; see `DeltaflowPredictor.predict`.

        Each predictor draws its own samples, with a seed derived from ``seed``. ``num_samples`` are
        those of the average, see `RealTimeForecast.to_sample_forecast`.
        """
        if num_samples and self.draws_paths:
            paths = self._averages(dataset, num_samples, seed)
            return (forecast.to_sample_forecast() for forecast in paths)
        return sampled(self._averages(dataset, None, seed), num_samples, seed)

    def _averages(
        self, dataset: Dataset, num_samples: int | None, seed: int | None
    ) -> Iterator[EnsembleForecast]:
        check_seed(seed)
        count = len(self.predictors)
        seeds = [derived_seed(seed, number) for number in range(count)]
        if _read_alike(self.predictors):
            readings = tee(self.predictors[0].read(dataset), count)
            members = [
                predictor.answer(reading, num_samples, own)
                for predictor, reading, own in zip(self.predictors, readings, seeds, strict=True)
            ]
        else:
            entries = list(entries_of(dataset))
            members: list[Any] = [
                predictor.predict(entries, num_samples=num_samples, seed=own)
                for predictor, own in zip(self.predictors, seeds, strict=True)
            ]
        for forecasts in zip(*members, strict=True):
            yield EnsembleForecast(forecasts, self.weights)

    def combine(self, forecasts: Sequence[RealTimeForecast], lead: np.ndarray) -> EnsembleForecast:
        """Average the forecasts; see `DeltaflowPredictor.combine`."""
        return EnsembleForecast(forecasts, self.weights)

    def summary(self) -> dict[str, Any]:
        """Return a description of the predictor, and the weight of each member."""
        return {**super().summary(), "weights": [round(weight, 3) for weight in self.weights]}


def _read_alike(
    predictors: Sequence[DeltaflowPredictor],
) -> TypeGuard[Sequence[IrregularPredictor]]:
    """Return whether all predictors can forecast from the first one's input."""
    first = predictors[0]
    return isinstance(first, IrregularPredictor) and all(
        isinstance(member, IrregularPredictor)
        and (member.reader, member.batch_size) == (first.reader, first.batch_size)
        for member in predictors
    )
