"""Rows over HTTP: what JSON and CSV may hold, and how they become DataFrames."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from deltaflow.errors import DataError
from deltaflow.forecast.live import LiveForecaster

_OFFSET = re.compile(r":\d{2}(\.\d+)?\s*(Z|[+-]\d{2}(:?\d{2})?)$", re.IGNORECASE)
"""The end of a time of day with an offset from UTC."""

_MISSING = ("", "NA", "NaN", "nan", "null")
"""What stands for a missing number in a CSV file."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Item = str | Annotated[int, Field(ge=-(2**63), lt=2**63)]


Columns = dict[str, Sequence[Any]]
"""The rows of a request by their columns, as they came."""


class Rows:
    """The rows of one kind of request, described by the schema of the data.

    Parameters
    ----------
    name
        The name of a row in the documentation of the interface.
    columns
        The type of each column by its name, and whether it may be left out.
    item_id, timestamp
        The names of these columns.
    time_zone
        Whether timestamps must have an offset from UTC; None if times are numbers.
    limit
        The largest number of rows.
    """

    def __init__(
        self,
        name: str,
        columns: Mapping[str, tuple[Any, bool]],
        item_id: str | None,
        timestamp: str,
        time_zone: bool | None,
        limit: int,
    ) -> None:
        self.columns = list(columns)
        self.optional = [column for column, (_, optional) in columns.items() if optional]
        self.numeric = [column for column, (kind, _) in columns.items() if kind is Number]
        self.item_id, self.timestamp = item_id, timestamp
        self.time_zone, self.limit = time_zone, limit
        # Names of columns may be anything, those of attributes may not.
        fields: dict[str, Any] = {
            f"column_{number}": (
                (kind | None, Field(None, alias=column))
                if optional
                else (kind, Field(alias=column))
            )
            for number, (column, (kind, optional)) in enumerate(columns.items())
        }
        row = create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)
        rows: Any = Annotated[list[row], Field(min_length=1, max_length=limit)]
        self.model: type[BaseModel] = create_model(
            f"{name}s", __config__=ConfigDict(extra="forbid"), rows=(rows, ...)
        )

    def read(self, body: bytes, content_type: str) -> Columns:
        """Read the rows of a request.

        Raises
        ------
        DataError
            If there is anything else in them than the columns.
        """
        return self._read_csv(body) if content_type == "text/csv" else self._read_json(body)

    def frame(self, requests: Sequence[Columns]) -> pd.DataFrame:
        """Return the rows of several requests, one after the other.

        Raises
        ------
        DataError
            If a time is not a timestamp in ISO 8601, or has an offset from UTC where the training
            data have none, or the other way round.
        """
        columns: dict[str, Any] = {}
        for name in self.columns:
            if name in self.numeric:
                parts = [np.array(one[name], dtype=np.float64) for one in requests]
                columns[name] = np.concatenate(parts)
            else:
                columns[name] = [value for one in requests for value in one[name]]
        if self.item_id is not None:
            columns[self.item_id] = list(map(str, columns[self.item_id]))
        if self.time_zone is not None:
            columns[self.timestamp] = self._timestamps(columns)
        return pd.DataFrame(columns)

    def _read_json(self, body: bytes) -> Columns:
        try:
            rows = self.model.model_validate_json(body).rows  # type: ignore[attr-defined]
        except ValidationError as error:
            raise self._refusal(error, body) from None
        fields = enumerate(self.columns)
        return {name: [getattr(row, f"column_{n}") for row in rows] for n, name in fields}

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
        if not 1 <= len(rows) <= self.limit:
            raise DataError(
                f"there are not 1 to {self.limit} rows", "send them in several requests"
            )
        for column in header:
            if column not in self.columns or header.count(column) > 1:
                raise DataError("there is no such column, or there are two",
                                f"there are {self.columns}", field=column)  # fmt: skip
        given = dict(zip(header, zip(*rows, strict=True), strict=True))
        items = given.get(self.item_id, [None] * len(rows))
        columns = {}
        for column in self.columns:
            if column not in given and column not in self.optional:
                raise DataError("the column is missing", "add it", field=column)
            cells = given.get(column, [""] * len(rows))
            columns[column] = self._parsed(column, cells, items)
        return columns

    def _parsed(self, column: str, cells: Sequence[str], items: Sequence[str | None]) -> Any:
        """Read the cells of a column, of which those that are missing become None or NaN."""
        if column not in self.numeric:
            missing = None if column in self.optional else ""
            return [cell or missing for cell in cells]
        known = np.array([cell not in _MISSING for cell in cells])
        numbers = pd.to_numeric(pd.Series(cells).where(known), errors="coerce").to_numpy(np.float64)
        wrong = known & np.isnan(numbers)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"{cells[row]!r} is not a number", "correct it, or leave it empty",
                            item=items[row], field=column, position=row)  # fmt: skip
        return numbers

    def _timestamps(self, columns: Mapping[str, Any]) -> pd.DatetimeIndex:
        """Return the times, of which those without an offset are as they stand."""
        texts = columns[self.timestamp]
        offset = np.array([bool(_OFFSET.search(text)) for text in texts])
        times = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
        for wrong, problem, remedy in (
            (
                times.isna(),
                "is not a timestamp in ISO 8601 from the years 1678 to 2261",
                "give one such as 2024-01-01T08:00:00",
            ),
            (
                offset != self.time_zone,
                "has no offset from UTC" if self.time_zone else "has an offset from UTC",
                "the training data have one, such as +00:00"
                if self.time_zone
                else "the training data have none",
            ),
        ):
            if wrong.any():
                row = int(wrong.argmax())
                item = None if self.item_id is None else columns[self.item_id][row]
                raise DataError(f"the time {texts[row]!r} {problem}", remedy, item=item,
                                field=self.timestamp, position=row)  # fmt: skip
        return times if self.time_zone else times.tz_localize(None)

    def _refusal(self, error: ValidationError, body: bytes) -> DataError:
        """Return the first error of a JSON body, with the item of its row where it has one."""
        first = error.errors(include_url=False, include_input=False)[0]
        problem, where = first["msg"], [part for part in first["loc"] if part != "rows"]
        row = next((part for part in where if isinstance(part, int)), None)
        field = next((part for part in where if isinstance(part, str)), None)
        item = None
        if row is not None:
            try:
                item = json.loads(body)["rows"][row].get(self.item_id)
            except (ValueError, AttributeError):  # such as a row that is not an object
                item = None
        return DataError(
            problem[0].lower() + problem[1:],
            "the page /docs lists the fields",
            item=item if isinstance(item, (str, int)) else None,
            field=field,
            position=row,
        )


