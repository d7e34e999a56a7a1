"""The command `deltaflow serve`."""

from __future__ import annotations

import argparse
import gc
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from deltaflow.errors import DeltaflowError, check_between, check_whole
from deltaflow.forecast.live import LiveForecaster
from deltaflow.forecast.loading import load_predictor
from deltaflow.process import one_thread
from deltaflow.saving import remove_unfinished
from deltaflow.serve.app import MAX_BYTES, MAX_ROWS, Snapshots, make_app

TOKEN = "DELTAFLOW_TOKEN"
"""The environment variable of the token, since other users can see command lines."""

PATIENCE = 10
"""Seconds that requests have to finish before the process ends."""


@one_thread()
def main(options: Sequence[str]) -> int:
    """Serve a predictor until the process is stopped; the status is 1 if saving failed."""
    parser = argparse.ArgumentParser(
        prog="deltaflow serve",
        description="Serve a trained predictor over HTTP: observations in as they arrive, "
        f"forecasts of any later time out. If the environment has {TOKEN}, each request must bear "
        "this token.",
    )
    parser.add_argument("predictor", type=Path, help="directory of a predictor, or a checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port (%(default)s)")
    parser.add_argument(
        "--snapshot",
        type=Path,
        help="file in which all states are saved, and from which a restart resumes",
    )
    parser.add_argument(
        "--every", type=float, default=60.0, help="seconds between two snapshots (%(default)s)"
    )
    parser.add_argument(
        "--item_id", default="item_id", help="field of item identifiers (%(default)s)"
    )
    parser.add_argument("--timestamp", default="timestamp", help="field of times (%(default)s)")
    parser.add_argument(
        "--max_rows",
        type=int,
        default=MAX_ROWS,
        help="largest number of rows of a request (%(default)s)",
    )
    parser.add_argument(
        "--max_bytes",
        type=int,
        default=MAX_BYTES,
        help="largest size of a request in bytes (%(default)s)",
    )
    given = parser.parse_args(options)
    check_whole(1, max_rows=given.max_rows, max_bytes=given.max_bytes)
    check_between(0, 65535, port=given.port)  # larger ports would wrap around
    if not given.every > 0:
        raise DeltaflowError(f"--every must be a positive number of seconds, got {given.every}")

    live = start(given.predictor, given.snapshot, given.item_id, given.timestamp)
    snapshots = None if given.snapshot is None else Snapshots(live, given.snapshot, given.every)
    token = os.environ.get(TOKEN)
    if not token and not _is_loopback(given.host):
        print(f"deltaflow serve: anyone who reaches {given.host} may read and write, because "
              f"there is no {TOKEN}", file=sys.stderr)  # fmt: skip
    app = make_app(
        live, snapshots=snapshots, token=token, max_rows=given.max_rows, max_bytes=given.max_bytes
    )
    # A full garbage collection would visit all objects of the libraries, and stop the server for a
    # quarter of a second. They are never freed anyway.
    gc.collect()
    gc.freeze()
    uvicorn.run(
        app, host=given.host, port=given.port, access_log=False, timeout_graceful_shutdown=PATIENCE
    )
    return int(snapshots is not None and snapshots.problem is not None)


def start(
    predictor: Path, snapshot: Path | None, item_id: str | None, timestamp: str
) -> LiveForecaster:
    """Return a forecaster that resumes from its snapshot, or a new one if there is none.

    Raises
    ------
    DeltaflowError
        If the snapshot belongs to another predictor, or has other names.
    """
    loaded = load_predictor(predictor)
    if snapshot is not None:
        remove_unfinished(snapshot)
    if snapshot is None or not snapshot.exists():
        return LiveForecaster(loaded, item_id=item_id, timestamp=timestamp)
    live = LiveForecaster.load(snapshot)
    if not live.is_of(loaded) or (live.item_id, live.timestamp) != (item_id, timestamp):
        raise DeltaflowError(
            f"the snapshot {snapshot} is of another predictor than {predictor}, or has other "
            "names for item and time: give another file, in which items start from scratch"
        )
    return live


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
