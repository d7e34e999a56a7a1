"""Saving without half-written files, and loading with errors that name the file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from deltaflow._version import __version__
from deltaflow.errors import DeltaflowError

FORMAT = 2
"""The format of stored predictors and checkpoints. It increases whenever files in an earlier format
can no longer be read."""

MARKER = "gluonts-config.json"
"""The file by which a directory is recognised as a saved predictor."""

_UNFINISHED = ".unfinished-"
"""The prefix of folders whose files are still being written."""


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of a new file to write, which then replaces the file at ``path``.

    If writing fails, for example because the disk is full, the old file is kept. The new file is
    written to a folder next to the old one: across file systems, a rename would be a copy.

    Parameters
    ----------
    path
        The file to replace. Its directory is created if it does not exist.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=_UNFINISHED, dir=path.parent) as folder:
            new = Path(folder, path.name)
            yield new
            new.replace(path)
    except OSError as error:
        named = error.filename
        if error.errno is not None and (named is None or _UNFINISHED in str(named)):
            error.filename = str(path)
        raise


def remove_unfinished(path: str | Path) -> None:
    """Delete the leftovers of processes that were killed while replacing a file.

    No process may be writing the file.
    """
    path = Path(path)
    for folder in path.parent.glob(f"{_UNFINISHED}*"):
        if (folder / path.name).exists():
            shutil.rmtree(folder)


def write(path: Path, content: str | bytes) -> None:
    """Write a file atomically. Text is encoded in UTF-8."""
    with replacing_file(path) as file:
        file.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a new folder to write into, whose files are then moved into the directory.

    If writing fails, for example because the disk is full, the directory keeps its old content.
    The move itself only renames. A process that is killed during the move leaves a directory
    without `MARKER`, which cannot be loaded: the weights of one predictor are never loaded with
    the scaling of another.

    Parameters
    ----------
    path
        The directory of the predictor, which is created if it does not exist.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=_UNFINISHED, dir=path) as folder:
        new, old = Path(folder, "new"), Path(folder, "old")
        new.mkdir()
        yield new
        old.mkdir()
        (path / MARKER).unlink(missing_ok=True)
        for written in sorted(new.iterdir(), key=lambda entry: entry.name == MARKER):
            place = path / written.name
            if place.is_dir():  # a folder cannot be renamed to the name of an existing one
                place.rename(old / written.name)
            written.rename(place) if written.is_dir() else written.replace(place)


def check_format(stored: object, path: str | Path) -> None:
    """Raise an error if a file was stored in another format, or in one without a number.

    Raises
    ------
    DeltaflowError
        The error names the file.
    """
    if stored != FORMAT:
        raise DeltaflowError(
            f"{path} is stored in format {stored}, and deltaflow {__version__} reads format "
            f"{FORMAT}: train the model again, or use the version of deltaflow that stored it"
        )


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn any failure to read a file into an error that names the file."""
    try:
        yield
    except DeltaflowError:
        raise
    except Exception as error:  # a damaged or foreign file can cause any exception
        raise DeltaflowError(
            f"{path} is missing, damaged, or of another version than deltaflow {__version__} "
            f"({type(error).__name__}: {error}); save the predictor again"
        ) from error
