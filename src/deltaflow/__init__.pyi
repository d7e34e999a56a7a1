"""The public names of deltaflow, each imported from its module when it is first used."""

from deltaflow import compare as compare
from deltaflow import data as data
from deltaflow import encoders as encoders
from deltaflow import flows as flows
from deltaflow import forecast as forecast
from deltaflow import heads as heads
from deltaflow import model as model
from deltaflow import tasks as tasks
from deltaflow import training as training
from deltaflow._version import __version__ as __version__
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
