"""The HTTP interface of a live forecaster."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import pandas as pd
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import PlainTextResponse
from starlette.routing import Match

from deltaflow._version import __version__
from deltaflow.data.validation import as_text
from deltaflow.errors import DataError, DeltaflowError
from deltaflow.forecast.columns import check_answer
from deltaflow.forecast.forecasts import read_levels
from deltaflow.forecast.live import LiveForecaster
from deltaflow.serve.rows import Columns, Rows, observations, queries
from deltaflow.serve.together import Together

logger = logging.getLogger("uvicorn.error")

MAX_ROWS = 100_000
"""The default largest number of rows of a request."""

MAX_BYTES = 64 * 2**20
"""The default largest size of a request's body, in bytes."""

FEW_BYTES = 2**16
"""Bodies up to this size are read directly; longer ones in a thread."""

Level = Annotated[float, Query(gt=0, lt=1)]


class Refusal(BaseModel):
    """The problem with a request, and its place."""

    error: str
    item: str | None = None
    field: str | None = None
    row: int | str | None = None


def _refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of error responses."""
    return {status: {"model": Refusal} for status in statuses}


class Snapshots:
    """Saves a live forecaster at regular intervals, if anything has changed.

    Parameters
    ----------
    live
        The forecaster.
    path
        The file of the snapshot.
    every
        Seconds between two snapshots.

    Attributes
    ----------
    changes
        The number of rows read and items forgotten since the start.
    saved_changes
        The number of these changes in the snapshot.
    saved
        The time of the last snapshot; None if there was none since the start.
    problem
        The reason why the last attempt failed, if it did.
    """

    def __init__(self, live: LiveForecaster, path: str | Path, every: float) -> None:
        self.live, self.path, self.every = live, Path(path), every
        self.changes = self.saved_changes = 0
        self.saved: float | None = None
        self.problem: str | None = None
        self._saver = ThreadPoolExecutor(max_workers=1)  # each thread would keep its own memory

    def save(self) -> None:
        """Save if anything has changed; a failure is logged."""
        changes = self.changes
        if self.saved is not None and changes == self.saved_changes:
            return
        try:
            self.live.save(self.path)
        except Exception as error:  # for example a full disk: the previous snapshot stays
            self.problem = str(error)
            logger.exception("no snapshot")
        else:
            self.saved_changes, self.saved, self.problem = changes, time.time(), None

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Save at regular intervals during the context, and at its end."""

        loop = asyncio.get_running_loop()

        async def keep_saving() -> None:
            while True:
                await asyncio.sleep(self.every)
                await loop.run_in_executor(self._saver, self.save)

        task = asyncio.create_task(keep_saving())
        try:
            yield
        finally:
            task.cancel()
            await loop.run_in_executor(self._saver, self.save)


class _Metrics:
    """The metrics for Prometheus."""

    def __init__(self, live: LiveForecaster, snapshots: Snapshots | None) -> None:
        self.registry = registry = CollectorRegistry()
        self.rows = Counter(
            "deltaflow_rows", "Rows of requests that were answered", ["route"], registry=registry
        )
        self.refused = Counter(
            "deltaflow_refused_requests", "Refused requests", ["status"], registry=registry
        )
        self.seconds = Histogram(
            "deltaflow_request_seconds",
            "Seconds from a request's body to its answer",
            ["route"],
            registry=registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
        )
        items = Gauge("deltaflow_items", "Items with a state", registry=registry)
        items.set_function(lambda: len(live))
        if snapshots is not None:
            saved = Gauge(
                "deltaflow_snapshot_timestamp_seconds", "Time of the snapshot", registry=registry
            )
            saved.set_function(lambda: snapshots.saved or 0.0)


