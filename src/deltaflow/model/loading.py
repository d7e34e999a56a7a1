"""The safe way to load a predictor: only deltaflow's own classes, only weights."""

from __future__ import annotations

import json
from pathlib import Path

from deltaflow.errors import DeltaflowError
from deltaflow.model.ensemble import EnsemblePredictor
from deltaflow.model.hold import HoldPredictor
from deltaflow.model.predictor import IrregularPredictor

PREDICTORS: dict[str, type[IrregularPredictor | HoldPredictor | EnsemblePredictor]] = {
    f"{cls.__module__}.{cls.__qualname__}": cls
    for cls in (IrregularPredictor, HoldPredictor, EnsemblePredictor)
}
"""The classes that `load_predictor` builds, by the name that a directory gives them."""


def load_predictor(
    path: str | Path, device: str = "auto"
) -> IrregularPredictor | HoldPredictor | EnsemblePredictor:
    """Load a predictor from the directory that ``serialize`` wrote, executing nothing of it.

    GluonTS's ``Predictor.deserialize`` imports whatever class the directory names. This function
    reads plain JSON, builds one of deltaflow's own predictors, and loads weights only.

    Parameters
    ----------
    path
        The directory.
    device
        Where to compute, ``"auto"`` for an accelerator if there is one.

    Raises
    ------
    DeltaflowError
        If the directory holds no predictor of deltaflow.
    """
    path = Path(path)
    try:
        name = json.loads((path / "gluonts-config.json").read_text())["type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeltaflowError(f"{path} holds no predictor ({error})") from error
    if not isinstance(name, str) or name not in PREDICTORS:
        raise DeltaflowError(
            f"{path} holds a {name!r}, which is not a predictor of deltaflow; if you trust it, "
            "load it with gluonts.model.predictor.Predictor.deserialize"
        )
    return PREDICTORS[name].deserialize(path, device=device)
