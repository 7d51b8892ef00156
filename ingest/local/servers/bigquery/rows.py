"""BigQuery's types: the JSON values that a column accepts, their stored form, and their form in results.

All functions are pure functions of values and schemas. A value that does not fit raises BadValue, which becomes
one `invalid` error of one row, with the column's name as its location, as in the real service.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

COLUMNS_MAX = 10_000
NESTING_MAX = 15
PAST_DAYS_MAX, FUTURE_DAYS_MAX = 3650, 366
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}\Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECONDS_MIN = -62135596800000000
_MICROSECONDS_MAX = 253402300799999999
_INTEGER = re.compile(r"[+-]?\d{1,19}\Z")
_OFFSET_AT_END = re.compile(r"([+-]\d{1,2})(?::?(\d{2}))?\Z")
_TRUE, _FALSE = frozenset({"true", "t", "1", "yes", "y"}), frozenset({"false", "f", "0", "no", "n"})

# Both spellings of a type are accepted, and a table keeps the spelling with which it was created.
CANONICAL = {
    "INT64": "INTEGER",
    "FLOAT64": "FLOAT",
    "BOOL": "BOOLEAN",
    "STRUCT": "RECORD",
    "DECIMAL": "NUMERIC",
    "BIGDECIMAL": "BIGNUMERIC",
}
SQL_TYPE = {
    "STRING": "VARCHAR",
    "INTEGER": "BIGINT",
    "FLOAT": "DOUBLE",
    "BOOLEAN": "BOOLEAN",
    "TIMESTAMP": "TIMESTAMPTZ",
    "DATE": "DATE",
    "TIME": "TIME",
    "DATETIME": "TIMESTAMP",
    "NUMERIC": "DECIMAL(38,9)",
    "BIGNUMERIC": "DECIMAL(38,9)",
    "BYTES": "BLOB",
    "JSON": "JSON",
}
ARROW_TYPE: dict[str, pa.DataType] = {
    "STRING": pa.string(),
    "INTEGER": pa.int64(),
    "FLOAT": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMP": pa.timestamp("us", "UTC"),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "DATETIME": pa.timestamp("us"),
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal128(38, 9),
    "BYTES": pa.binary(),
    "JSON": pa.string(),
}


class BadSchema(ValueError):
    """Raised for a schema that the service would reject."""


class BadValue(ValueError):
    """Raised for a value that its column does not accept. `location` is the dotted name of the column."""

    def __init__(self, location: str, message: str) -> None:
        super().__init__(message)
        self.location = location


@dataclass(frozen=True, slots=True)
class Field:
    """A column, or a field of a RECORD."""

    name: str
    type: str
    mode: str
    fields: tuple[Field, ...] = ()

    @property
    def sql_type(self) -> str:
        """The type of the column in the storage engine."""
        if self.type == "RECORD":
            one = (
                "STRUCT(" + ", ".join(f"{identifier(field.name)} {field.sql_type}" for field in self.fields) + ")"
            )
        else:
            one = SQL_TYPE[self.type]
        return f"{one}[]" if self.mode == "REPEATED" else one

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of the column in the Arrow tables that carry rows into the storage engine."""
        if self.type == "RECORD":
            one: pa.DataType = pa.struct([(field.name, field.arrow_type) for field in self.fields])
        else:
            one = ARROW_TYPE[self.type]
        return pa.list_(one) if self.mode == "REPEATED" else one


def identifier(name: str) -> str:
    """Returns the name quoted for the SQL of the storage engine."""
    return '"' + name.replace('"', '""') + '"'