def make_app(
    live: LiveForecaster,
    *,
    snapshots: Snapshots | None = None,
    token: str | None = None,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
) -> FastAPI:
    """Return the application that serves a live forecaster.

    Parameters
    ----------
    live
        The forecaster.
    snapshots
        The snapshots to save, if any.
    token
        The token that each request except ``/health`` and the documentation must carry.
    max_rows, max_bytes
        The largest number of rows, and the largest size of the body, of a request.
    """

    app = FastAPI(
        title="deltaflow",
        version=__version__,
        description="Reads observations as they arrive, and forecasts at any later time.",
        lifespan=lambda _: nullcontext() if snapshots is None else snapshots.kept(),
        responses=_refused(422, *([401] if token else [])),
    )
    metrics = _Metrics(live, snapshots)
    together, answers = Together(), _Answers(live, max_rows)
    reader = ThreadPoolExecutor(max_workers=1)

    async def read(rows: Rows, request: Request) -> Columns:
        """Return the rows of a request, within the limits; long ones are read in a thread."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise HTTPException(413, f"the body is larger than {max_bytes} bytes")
        content_type = _type_of(request)
        if content_type not in ("application/json", "text/csv"):
            raise HTTPException(415, "send application/json or text/csv")
        if len(body) <= FEW_BYTES:
            return rows.read(bytes(body), content_type)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(reader, rows.read, bytes(body), content_type)

    bearer = HTTPBearer(auto_error=False)

    async def check_token(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> None:
        own = (token or "").encode()
        if given is None or not secrets.compare_digest(given.credentials.encode(), own):
            raise HTTPException(
                401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"}
            )

    guarded = [*([Depends(check_token)] if token else []), Depends(_check_parameters)]

    @app.exception_handler(DataError)
    async def on_bad_data(request: Request, error: DataError) -> Response:
        problem = f"{error.problem}; {error.remedy}" if error.remedy else error.problem
        return refusal(422, problem, item=error.item, field=error.field, row=error.position)

    @app.exception_handler(DeltaflowError)
    async def on_failure(request: Request, error: DeltaflowError) -> Response:
        return refusal(500, str(error))

    @app.exception_handler(RequestValidationError)
    async def on_bad_parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refusal(422, first["msg"], field=str(first["loc"][1]))

    @app.exception_handler(StarletteHTTPException)
    async def on_refusal(request: Request, error: StarletteHTTPException) -> Response:
        headers = error.headers
        if error.status_code == 405:  # Starlette's names the methods of only one route of the path
            routes = [r for r in app.routes if r.matches(request.scope)[0] != Match.NONE]
            methods = {method for route in routes for method in getattr(route, "methods", ())}
            headers = {"Allow": ", ".join(sorted(methods))}
        return refusal(error.status_code, error.detail, headers=headers)

    def refusal(status: int, problem: str, headers: Any = None, **where: Any) -> Response:
        """Return the problem and its place as the response."""
        metrics.refused.labels(status).inc()
        known = {name: value for name, value in where.items() if value is not None}
        # Not by orjson, which refuses some of the numbers and texts that an error quotes.
        content = json.dumps({"error": problem, **known}, default=_plain)
        return Response(content, status, headers, media_type="application/json")

    def reads(rows: Rows) -> dict[str, Any]:
        """Return the common arguments of routes that read rows."""
        return {
            "dependencies": guarded,
            "responses": _refused(413, 415),
            "openapi_extra": _body_of(rows),
        }

    @app.post("/update", **reads(answers.observed))
    async def update(request: Request) -> Response:
        """Read observations: all rows of the request, or none if one has an error."""
        with metrics.seconds.labels("update").time():
            given = await read(answers.observed, request)
            count = len(given[live.timestamp])
            await together("update", answers.to_updates, given, count)
        if snapshots is not None:
            snapshots.changes += count
        metrics.rows.labels("update").inc(count)
        return _json({"rows": count, "items": len(live)})

    @app.post("/forecast", **reads(answers.asked))
    async def forecast(
        request: Request,
        quantile_levels: Annotated[list[Level], Query(max_length=99)] = [0.1, 0.5, 0.9],  # noqa: B006
        seed: Annotated[int | None, Query(ge=0, lt=2**32)] = None,
    ) -> Response:
        """Forecast each row: a row per query and channel, with median, mean and quantiles.

        Answers are JSON to JSON, and CSV to CSV.
        """
        with metrics.seconds.labels("forecast").time():
            given = await read(answers.asked, request)
            count = len(given[live.timestamp])
            # Samples of a seed are those of a request that is answered alone.
            kind = ("forecast", *quantile_levels, None if seed is None else object())
            answer = partial(answers.to_forecasts, levels=quantile_levels, seed=seed)
            columns = await together(kind, answer, given, count)
            response = _table(columns, _type_of(request))
        metrics.rows.labels("forecast").inc(count)
        return response

    @app.get("/items/{item_id:path}", dependencies=guarded, responses=_refused(404))
    async def item(item_id: str) -> Response:
        """Return when an item was last observed: the time of its last row, and of each channel."""
        _check_known(live, item_id)
        return _json(live.item(item_id))

    @app.delete("/items/{item_id:path}", dependencies=guarded, responses=_refused(404))
    async def forget(item_id: str) -> dict[str, int]:
        """Delete an item, which a later update may restart."""
        _check_known(live, item_id)
        live.forget([item_id])
        if snapshots is not None:
            snapshots.changes += 1
        return {"items": len(live)}

    @app.get("/health")
    async def health() -> Response:
        """Return the health of the server, and the number of changes not yet in the snapshot."""
        about: dict[str, Any] = {
            "status": "ok",
            "version": __version__,
            "items": len(live),
            "bytes_per_item": live.bytes_per_item,
        }
        if snapshots is not None:
            about["snapshot"] = {
                "behind": snapshots.changes - snapshots.saved_changes,
                "seconds_ago": None if snapshots.saved is None else time.time() - snapshots.saved,
                "problem": snapshots.problem,
            }
            about["status"] = "ok" if snapshots.problem is None else "no snapshot"
        return _json(about)

    @app.get("/metrics", dependencies=guarded, response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Return the metrics in the format of Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class _Answers:
    """Answers several requests of one kind by one call of the forecaster.

    Attributes
    ----------
    observed, asked
        The formats of requests with observations, and with queries.
    """

    def __init__(self, live: LiveForecaster, max_rows: int) -> None:
        self.live = live
        self.observed, self.asked = observations(live, max_rows), queries(live, max_rows)

    def to_updates(self, requests: list[Columns]) -> list[None]:
        """Read the observations of all requests, or of none if there is an error."""
        key = self.live.item_id
        items = [{"0"} if key is None else set(map(as_text, one[key])) for one in requests]
        if sum(map(len, items)) > len(set().union(*items)):
            raise ValueError("an item occurs in two requests, which must be read one by one")
        self.live.states.read(self.observed.observations(requests))
        return [None] * len(requests)

    def to_forecasts(
        self, requests: list[Columns], levels: Sequence[float], seed: int | None
    ) -> list[Columns]:
        """Forecast the queries of all requests, or of none if there is an error."""
        live, levels = self.live, read_levels(levels)
        check_answer(live.columns.keys, levels)
        answers = live.states.answer(self.asked.queries(requests), levels, seed)
        stop, parts = 0, []
        for one in requests:
            count = len(one[live.timestamp])
            start, stop = stop, stop + count
            part: Columns = {  # items and times go back as they came
                key: [value for value in one[key] for _ in live.schema.target]
                for key in live.columns.keys
            }
            part["target_name"] = [*live.schema.target] * count
            own = {name: values[start:stop].ravel().tolist() for name, values in answers.items()}
            parts.append(part | own)
        return parts


def _type_of(request: Request) -> str:
    """Return the type of a request's body."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_parameters(request: Request) -> None:
    """Raise an error if the query string has a parameter that the route does not know."""
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            remedy = f"there are {known}" if known else "leave it out"
            raise DataError("there is no such parameter", remedy, field=name)


def _check_known(live: LiveForecaster, item_id: str) -> None:
    if item_id not in live:
        raise HTTPException(404, f"item {item_id!r} is not known")


def _json(content: Any) -> Response:
    text = orjson.dumps(content, default=_plain, option=orjson.OPT_PASSTHROUGH_DATETIME)
    return Response(text, media_type="application/json")


def _table(columns: Columns, content_type: str) -> Response:
    if content_type == "text/csv":
        return Response(pd.DataFrame(columns).to_csv(index=False), media_type=content_type)
    rows = zip(*columns.values(), strict=True)
    return _json({"rows": [dict(zip(columns, row, strict=True)) for row in rows]})


def _plain(value: Any) -> Any:
    """Turn timestamps into text, and numbers of NumPy into those of Python."""
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    return value.item() if isinstance(value, np.generic) else str(value)


def _body_of(rows: Rows) -> dict[str, Any]:
    """Return the documentation of a request's body."""
    schema = rows.model.model_json_schema()
    (schema["properties"]["rows"]["items"],) = schema.pop("$defs").values()
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema},
                "text/csv": {"schema": {"type": "string", "example": ",".join(rows.columns)}},
            },
        }
    }
