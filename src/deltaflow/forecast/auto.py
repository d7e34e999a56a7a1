"""What a search returns: one predictor, and the leaderboard of all that was tried."""

from typing import Any

import numpy as np
import pandas as pd
from gluonts.core.component import validated

from deltaflow.forecast.forecasts import RealTimeForecast
from deltaflow.forecast.predictor import DeltaflowPredictor, WrappedPredictor


class AutoPredictor(WrappedPredictor):
    """The predictor that a search has put together, and what it has tried.

    Parameters
    ----------
    predictor
        The predictor: the best networks, blended and calibrated.
    trials
        What was tried: for each network its options, its quantile loss as a share of that of a
        `HoldPredictor` on the items left out, the seconds that it took, and its weight.

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
        """Return the forecast as it is."""
        return forecast

    def summary(self) -> dict[str, Any]:
        """Return what the predictor is, and the leaderboard."""
        return {**super().summary(), "leaderboard": self.leaderboard.to_dict("records")}
