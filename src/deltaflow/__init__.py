"""deltaflow: forecasting of irregularly sampled time series with neural flows, in GluonTS."""

from deltaflow._version import __version__
from deltaflow.data import (
    ArrowDataset,
    IrregularDataModule,
    IrregularDataset,
    TimeSplitter,
    parquet_to_arrow,
    split_items,
    split_items_by,
    write_arrow,
)
from deltaflow.errors import DataError, DeltaflowError, DeltaflowWarning, UnknownNameError
from deltaflow.forecast.conformal import ConformalPredictor
from deltaflow.forecast.ensemble import EnsemblePredictor
from deltaflow.forecast.frame import predict_df
from deltaflow.forecast.hold import HoldEstimator, HoldPredictor
from deltaflow.forecast.loading import load_predictor
from deltaflow.forecast.network_predictor import IrregularPredictor
from deltaflow.forecast.plot import plot_forecasts
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.forecast.writer import ForecastWriter
from deltaflow.model.estimator import (
    CouplingFlowEstimator,
    GRUDEstimator,
    GRUEstimator,
    GRUFlowEstimator,
    GRUODEEstimator,
    IrregularEstimator,
    LinearFlowEstimator,
    NeuralCDEEstimator,
    ODERNNEstimator,
    ResNetFlowEstimator,
)
from deltaflow.model.lightning_module import ForecastLightningModule
from deltaflow.model.resampled import ResampledEstimator

__all__ = [
    "ArrowDataset",
    "ConformalPredictor",
    "CouplingFlowEstimator",
    "DataError",
    "DeltaflowError",
    "DeltaflowPredictor",
    "DeltaflowWarning",
    "EnsemblePredictor",
    "ForecastLightningModule",
    "ForecastWriter",
    "GRUDEstimator",
    "GRUEstimator",
    "GRUFlowEstimator",
    "GRUODEEstimator",
    "HoldEstimator",
    "HoldPredictor",
    "IrregularDataModule",
    "IrregularDataset",
    "IrregularEstimator",
    "IrregularPredictor",
    "LinearFlowEstimator",
    "NeuralCDEEstimator",
    "ODERNNEstimator",
    "ResNetFlowEstimator",
    "ResampledEstimator",
    "TimeSplitter",
    "UnknownNameError",
    "__version__",
    "load_predictor",
    "parquet_to_arrow",
    "plot_forecasts",
    "predict_df",
    "split_items",
    "split_items_by",
    "write_arrow",
]
