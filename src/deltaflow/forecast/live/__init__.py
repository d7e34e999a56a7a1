"""Live forecasting: reading observations as they arrive, forecasting at any later time."""

from deltaflow.forecast.live.forecaster import LiveForecaster

__all__ = ["LiveForecaster"]
