"""deltaflow: forecasting of irregularly sampled time series with neural flows, in GluonTS.

Names are imported when they are first used (PEP 562): `import deltaflow` costs nothing, and
`import deltaflow.flows` imports torch alone.
"""

from typing import TYPE_CHECKING

from deltaflow._lazy import lazy
from deltaflow._version import __version__ as __version__

if TYPE_CHECKING:
    from deltaflow.compare.resampled import ResampledEstimator as ResampledEstimator
    from deltaflow.data import ArrowDataset as ArrowDataset
    from deltaflow.data import IrregularDataModule as IrregularDataModule
    from deltaflow.data import IrregularDataset as IrregularDataset
    from deltaflow.data import TimeSplitter as TimeSplitter
    from deltaflow.data import parquet_to_arrow as parquet_to_arrow
    from deltaflow.data import split_items as split_items
    from deltaflow.data import split_items_by as split_items_by
    from deltaflow.data import write_arrow as write_arrow
    from deltaflow.errors import DataError as DataError
    from deltaflow.errors import DeltaflowError as DeltaflowError
    from deltaflow.errors import DeltaflowWarning as DeltaflowWarning
    from deltaflow.errors import UnknownNameError as UnknownNameError
    from deltaflow.forecast.backtest import Backtest as Backtest
    from deltaflow.forecast.backtest import backtest_df as backtest_df
    from deltaflow.forecast.backtest import future_df as future_df
    from deltaflow.forecast.conformal import ConformalPredictor as ConformalPredictor
    from deltaflow.forecast.ensemble import EnsemblePredictor as EnsemblePredictor
    from deltaflow.forecast.frame import predict_df as predict_df
    from deltaflow.forecast.hold import HoldEstimator as HoldEstimator
    from deltaflow.forecast.hold import HoldPredictor as HoldPredictor
    from deltaflow.forecast.live import LiveForecaster as LiveForecaster
    from deltaflow.forecast.loading import load_predictor as load_predictor
    from deltaflow.forecast.network_predictor import IrregularPredictor as IrregularPredictor
    from deltaflow.forecast.plot import plot_forecasts as plot_forecasts
    from deltaflow.forecast.predictor import DeltaflowPredictor as DeltaflowPredictor
    from deltaflow.forecast.support import SupportPredictor as SupportPredictor
    from deltaflow.forecast.widening import WideningPredictor as WideningPredictor
    from deltaflow.forecast.writer import ForecastWriter as ForecastWriter
    from deltaflow.training.auto import AutoEstimator as AutoEstimator
    from deltaflow.training.estimator import CouplingFlowEstimator as CouplingFlowEstimator
    from deltaflow.training.estimator import GRUDEstimator as GRUDEstimator
    from deltaflow.training.estimator import GRUEstimator as GRUEstimator
    from deltaflow.training.estimator import GRUFlowEstimator as GRUFlowEstimator
    from deltaflow.training.estimator import GRUODEEstimator as GRUODEEstimator
    from deltaflow.training.estimator import IrregularEstimator as IrregularEstimator
    from deltaflow.training.estimator import LinearFlowEstimator as LinearFlowEstimator
    from deltaflow.training.estimator import NeuralCDEEstimator as NeuralCDEEstimator
    from deltaflow.training.estimator import ODERNNEstimator as ODERNNEstimator
    from deltaflow.training.estimator import ResNetFlowEstimator as ResNetFlowEstimator
    from deltaflow.training.lightning_module import (
        ForecastLightningModule as ForecastLightningModule,
    )

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "_version": ("__version__",),
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
