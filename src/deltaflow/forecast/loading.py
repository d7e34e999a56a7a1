"""Safe loading of predictors: only registered classes, only weights."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from deltaflow.errors import DeltaflowError
from deltaflow.forecast.network_predictor import IrregularPredictor, load_weights
from deltaflow.forecast.predictor import DeltaflowPredictor, find_device, load_directory
from deltaflow.model.options import ModelOptions
from deltaflow.saving import check_format, reading

FORMAT_KEY = "deltaflow_format"
"""The key of the format number in a checkpoint."""

NETWORK_OPTIONS = {option.name for option in fields(ModelOptions)} - {"distr_output"}
"""The options of `ForecastLightningModule` that belong to its network."""


def load_predictor(path: str | Path, device: str = "auto") -> DeltaflowPredictor:
    """Load a predictor written by ``serialize`` or Lightning, without executing any stored code.

    GluonTS's ``Predictor.deserialize`` imports any class that the directory names. This function
    reads plain JSON, builds predictors of the registered classes only, and unpickles weights only.

    Parameters
    ----------
    path
        The directory of a serialised predictor, or a checkpoint of a `ForecastLightningModule`.
    device
        The device, ``"auto"`` for a GPU if there is one.

    Raises
    ------
    DeltaflowError
        If there is no predictor of deltaflow, or no such device.
    """
    path = Path(path)
    if not path.is_file():
        return load_directory(path, device)
    find_device(device)
    checkpoint = read_checkpoint(path)
    with reading(path):
        options, stored = checkpoint["hyper_parameters"], checkpoint["state_dict"]
        network = {name: options[name] for name in options.keys() & NETWORK_OPTIONS}
        predictor = IrregularPredictor(
            reader=options["reader"],
            prediction_length=options["prediction_length"],
            network=network,
            distr_output=options["distr_output"],
            device=device,
        )
        prefix = "network."  # a subclass may have further layers
        own = [name for name in stored if name.startswith(prefix)]
        weights = {name.removeprefix(prefix): stored[name] for name in own}
        load_weights(predictor.network, weights)
    return predictor


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of `ForecastLightningModule`, unpickling weights and plain values only.

    Raises
    ------
    DeltaflowError
        If the file is missing, is not a checkpoint of a module, or has another format.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DeltaflowError(f"there is no checkpoint {str(path)!r}") from error
    except Exception as error:  # a damaged or foreign file may cause any error
        raise DeltaflowError(f"{path} is not a checkpoint of weights and plain values") from error
    options = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(options, dict) or not {"encoder", "network"} <= options.keys():
        raise DeltaflowError(f"{path} is not a checkpoint of a ForecastLightningModule")
    check_format(checkpoint.get(FORMAT_KEY), path)
    return checkpoint
