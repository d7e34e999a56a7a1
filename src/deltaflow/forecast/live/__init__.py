"""Live forecasting: observations in as they arrive, forecasts of any later time out."""

from deltaflow.forecast.live.forecaster import LiveForecaster

__all__ = ["LiveForecaster"]
