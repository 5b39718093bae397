"""The user's own data: JSON lines and CSV, with errors that name file and line."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from glm_ext.data.sources import refuse_half_pairs

Fields = dict[str, Any]
T = TypeVar("T")


class Record(NamedTuple):
    """One line of a file (its first, in CSV) and the fields that it holds."""

    line: int
    fields: Fields


def read_records(path: Path) -> list[Record]:
    """.csv and .tsv by their header, every other file as JSON lines; empty lines are left out.

    ValueError names file and line of what is neither; so does a file without records.
    """
    separator = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())
    text = read_text(path)
    records = list(_json_lines(path, text)) if separator is None else _table(path, text, separator)
    if not records:
        raise ValueError(f"{path}: expected at least one example, found none")
    return records


def read_text(path: Path) -> str:
    """The text of a file without its byte order mark; ValueError names file and line of what is not UTF-8."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 (byte {error.start})") from None


def parse_json(text: str) -> Any:
    """What a JSON text holds. ValueError for what is none, nests too deep, or has half a surrogate pair."""
    try:
        value = json.loads(text)
        for inner in _texts(value):
            refuse_half_pairs(inner)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("JSON that nests too deep to be read") from None
    return value


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value if isinstance(value, list) else (*value, *value.values()):
            yield from _texts(inner)


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        with _located(path, number):
            fields = parse_json(line)
        if not isinstance(fields, dict):
            raise ValueError(f"{path}, line {number}: expected an object {{...}}, got {line[:60]}")
        yield Record(number, fields)


def _table(path: Path, text: str, separator: str) -> list[Record]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    records, first = [], 1
    limit = csv.field_size_limit()  # of all readers: it is put back
    csv.field_size_limit(max(limit, len(text)))
    try:
        names = reader.fieldnames or ()
        if twice := [name for name, count in Counter(names).items() if name and count > 1]:
            raise ValueError(f"expected columns of different names, got {twice[0]!r} more than once")
        first = reader.line_num + 1
        for fields in reader:
            if None in fields or None in fields.values():
                raise ValueError(f"expected {len(names)} columns as in the header")
            records.append(Record(first, dict(fields)))
            first = reader.line_num + 1
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}, line {first}: {error}") from None
    finally:
        csv.field_size_limit(limit)
    return records


def field_of(fields: Mapping[str, Any], name: str) -> Any:
    """ValueError for a field that is not there, with those that are."""
    if name not in fields:
        raise ValueError(f"there is no field {name!r}; there are {', '.join(map(str, fields))}")
    return fields[name]


def examples_of(path: Path, records: Iterable[Record], make: Callable[[Fields], Iterable[T]]) -> list[T]:
    """What `make` makes of every record; its ValueErrors get file and line."""
    examples: list[T] = []
    for record in records:
        with _located(path, record.line):
            examples.extend(make(record.fields))
    if not examples:
        raise ValueError(f"{path}: expected at least one example, found none")
    return examples


@contextmanager
def _located(path: Path, line: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from None
    except KeyError as error:
        raise ValueError(f"{path}, line {line}: expected a field {error}") from None
