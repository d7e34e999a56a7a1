"""Predictors: entries or DataFrames in, forecasts out."""

from deltaflow.forecast.auto import AutoPredictor
from deltaflow.forecast.conformal import ConformalPredictor
from deltaflow.forecast.ensemble import EnsemblePredictor
from deltaflow.forecast.gaussian_process.predictor import GaussianProcessPredictor
from deltaflow.forecast.hold import HoldPredictor
from deltaflow.forecast.network_predictor import IrregularPredictor
from deltaflow.forecast.predictor import PREDICTORS
from deltaflow.forecast.seasonal import SeasonalPredictor
from deltaflow.forecast.support import SupportPredictor
from deltaflow.forecast.widening import WideningPredictor

_OWN = (
    AutoPredictor,
    ConformalPredictor,
    EnsemblePredictor,
    GaussianProcessPredictor,
    HoldPredictor,
    IrregularPredictor,
    SeasonalPredictor,
    SupportPredictor,
    WideningPredictor,
)
PREDICTORS |= {cls.__name__: cls for cls in _OWN}
