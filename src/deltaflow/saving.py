"""Saving that leaves no half of a file behind, and loading that names the file that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from deltaflow._version import __version__
from deltaflow.errors import DeltaflowError

MARKER = "gluonts-config.json"
"""The file without which a directory holds no predictor."""


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Give a new file to write, which then takes the place of the one at ``path``.

    If writing fails, as on a full disk, what was there before stays. The file lies beside its place
    meanwhile, under its own name: between two file systems, renaming would be copying.

    Parameters
    ----------
    path
        The file, whose directory is made if need be.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".unfinished-", dir=path.parent) as folder:
            new = Path(folder, path.name)
            yield new
            new.replace(path)
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)  # a full disk names none, others the unfinished one
        raise


def write(path: Path, content: str | bytes) -> None:
    """Write a file that is never seen half-written; text in UTF-8."""
    with replacing_file(path) as file:
        file.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a new folder to write into, whose content then takes its place in the directory.

    If writing fails, as on a full disk, the directory keeps what it held. All that is left then is
    renaming. A process that is killed right there leaves a directory without `MARKER`, which is
    refused when it is loaded, and never the weights of one predictor beside the scaling of another.

    Parameters
    ----------
    path
        The directory of the predictor, which is made if need be.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".unfinished-", dir=path) as folder:
        new, old = Path(folder, "new"), Path(folder, "old")
        new.mkdir()
        yield new
        old.mkdir()
        (path / MARKER).unlink(missing_ok=True)
        for written in sorted(new.iterdir(), key=lambda entry: entry.name == MARKER):
            place = path / written.name
            if place.is_dir():  # a folder is not renamed over another
                place.rename(old / written.name)
            written.rename(place) if written.is_dir() else written.replace(place)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn whatever goes wrong with the content of a file into an error that names the file."""
    try:
        yield
    except DeltaflowError:
        raise
    except Exception as error:  # a damaged or foreign file may cause any
        raise DeltaflowError(
            f"{path} is missing, damaged, or of another version than deltaflow {__version__} "
            f"({type(error).__name__}: {error}); save the predictor again"
        ) from error