def schema_of(resource: Mapping[str, Any], depth: int = 0) -> tuple[Field, ...]:
    """Returns the fields of a TableSchema resource (`{"fields": [...]}`). Raises BadSchema."""
    found = []
    for entry in resource.get("fields", ()):
        name, kind = str(entry.get("name", "")), str(entry.get("type", "")).upper()
        kind = CANONICAL.get(kind, kind)
        mode = str(entry.get("mode") or "NULLABLE").upper()
        if not NAME.match(name):
            raise BadSchema(f'Invalid field name "{name}".')
        if kind != "RECORD" and kind not in SQL_TYPE:
            raise BadSchema(f"Invalid value for type: {entry.get('type')} is not a valid value (field {name}).")
        if mode not in ("NULLABLE", "REQUIRED", "REPEATED"):
            raise BadSchema(f"Invalid value for mode: {mode} is not a valid value (field {name}).")
        if depth >= NESTING_MAX:
            raise BadSchema(f"Records are nested deeper than {NESTING_MAX}.")
        inner = schema_of(entry, depth + 1) if kind == "RECORD" else ()
        if kind == "RECORD" and not inner:
            raise BadSchema(f"Field {name} is type RECORD but has no schema.")
        found.append(Field(name, kind, mode, inner))
    names = [field.name.lower() for field in found]
    for name in names:
        if names.count(name) > 1:
            raise BadSchema(f"Duplicate field name {name} in the schema.")
    if len(found) > COLUMNS_MAX:
        raise BadSchema(f"Too many columns: {len(found)}, limit {COLUMNS_MAX}.")
    return tuple(found)


# ------------------------------------------------------------------------------------------------ JSON -> storage


def row_of(fields: Sequence[Field], row: Any, *, ignore_unknown: bool) -> dict[str, Any]:
    """Returns the stored form of one row of insertAll. Raises BadValue for the first value that does not fit."""
    if not isinstance(row, dict):
        raise BadValue("", "A row must be a JSON object.")
    return _record(fields, row, "", ignore_unknown)


def _record(fields: Sequence[Field], row: Mapping[str, Any], path: str, ignore_unknown: bool) -> dict[str, Any]:
    given = {name.lower(): value for name, value in row.items()}
    if not ignore_unknown:
        known = {field.name.lower() for field in fields}
        for name in row:
            if name.lower() not in known:
                raise BadValue(path + name, f"no such field: {path}{name}.")
    return {field.name: _value(field, given.get(field.name.lower()), path, ignore_unknown) for field in fields}


def _value(field: Field, value: Any, path: str, ignore_unknown: bool) -> Any:
    place = path + field.name
    if field.mode == "REPEATED":
        if value is None:
            return []
        items = value if isinstance(value, list) else [value]
        if any(item is None for item in items):
            raise BadValue(place, f"Null elements are not allowed in repeated field: {place}.")
        return [_one(field, item, place, ignore_unknown) for item in items]
    if value is None:
        if field.mode == "REQUIRED":
            raise BadValue(place, f"Missing required field: {place}.")
        return None
    if isinstance(value, list):
        raise BadValue(place, f"Array specified for non-repeated field: {place}.")
    return _one(field, value, place, ignore_unknown)


def _one(field: Field, value: Any, place: str, ignore_unknown: bool) -> Any:
    if field.type == "RECORD":
        if not isinstance(value, dict):
            raise BadValue(place, f"This field: {place} is not a record.")
        return _record(field.fields, value, f"{place}.", ignore_unknown)
    if isinstance(value, dict):
        raise BadValue(place, f"This field: {place} is not a record.")
    try:
        return READERS[field.type](value)
    except (ValueError, OverflowError, ArithmeticError) as error:
        shown = value if isinstance(value, str) else json.dumps(value)
        raise BadValue(
            place, f"Cannot convert value to {field.type.lower()} (bad value): {shown[:100]} {error}".rstrip()
        ) from None


