"""Rows over HTTP: their JSON and CSV formats, and their conversion for the forecaster."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from typing_extensions import NotRequired, TypedDict

from deltaflow.data import validation
from deltaflow.data.dataset import check_known
from deltaflow.data.schema import unit_seconds
from deltaflow.data.validation import FrameRows, TimeColumn
from deltaflow.errors import DataError
from deltaflow.forecast.columns import FrameColumns, Queries
from deltaflow.forecast.live import LiveForecaster
from deltaflow.forecast.live.frames import Observations, gather_observations

_MISSING = ("", "NA", "NaN", "nan", "null")
"""The representations of a missing number in a CSV file."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Item = Annotated[str, Field(min_length=1)] | Annotated[int | float, Field(ge=-(2**63), lt=2**63)]


Columns = dict[str, Sequence[Any]]
"""The rows of a request by column, as received."""


class Rows:
    """The rows of one kind of request, described by the schema of the data.

    Parameters
    ----------
    name
        The name of a row in the documentation of the interface.
    columns
        The type of each column by its name, and whether it may be omitted.
    given
        The columns of the forecaster.
    limit
        The largest number of rows.
    """

    def __init__(
        self, name: str, columns: Mapping[str, tuple[Any, bool]], given: FrameColumns, limit: int
    ) -> None:
        self.columns = list(columns)
        self.optional = [column for column, (_, optional) in columns.items() if optional]
        self.numeric = [column for column, (kind, _) in columns.items() if kind is Number]
        self._given, self.limit = given, limit
        fields: dict[str, Any] = {
            column: NotRequired[kind | None] if optional else kind
            for column, (kind, optional) in columns.items()
        }
        row: Any = TypedDict(name, fields)  # pyright: ignore[reportArgumentType]
        row.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
        rows: Any = Annotated[list[row], Field(min_length=1, max_length=limit)]
        self.model: type[BaseModel] = create_model(
            f"{name}Rows", __config__=ConfigDict(extra="forbid"), rows=(rows, ...)
        )

    def read(self, body: bytes, content_type: str) -> Columns:
        """Read the rows of a request.

        Raises
        ------
        DataError
            If they contain anything but the columns.
        """
        return self._read_csv(body) if content_type == "text/csv" else self._read_json(body)

    def observations(self, requests: Sequence[Columns]) -> Observations:
        """Return the observations of several requests, in the forecaster's format.

        Raises
        ------
        DataError
            If a value is impossible; see :meth:`queries` for times.
        """
        asked = self.queries(requests)
        values = self._numbers(requests, self._given.channels, asked.rows)
        static = {name: self._joined(requests, name) for name in self._given.static}
        return gather_observations(self._given, asked, values.T, pd.DataFrame(static))

    def queries(self, requests: Sequence[Columns]) -> Queries:
        """Return the queries of several requests, in the forecaster's format.

        Raises
        ------
        DataError
            If a time is not a timestamp in ISO 8601, or if only one of it and the training data has
            an offset from UTC.
        """
        times = self._joined(requests, self._given.timestamp)
        labels = pd.RangeIndex(len(times))
        if self._given.item_id is None:
            rows = validation.gathered(np.zeros(len(times), dtype=np.int64), ["0"], labels)
        else:
            items = map(validation.as_text, self._joined(requests, self._given.item_id))
            codes, names = pd.factorize(np.array([*items], dtype=object))
            rows = validation.gathered(codes, names.tolist(), labels)
        known = self._given.schema.feat_dynamic_real
        covariates = self._numbers(requests, known, rows)
        check_known(covariates, rows, known)
        return Queries(rows, self._times(times, rows), covariates.T)

    def _numbers(
        self, requests: Sequence[Columns], names: Sequence[str], rows: FrameRows
    ) -> np.ndarray:
        """Return columns of numbers ``(n, N)``, grouped by item."""
        numbers = np.empty((len(names), len(rows.order)))
        for column, name in zip(numbers, names, strict=True):
            parts = [np.array(one[name], dtype=np.float64) for one in requests]
            column[:] = np.concatenate(parts)[rows.order]
            validation.check_numbers(column, name, rows.refuse)
        return numbers

    def _joined(self, requests: Sequence[Columns], name: str) -> list[Any]:
        return [value for one in requests for value in one[name]]

    def _read_json(self, body: bytes) -> Columns:
        try:
            rows = self.model.model_validate_json(body).rows  # type: ignore[attr-defined]
        except ValidationError as error:
            raise self._refusal(error, body) from None
        return {column: [row.get(column) for row in rows] for column in self.columns}

    def _read_csv(self, body: bytes) -> Columns:
        try:
            lines = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
            header, *rows = itertools.islice(filter(None, lines), self.limit + 2)
        except (csv.Error, ValueError) as error:  # UnicodeDecodeError among them
            raise DataError(f"the body is not CSV ({error})", "give a header and rows") from None
        for number, row in enumerate(rows):
            if len(row) != len(header):
                raise DataError(f"there are {len(row)} cells for {len(header)} columns",
                                "give one each", position=number)  # fmt: skip
        if not rows:
            raise DataError("there are no rows", "send at least one below the header")
        if len(rows) > self.limit:
            raise DataError(
                f"there are more than {self.limit} rows", "send them in several requests"
            )
        for column in header:
            if column not in self.columns or header.count(column) > 1:
                raise DataError("there is no such column, or there are two",
                                f"there are {self.columns}", field=column)  # fmt: skip
        given = dict(zip(header, zip(*rows, strict=True), strict=True))
        items = given.get(self._given.item_id, [None] * len(rows))
        columns = {}
        for column in self.columns:
            if column not in given and column not in self.optional:
                raise DataError("the column is missing", "add it", field=column)
            cells = given.get(column, [""] * len(rows))
            columns[column] = self._parsed(column, cells, items)
        return columns

    def _parsed(self, column: str, cells: Sequence[str], items: Sequence[str | None]) -> Any:
        """Read the cells of a column; missing ones become None or NaN."""
        if column not in self.numeric:
            if column not in self.optional and "" in cells:
                raise DataError("the cell is empty", "fill it in",
                                field=column, position=cells.index(""))  # fmt: skip
            if column in self._given.static:
                cells = list(map(validation.level_of_cell, cells))
            return [cell or None for cell in cells]
        known = np.array([cell not in _MISSING for cell in cells])
        numbers = pd.to_numeric(pd.Series(cells).where(known), errors="coerce").to_numpy(np.float64)
        wrong = known & np.isnan(numbers)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"{cells[row]!r} is not a number", "correct it, or leave it empty",
                            item=items[row], field=column, position=row)  # fmt: skip
        return numbers

    def _times(self, given: list[Any], rows: FrameRows) -> TimeColumn:
        """Return the times; those without an offset are unchanged."""
        schema, field = self._given.schema, self._given.timestamp
        if schema.time == "elapsed":
            elapsed = np.array(given, dtype=np.float64)[rows.order]
            rows.refuse(np.isnan(elapsed), "the time is missing", "drop the row", field)
            validation.check_range(elapsed, unit_seconds(schema.time_unit), rows.refuse, field)
            return TimeColumn(elapsed)
        texts = [given[row] for row in rows.order]
        times = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")

        def refuse(wrong: np.ndarray, problem: str, remedy: str) -> None:
            if wrong.any():
                first = texts[int(wrong.argmax())]
                rows.refuse(wrong, f"the time {first!r} {problem}", remedy, field)

        refuse(
            np.asarray(times.isna()),
            "is not a timestamp in ISO 8601 from the years 1678 to 2261",
            "give one such as 2024-01-01T08:00:00",
        )
        offset = np.array([bool(validation.OFFSET.search(text)) for text in texts])
        if schema.time_zone is None:
            refuse(offset, "has an offset from UTC", "the training data have none")
        else:
            remedy = "the training data have one, such as +00:00"
            refuse(~offset, "has no offset from UTC", remedy)
        ticks, resolution = validation.coarsest(times.asi8, times.unit)
        return TimeColumn(ticks, resolution, schema.time_zone)

    def _refusal(self, error: ValidationError, body: bytes) -> DataError:
        """Return the first error of a JSON body, with the item of its row if it has one."""
        first = error.errors(include_url=False, include_input=False)[0]
        problem, where = first["msg"], first["loc"]
        where = where[1:] if where[:1] == ("rows",) else where  # the place of the row, and in it
        row = next((part for part in where if isinstance(part, int)), None)
        field = next((part for part in where if isinstance(part, str)), None)
        item = None
        if row is not None:
            with suppress(ValueError, AttributeError):  # such as a row that is not an object
                rows = json.loads(body, parse_constant=str)["rows"]  # NaN is not JSON
                item = rows[row].get(self._given.item_id)
        return DataError(
            problem[0].lower() + problem[1:],
            "the page /docs lists the fields",
            item=item if isinstance(item, (str, int, float)) else None,
            field=field,
            position=row,
        )


def observations(live: LiveForecaster, limit: int) -> Rows:
    """Return the rows of updates."""
    schema = live.schema
    columns = {
        **_known(live),
        **dict.fromkeys(live.columns.channels, (Number, True)),
        **dict.fromkeys(schema.feat_static_real, (Number, True)),
        **dict.fromkeys(schema.feat_static_cat, (str | bool | int | Number, True)),
    }
    return Rows("Observation", columns, live.columns, limit)


def queries(live: LiveForecaster, limit: int) -> Rows:
    """Return the rows of forecasts."""
    return Rows("Query", _known(live), live.columns, limit)


def _known(live: LiveForecaster) -> dict[str, tuple[Any, bool]]:
    """Return the columns of item, time, and the covariates known in advance."""
    dates = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    kinds = {live.item_id: Item, live.timestamp: Number if live.schema.time == "elapsed" else dates}
    return {column: (kinds.get(column, Number), False) for column in live.columns.known}
