"""The safe way to load a predictor: only deltaflow's own classes, only weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from deltaflow.errors import DeltaflowError
from deltaflow.forecast.ensemble import EnsemblePredictor
from deltaflow.forecast.hold import HoldPredictor
from deltaflow.forecast.network_predictor import IrregularPredictor, load_weights, refusing
from deltaflow.model.lightning_module import ForecastLightningModule
from deltaflow.saving import MARKER

PREDICTORS: dict[str, type[IrregularPredictor | HoldPredictor | EnsemblePredictor]] = {
    f"{cls.__module__}.{cls.__qualname__}": cls
    for cls in (IrregularPredictor, HoldPredictor, EnsemblePredictor)
}
"""The classes that `load_predictor` builds, by the name that a directory gives them."""


def load_predictor(
    path: str | Path, device: str = "auto"
) -> IrregularPredictor | HoldPredictor | EnsemblePredictor:
    """Load a predictor from what ``serialize`` or Lightning wrote, executing nothing of it.

    GluonTS's ``Predictor.deserialize`` imports whatever class the directory names. This function
    reads plain JSON, builds one of deltaflow's own predictors, and loads weights only.

    Parameters
    ----------
    path
        The directory of a serialised predictor, or a checkpoint of `ForecastLightningModule`.
    device
        Where to compute, ``"auto"`` for an accelerator if there is one.

    Raises
    ------
    DeltaflowError
        If there is no predictor of deltaflow.
    """
    path = Path(path)
    if path.is_file():
        checkpoint = read_checkpoint(path)
        # The initial weights are never used, so they must not move the caller's random state.
        with refusing(path), torch.random.fork_rng(devices=[]):
            module = ForecastLightningModule(**checkpoint["hyper_parameters"])
            load_weights(module, checkpoint["state_dict"])
        return module.to_predictor().to(device)
    try:
        name = json.loads((path / MARKER).read_text())["type"]
    except Exception as error:  # a damaged or foreign file may cause any
        raise DeltaflowError(f"{path} holds no predictor ({error})") from error
    if not isinstance(name, str) or name not in PREDICTORS:
        raise DeltaflowError(
            f"{path} holds a {name!r}, which is not a predictor of deltaflow; if you trust it, "
            "load it with gluonts.model.predictor.Predictor.deserialize"
        )
    return PREDICTORS[name].deserialize(path, device=device)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of `ForecastLightningModule`, unpickling weights and plain values only.

    Raises
    ------
    DeltaflowError
        If there is no such file, or it is no such checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DeltaflowError(f"there is no checkpoint {str(path)!r}") from error
    except Exception as error:  # a damaged or foreign file may cause any
        raise DeltaflowError(f"{path} is no checkpoint of weights and plain values") from error
    options = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(options, dict) or "spec" not in options:
        raise DeltaflowError(f"{path} is no checkpoint of a ForecastLightningModule")
    return checkpoint