def _string(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text.encode()  # A lone surrogate is not valid UTF-8: UnicodeEncodeError is a ValueError.
    return text


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError
        value = int(value)
    elif isinstance(value, str):
        if not _INTEGER.match(value):
            raise ValueError
        value = int(value)
    if not -(2**63) <= value < 2**63:
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE


def _timestamp(value: Any) -> int:
    """Converts a value to microseconds.

    A number is interpreted as Unix seconds. Text is in ISO 8601 with an optional zone, UTC by default.
    """
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, int | float):
        found = round(Decimal(str(value)) * 1_000_000)
    else:
        found = _microseconds(_parsed(value), value)
    if not _MICROSECONDS_MIN <= found <= _MICROSECONDS_MAX:
        raise ValueError
    return found


def _parsed(text: str) -> datetime | Decimal:
    plain = text.strip()
    for ending in (" UTC", " utc", "Z", "z"):
        plain = plain.removesuffix(ending)
    try:
        return Decimal(plain)
    except InvalidOperation:
        pass
    offset = _OFFSET_AT_END.search(plain)
    if offset and ":" in plain[: offset.start()]:
        # Python requires two-digit hours and minutes; the service accepts `+0`, `-8` and `+00:00`.
        sign = "-" if offset[1].startswith("-") else "+"
        plain = f"{plain[: offset.start()].rstrip()}{sign}{abs(int(offset[1])):02d}:{offset[2] or '00'}"
    return datetime.fromisoformat(plain)


def _microseconds(moment: datetime | Decimal, text: str) -> int:
    if isinstance(moment, Decimal):
        if not moment.is_finite():
            raise ValueError(text)
        return round(moment * 1_000_000)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def _date(value: Any) -> date:
    if not isinstance(value, str):
        raise ValueError
    return date.fromisoformat(value.strip())


def _time(value: Any) -> time:
    found = time.fromisoformat(str(value).strip())
    if found.tzinfo is not None:
        raise ValueError
    return found


