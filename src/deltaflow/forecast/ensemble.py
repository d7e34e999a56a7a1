"""An ensemble: the average forecast of several trained predictors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.model.predictor import Predictor, RepresentablePredictor

from deltaflow._version import __version__
from deltaflow.data.schema import Schema
from deltaflow.errors import DeltaflowError
from deltaflow.forecast.forecasts import EnsembleForecast
from deltaflow.forecast.hold import HoldPredictor
from deltaflow.forecast.network_predictor import IrregularPredictor, read_arguments
from deltaflow.saving import replacing


class EnsemblePredictor(RepresentablePredictor):
    """Forecasts the average of what several predictors forecast.

    Means are averaged, and quantiles level by level: the average of several forecasts of the same
    shape has that shape, and a width between theirs (Lichtendahl, Grushka-Cockayne & Winkler,
    *Is It Better to Average Probabilities or Quantiles?*, 2013).

    Parameters
    ----------
    predictors
        At least one predictor; all of them trained on data of the same schema, with the same
        ``prediction_length``.

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

    __version__: str = __version__

    @validated()
    def __init__(self, predictors: list) -> None:
        known = (IrregularPredictor, HoldPredictor, EnsemblePredictor)
        if not predictors or not all(isinstance(member, known) for member in predictors):
            names = ", ".join(type(member).__name__ for member in predictors) or "none"
            raise DeltaflowError(
                f"an ensemble is made of predictors of deltaflow, got {names}: give what its "
                "estimators train"
            )
        first = predictors[0]
        for number, member in enumerate(predictors):
            if member.prediction_length != first.prediction_length:
                raise DeltaflowError(
                    f"predictor {number} of the ensemble has prediction_length "
                    f"{member.prediction_length}, the first {first.prediction_length}: train all "
                    "with the same"
                )
            if member.schema != first.schema:
                raise DeltaflowError(
                    f"predictor {number} of the ensemble was trained on other channels or "
                    "features than the first: train all on data of one schema"
                )
        super().__init__(first.prediction_length)
        self.predictors: list[Any] = list(predictors)

    @property
    def schema(self) -> Schema:
        """What the data hold."""
        return self.predictors[0].schema

    def predict(
        self, dataset: Dataset, num_samples: int | None = None, seed: int | None = None
    ) -> Iterator[EnsembleForecast]:
        """Forecast each entry by every predictor; see `IrregularPredictor.predict`.

        Each predictor draws samples with a seed of its own, derived from ``seed``.
        """
        entries = list(dataset)
        members = [
            predictor.predict(
                entries, num_samples=num_samples, seed=None if seed is None else seed + number
            )
            for number, predictor in enumerate(self.predictors)
        ]
        for forecasts in zip(*members, strict=True):
            yield EnsembleForecast(forecasts)

    def serialize(self, path: str | Path) -> None:
        """Write the predictors into subfolders ``0``, ``1``, … of a directory; see `replacing`."""
        cls = type(self)
        described = {
            "class": f"{cls.__module__}.{cls.__qualname__}",
            "kwargs": {"num_predictors": len(self.predictors)},
        }
        with replacing(path) as folder:
            Predictor.serialize(self, folder)
            (folder / "predictor.json").write_text(json.dumps(described))
            for number, predictor in enumerate(self.predictors):
                predictor.serialize(folder / str(number))

    @classmethod
    def deserialize(cls, path: str | Path, device: str = "auto") -> "EnsemblePredictor":
        """Read a predictor that :meth:`serialize` wrote; its parts by `load_predictor`."""
        from deltaflow.forecast.loading import load_predictor  # which knows this class

        path = Path(path)
        count = read_arguments(path, cls).get("num_predictors")
        if not isinstance(count, int):
            raise DeltaflowError(f"{path / 'predictor.json'} names no num_predictors")
        return cls([load_predictor(path / str(number), device) for number in range(count)])