def observations(live: LiveForecaster, limit: int) -> Rows:
    """Return the rows of updates."""
    schema = live.schema
    columns = {
        **_keys(live),
        **dict.fromkeys(schema.feat_dynamic_real, (Number, False)),
        **dict.fromkeys((*schema.target, *schema.past_feat_dynamic_real), (Number, True)),
        **dict.fromkeys(schema.feat_static_real, (Number, True)),
        **dict.fromkeys(schema.feat_static_cat, (str | int, True)),
    }
    return Rows("Observation", columns, live.item_id, live.timestamp, _time_zone(live), limit)


def questions(live: LiveForecaster, limit: int) -> Rows:
    """Return the rows of forecasts."""
    columns = {
        **_keys(live),
        **dict.fromkeys(live.schema.feat_dynamic_real, (Number, False)),
    }
    return Rows("Question", columns, live.item_id, live.timestamp, _time_zone(live), limit)


def _keys(live: LiveForecaster) -> dict[str, tuple[Any, bool]]:
    dates = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    time = Number if live.schema.time == "elapsed" else dates
    items = {} if live.item_id is None else {live.item_id: (Item, False)}
    return {**items, live.timestamp: (time, False)}


def _time_zone(live: LiveForecaster) -> bool | None:
    return None if live.schema.time == "elapsed" else live.schema.time_zone is not None
