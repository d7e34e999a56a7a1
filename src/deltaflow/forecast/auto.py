"""The result of a search: a predictor, and the leaderboard of all trials."""

from typing import Any

import numpy as np
import pandas as pd
from gluonts.core.component import validated

from deltaflow.forecast.forecasts import RealTimeForecast
from deltaflow.forecast.predictor import DeltaflowPredictor, WrappedPredictor


class AutoPredictor(WrappedPredictor):
    """The predictor found by a search, and its trials.

    Parameters
    ----------
    predictor
        The predictor: the best networks, blended and calibrated.
    trials
        For each trained network its options, the number of its held-out fold, its quantile loss on
        that fold relative to that of a `HoldPredictor`, its training time in seconds, and whether
        it was chosen.

    Attributes
    ----------
    leaderboard
        The trials as a table, the best first.
    """

    @validated()
    def __init__(self, predictor: DeltaflowPredictor, trials: list) -> None:
        super().__init__(predictor)
        self.trials = [dict(trial) for trial in trials]
        self.leaderboard = pd.DataFrame(self.trials).sort_values("loss", ignore_index=True)

    def adjusted(self, forecast: RealTimeForecast, lead: np.ndarray) -> RealTimeForecast:
        """Return the forecast unchanged."""
        return forecast

    def summary(self) -> dict[str, Any]:
        """Return a description of the predictor, and the leaderboard."""
        return {**super().summary(), "leaderboard": self.leaderboard.to_dict("records")}
