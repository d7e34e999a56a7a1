"""Matching of data to the training data by name."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry

from deltaflow.data.schema import ROLES, Schema
from deltaflow.errors import DataError, located

_KINDS_OF_TIME = {"timestamp": "timestamps", "elapsed": "elapsed numbers", "regular": "periods"}


@dataclass(frozen=True, eq=False)
class Match:
    """The places in an entry of the names in a schema.

    Attributes
    ----------
    own
        The schema of the entry.
    rows
        By field: the row in the entry of each name in the schema.
    codes
        For each static categorical feature of the schema: the schema's code of each level in the
        entry's schema, -1 if the level is unknown. The last element is -1, too.
    target
        The entry's channels that the schema knows, in the entry's order, which is also the order of
        its forecasts.
    channels
        The positions of these channels in the schema: a list, or a single number if the entry's
        target is univariate. It indexes an axis of the schema's channels.
    ignored
        By field: the names in the entry that the schema does not know.
    """

    own: Schema
    rows: Mapping[str, list[int]]
    codes: tuple[np.ndarray, ...]
    target: tuple[str, ...]
    channels: int | list[int]
    ignored: Mapping[str, tuple[str, ...]]


@lru_cache(maxsize=256)
def match(own: Schema, schema: Schema) -> Match:
    """Find all names of ``schema`` in data with the schema ``own``.

    Raises
    ------
    DataError
        If a name is missing, or the data have a different kind of time.
    """
    check_time(own.time, own.time_zone, schema, "info")
    _check_names(own, schema)
    names = {role: (list(getattr(own, role)), list(getattr(schema, role))) for role in ROLES}
    target = tuple(name for name in own.target if name in schema.target)
    channels = [schema.target.index(name) for name in target]
    return Match(
        own=own,
        rows={
            role: [have.index(name) for name in wanted] for role, (have, wanted) in names.items()
        },
        codes=tuple(
            np.append(pd.Index(levels).get_indexer(pd.Index(own.feat_static_cat[name])), -1)
            for name, levels in schema.feat_static_cat.items()
        ),
        target=target,
        channels=channels[0] if own.univariate else channels,
        ignored={
            role: extra
            for role, (have, wanted) in names.items()
            if (extra := tuple(name for name in have if name not in wanted))
        },
    )


def check_time(time: str, time_zone: str | None, schema: Schema, field: str) -> None:
    """Raise an error unless the kind of times, and having a time zone, agree with a schema."""
    if time != schema.time:
        raise DataError(
            f"time is given as {_KINDS_OF_TIME[time]}, in the training data as "
            f"{_KINDS_OF_TIME[schema.time]}",
            "give the same kind of time",
            field=field,
        )
    if (time_zone is None) != (schema.time_zone is None):
        have = "no time zone" if time_zone is None else f"the time zone {time_zone}"
        trained = "none" if schema.time_zone is None else "one"
        raise DataError(
            f"the timestamps have {have}, those of the training data have {trained}",
            "localize the timestamps, or remove their time zone",
            field=field,
        )


def common_schema(schemas: Iterable[tuple[object, Schema]]) -> Schema:
    """Return the first of several schemas, with the levels of all schemas in its categories.

    Parameters
    ----------
    schemas
        At least one schema, each with the item that it belongs to, for errors.

    Raises
    ------
    DataError
        If one of them lacks a name that another has, or has a different kind of time.
    """
    schemas = iter(schemas)
    first, schema = next(schemas)
    levels = {name: dict.fromkeys(own) for name, own in schema.feat_static_cat.items()}
    for item, own in schemas:
        if own is schema:  # as in a single data set
            continue
        with located(item=item):
            match(own, schema)
        with located(item=first):
            match(schema, own)
        for name, known in levels.items():
            known.update(dict.fromkeys(own.feat_static_cat[name]))
    return replace(schema, feat_static_cat={name: tuple(own) for name, own in levels.items()})


def _check_names(own: Schema, schema: Schema) -> None:
    for role in ROLES:
        have = getattr(own, role)
        for name in getattr(schema, role):
            if name not in have:
                elsewhere = [other for other in ROLES if name in getattr(own, other)]
                where = f"is in {elsewhere[0]}" if elsewhere else "is missing"
                raise DataError(
                    f"{where}; the training data have it in {role}",
                    f"add it there, to {list(have)}" if have else "add it there",
                    field=name,
                )


_RECENT: deque[tuple[Any, list[str], Schema]] = deque(maxlen=8)
"""Recent schemas, with their plain values in the entries and the order of their categories."""


def schema_in(entry: DataEntry) -> Schema:
    """Return the schema that an irregular entry carries in its ``info``.

    The entries of a data set share their schema, so the latest schemas are cached.

    Raises
    ------
    DataError
        If the entry carries no schema.
    """
    try:
        plain = entry["info"]["schema"]
        for known, categories, schema in tuple(_RECENT):
            if plain == known and list(plain["feat_static_cat"]) == categories:
                return schema
        schema = Schema.from_dict(plain)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the info holds no schema ({type(error).__name__}: {error})",
            "make the entries with IrregularDataset",
            item=entry.get("item_id"),
            field="info",
        ) from None
    # A copy, because the caller may change the original in place.
    _RECENT.appendleft((copy.deepcopy(plain), list(schema.feat_static_cat), schema))
    return schema
