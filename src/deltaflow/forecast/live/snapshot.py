"""Snapshots of a live forecaster: one file with the states and the predictor, without code."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from deltaflow.errors import DeltaflowError
from deltaflow.forecast.live.item_table import FrozenTable, read_records, write_records
from deltaflow.forecast.predictor import DeltaflowPredictor, load_directory
from deltaflow.saving import FORMAT, check_format, replacing_file

_CLASS = "LiveForecaster"
_HEAD, _PREDICTOR = "live.json", "predictor"
"""The contents of a snapshot besides its records: plain values and the predictor."""


def write_snapshot(
    path: str | Path, predictor: DeltaflowPredictor, about: dict[str, Any], records: FrozenTable
) -> None:
    """Write a snapshot; a previous one is replaced once the new one is on the disk."""
    with replacing_file(path) as new, open(new, "wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(_HEAD, json.dumps({"format": FORMAT, "class": _CLASS, **about}))
            with TemporaryDirectory() as folder:
                predictor.serialize(folder)
                for written in sorted(Path(folder).rglob("*")):
                    inner = Path(_PREDICTOR, written.relative_to(folder))
                    archive.write(written, inner.as_posix())
            write_records(archive, records)
        file.flush()
        os.fsync(file.fileno())


def read_snapshot(
    path: str | Path, device: str
) -> tuple[DeltaflowPredictor, dict[str, Any], list[str], Tensor]:
    """Return predictor, plain values, items and packed records, without executing stored code.

    Raises
    ------
    Exception
        Of any kind, if the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read(_HEAD))
        if about["class"] != _CLASS:
            raise DeltaflowError(f"{path} is not a snapshot of a {_CLASS}")
        check_format(about["format"], path)
        with TemporaryDirectory() as folder:
            inside = [name for name in archive.namelist() if name.startswith(_PREDICTOR)]
            archive.extractall(folder, inside)
            predictor = load_directory(Path(folder, _PREDICTOR), device)
        return predictor, about, *read_records(archive)
