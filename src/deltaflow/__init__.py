"""deltaflow: forecasting of irregularly sampled time series with neural flows, in GluonTS.

Names are imported when they are first used (PEP 562): `import deltaflow` costs nothing, and
`import deltaflow.flows` imports torch alone.
"""

from typing import TYPE_CHECKING

from deltaflow._lazy import lazy
from deltaflow._version import __version__

if TYPE_CHECKING:
    from deltaflow.compare.resampled import ResampledEstimator
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
    from deltaflow.forecast.backtest import Backtest, backtest_df, future_df
    from deltaflow.forecast.conformal import ConformalPredictor
    from deltaflow.forecast.ensemble import EnsemblePredictor
    from deltaflow.forecast.frame import predict_df
    from deltaflow.forecast.hold import HoldEstimator, HoldPredictor
    from deltaflow.forecast.live import LiveForecaster
    from deltaflow.forecast.loading import load_predictor
    from deltaflow.forecast.network_predictor import IrregularPredictor
    from deltaflow.forecast.plot import plot_forecasts
    from deltaflow.forecast.predictor import DeltaflowPredictor
    from deltaflow.forecast.support import SupportPredictor
    from deltaflow.forecast.widening import WideningPredictor
    from deltaflow.forecast.writer import ForecastWriter
    from deltaflow.training.auto import AutoEstimator
    from deltaflow.training.estimator import (
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
    from deltaflow.training.lightning_module import ForecastLightningModule

__all__ = [
    "ArrowDataset",
    "AutoEstimator",
    "Backtest",
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
    "LiveForecaster",
    "NeuralCDEEstimator",
    "ODERNNEstimator",
    "ResNetFlowEstimator",
    "ResampledEstimator",
    "SupportPredictor",
    "TimeSplitter",
    "UnknownNameError",
    "WideningPredictor",
    "__version__",
    "backtest_df",
    "future_df",
    "load_predictor",
    "parquet_to_arrow",
    "plot_forecasts",
    "predict_df",
    "split_items",
    "split_items_by",
    "write_arrow",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "data": (
            "ArrowDataset",
            "IrregularDataModule",
            "IrregularDataset",
            "TimeSplitter",
            "parquet_to_arrow",
            "split_items",
            "split_items_by",
            "write_arrow",
        ),
        "errors": ("DataError", "DeltaflowError", "DeltaflowWarning", "UnknownNameError"),
        "forecast.backtest": ("Backtest", "backtest_df", "future_df"),
        "forecast.conformal": ("ConformalPredictor",),
        "forecast.ensemble": ("EnsemblePredictor",),
        "forecast.frame": ("predict_df",),
        "forecast.hold": ("HoldEstimator", "HoldPredictor"),
        "forecast.live": ("LiveForecaster",),
        "forecast.loading": ("load_predictor",),
        "forecast.network_predictor": ("IrregularPredictor",),
        "forecast.plot": ("plot_forecasts",),
        "forecast.predictor": ("DeltaflowPredictor",),
        "forecast.support": ("SupportPredictor",),
        "forecast.widening": ("WideningPredictor",),
        "forecast.writer": ("ForecastWriter",),
        "training.auto": ("AutoEstimator",),
        "training.estimator": (
            "CouplingFlowEstimator",
            "GRUDEstimator",
            "GRUEstimator",
            "GRUFlowEstimator",
            "GRUODEEstimator",
            "IrregularEstimator",
            "LinearFlowEstimator",
            "NeuralCDEEstimator",
            "ODERNNEstimator",
            "ResNetFlowEstimator",
        ),
        "training.lightning_module": ("ForecastLightningModule",),
        "compare.resampled": ("ResampledEstimator",),
    },
    submodules=(
        "compare",
        "data",
        "encoders",
        "flows",
        "forecast",
        "heads",
        "model",
        "tasks",
        "training",
    ),
)