def _datetime(value: Any) -> int:
    """Converts a local time without a zone to microseconds."""
    if not isinstance(value, str):
        raise ValueError
    found = datetime.fromisoformat(value.strip())
    if found.tzinfo is not None:
        raise ValueError
    return (found.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


def _numeric(value: Any) -> Decimal:
    if isinstance(value, bool):
        raise ValueError
    found = Decimal(str(value))
    if not found.is_finite() or abs(found) >= Decimal(10) ** 29:
        raise ValueError
    return found.quantize(Decimal("1e-9"))


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError
    return base64.b64decode(value, validate=True)


def _json(value: Any) -> str:
    """Checks the value of a JSON column, which must be text that contains JSON.

    A JSON object never reaches this function: `_one` rejects it with BigQuery's error, "is not a record".
    """
    if not isinstance(value, str):
        return json.dumps(value)
    value.encode()
    json.loads(value)
    return value


READERS: dict[str, Callable[[Any], Any]] = {
    "STRING": _string,
    "INTEGER": _integer,
    "FLOAT": _float,
    "BOOLEAN": _boolean,
    "TIMESTAMP": _timestamp,
    "DATE": _date,
    "TIME": _time,
    "DATETIME": _datetime,
    "NUMERIC": _numeric,
    "BIGNUMERIC": _numeric,
    "BYTES": _bytes,
    "JSON": _json,
}


def check_partition(column: str, kind: str, row: Mapping[str, Any], today: date) -> None:
    """Raises BadValue unless the partition is within the last ten years or the next year, as streaming
    requires.
    """
    value = row.get(column)
    if value is None:
        return
    day = value if kind == "DATE" else (_EPOCH + timedelta(microseconds=value)).date()
    if not -PAST_DAYS_MAX <= (day - today).days <= FUTURE_DAYS_MAX:
        raise BadValue(
            column,
            f"Value {day} of field {column} is outside the allowed bounds: from {PAST_DAYS_MAX} days in the past "
            f"to {FUTURE_DAYS_MAX} days in the future.",
        )


def arrow_table(fields: Sequence[Field], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Converts rows from `row_of` to one Arrow table."""
    columns = [pa.array([row[field.name] for row in rows], type=field.arrow_type) for field in fields]
    return pa.Table.from_arrays(columns, names=[field.name for field in fields])


# ---------------------------------------------------------------------------------------------- storage -> answers


def format_row(fields: Sequence[Field], row: Sequence[Any], timestamp_format: str) -> dict[str, Any]:
    """Returns a row of a result in the service's format, `{"f": [{"v": ...}, ...]}`, with scalars as text."""
    return {
        "f": [
            {"v": _format_value(field, value, timestamp_format)} for field, value in zip(fields, row, strict=True)
        ]
    }


def _format_value(field: Field, value: Any, timestamp_format: str) -> Any:
    if field.mode == "REPEATED":
        one = Field(field.name, field.type, "NULLABLE", field.fields)
        return [{"v": _format_value(one, item, timestamp_format)} for item in value or ()]
    if value is None:
        return None
    match field.type:
        case "RECORD":
            return format_row(field.fields, [value[inner.name] for inner in field.fields], timestamp_format)
        case "BOOLEAN":
            return "true" if value else "false"
        case "FLOAT":
            return (
                repr(value)
                if math.isfinite(value)
                else str(value).replace("inf", "Infinity").replace("nan", "NaN")
            )
        case "TIMESTAMP":
            return _format_timestamp(value, timestamp_format)
        case "DATETIME" | "DATE" | "TIME":
            return str(value.isoformat())
        case "NUMERIC" | "BIGNUMERIC":
            text = format(value, "f")
            return text.rstrip("0").rstrip(".") if "." in text else text
        case "BYTES":
            return base64.b64encode(value).decode()
        case _:
            return str(value)


def _format_timestamp(value: datetime, timestamp_format: str) -> str:
    microseconds = (value - _EPOCH) // timedelta(microseconds=1)
    match timestamp_format:
        case "INT64":
            return str(microseconds)
        case "ISO8601_STRING":
            return f"{(_EPOCH + timedelta(microseconds=microseconds)).replace(tzinfo=None).isoformat()}Z"
        case _:
            return repr(microseconds / 1_000_000)


def fields_of_result(description: Sequence[tuple[Any, ...]]) -> tuple[Field, ...]:
    """Returns the schema of a query's result, from the column types of the storage engine."""
    return tuple(_field_of(str(column[0]), column[1]) for column in description)


_RESULT_TYPE = {
    "boolean": "BOOLEAN",
    "double": "FLOAT",
    "float": "FLOAT",
    "decimal": "NUMERIC",
    "timestamp with time zone": "TIMESTAMP",
    "date": "DATE",
    "time": "TIME",
    "blob": "BYTES",
}


def _field_of(name: str, kind: Any) -> Field:
    """`kind` is DuckDB's type object, which has `id` and `children`; `str(kind)` is the name of the type."""
    text = str(kind).upper()
    if kind.id == "list":
        one = _field_of(name, dict(kind.children)["child"])
        return Field(name, one.type, "REPEATED", one.fields)
    if kind.id == "struct":
        return Field(name, "RECORD", "NULLABLE", tuple(_field_of(key, child) for key, child in kind.children))
    if text == "JSON":
        return Field(name, "JSON", "NULLABLE")
    if "INT" in text and "INTERVAL" not in text:
        return Field(name, "INTEGER", "NULLABLE")
    if text.startswith("TIMESTAMP") and "TIME ZONE" not in text:
        return Field(name, "DATETIME", "NULLABLE")
    found = _RESULT_TYPE.get(text.partition("(")[0].lower(), "STRING")
    return Field(name, found, "NULLABLE")


def resource_of(fields: Sequence[Field]) -> dict[str, Any]:
    """Returns a TableSchema resource."""

    def entry(field: Field) -> dict[str, Any]:
        found: dict[str, Any] = {"name": field.name, "type": field.type, "mode": field.mode}
        return found | {"fields": [entry(inner) for inner in field.fields]} if field.fields else found

    return {"fields": [entry(field) for field in fields]}
