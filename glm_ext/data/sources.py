"""Documents out of files: .txt (one), .jsonl (one a line), either of them gzipped, and .parquet (one a row).

A record of the last two has a "text" and may have a "prompt", which the text goes on from: it is read, and
predicted without loss.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from glm_ext.extras import require

from .files import decode

SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz", ".parquet")
_RECORD = 'an object with a string "text" and, where there is one, a string "prompt"'


class Document(NamedTuple):
    text: str
    prompt: str = ""


class Problem(NamedTuple):
    """What is wrong with a document or a file, in words that name the place."""

    kind: str
    message: str

    @property
    def empty(self) -> bool:
        """Nothing to read: worth a count, not a stop."""
        return self.kind in ("empty file", "empty document")


class Piece(NamedTuple):
    """A file, or of a .jsonl file the lines that begin in bytes begin .. end - 1."""

    file: Path
    begin: int = 0
    end: int | None = None


Report = Callable[[Problem], None]  # returns to skip what is bad, raises to stop


def find_files(source: str | Path) -> list[Path]:
    """The file, or the readable files of a folder and the folders in it, in the order of their names.

    FileNotFoundError if the path does not exist, ValueError for a file of another kind.
    """
    root = Path(source)
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder; expected a folder, or a file of {_known()}")
    if root.is_file():
        if not root.name.endswith(SUFFIXES):
            raise ValueError(f"{root}: expected a file of {_known()}, got suffix {root.suffix!r}")
        return [root]
    return sorted(file for file in root.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())


def read_documents(piece: Piece, report: Report) -> Iterator[Document]:
    """The documents of a file, or of a part of it; none of them empty.

    What cannot be read is reported: text that is not UTF-8, a line that is not a record (with its number), a
    file that is broken, and what is empty. Where the report returns, the rest is read.
    """
    file = piece.file
    try:
        if file.stat().st_size == 0:
            report(Problem("empty file", f"{file}: empty, skipped"))
        elif file.name.endswith(".parquet"):
            yield from _parquet_rows(file, report)
        elif file.name.endswith((".jsonl", ".jsonl.gz")):
            yield from _json_lines(piece, report)
        else:
            yield from _text_file(file, report)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        report(Problem("broken file", f"{file}: broken or cut off: {error}"))


def refuse_half_pairs(text: str) -> None:
    """ValueError for half a surrogate pair: JSON can escape one, and no text is made of it.

    >>> refuse_half_pairs(json.loads('"a \\\\ud800"'))
    Traceback (most recent call last):
    ValueError: half a surrogate pair at character 2
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from None


def _known() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.name.endswith(".gz") else file.open("rb")  # type: ignore[return-value]


def _text_file(file: Path, report: Report) -> Iterator[Document]:
    with _open(file) as stream:
        data = stream.read()
    try:
        text = decode(data)
    except ValueError as error:
        report(Problem("bad UTF-8", f"{file}: {error}"))
        return
    if text.strip():
        yield Document(text)
    else:
        report(Problem("empty file", f"{file}: empty, skipped"))


def _json_lines(piece: Piece, report: Report) -> Iterator[Document]:
    file, begin, end = piece
    with _open(file) as stream:
        if begin > 0:  # a line that has begun before belongs to the piece before
            stream.seek(begin - 1)
            stream.readline()
        place = begin = stream.tell()
        blank = True
        # Not text lines: a JSON string may hold U+2028 and its like.
        for number, line in enumerate(stream, start=1):
            if end is not None and place >= end:
                return
            place += len(line)
            if line.isspace():
                continue
            blank = False
            try:
                yield _record(
                    json.loads(line.rstrip().decode("utf-8-sig" if place == len(line) else "utf-8"))
                )
            except _Bad as error:
                report(error.at(file, number, begin))
            except UnicodeDecodeError as error:
                bad = _Bad("bad UTF-8", f"not UTF-8 at byte {error.start} of the line ({error.reason})")
                report(bad.at(file, number, begin))
            except json.JSONDecodeError as error:
                bad = _Bad("broken JSON", f"broken JSON: {error.msg} at column {error.colno}")
                report(bad.at(file, number, begin))
            except (ValueError, RecursionError) as error:  # a number too long, lists too deep
                report(_Bad("broken JSON", f"JSON that cannot be read: {error}").at(file, number, begin))
        if blank and begin == 0 and end is None:
            report(Problem("empty file", f"{file}: empty, skipped"))


def _parquet_rows(file: Path, report: Report) -> Iterator[Document]:
    parquet = require("pyarrow.parquet", extra="data", purpose=f"{file}: reading .parquet")

    def broken(what: str, error: Exception) -> Problem:
        return Problem("broken file", f"{what}: {' '.join(str(error).split())}")

    try:
        table = parquet.ParquetFile(file)
    except (ValueError, OSError) as error:  # pyarrow's errors are of these kinds
        report(broken(f"{file}: not readable as .parquet", error))
        return
    with table:
        names = table.schema_arrow.names
        if "text" not in names:
            report(Problem("broken file", f'{file}: expected a column "text", got {", ".join(names)}'))
            return
        columns = [name for name in ("text", "prompt") if name in names]
        end = 0
        for group in range(table.num_row_groups):
            row, end = end, end + table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(row_groups=[group], columns=columns):
                    for place in range(len(batch)):
                        row += 1
                        try:
                            yield _record({name: batch.column(name)[place].as_py() for name in columns})
                        except UnicodeDecodeError as error:
                            report(_Bad("bad UTF-8", f"not UTF-8 ({error.reason})").at(file, row))
                        except _Bad as error:
                            report(error.at(file, row))
            except (ValueError, OSError) as error:
                report(broken(f"{file}:{row + 1}: rows {row + 1} to {end} cannot be read", error))


class _Bad(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message

    def at(self, file: Path, number: int, begin: int = 0) -> Problem:
        """The problem of line `number` of what begins at byte `begin`."""
        if begin > 0:
            with file.open("rb") as stream:
                while begin > 0:
                    before = stream.read(min(begin, 1 << 20))
                    number += before.count(b"\n")
                    begin -= len(before)
        return Problem(self.kind, f"{file}:{number}: {self.message}")


def _record(record: Any) -> Document:
    match record:
        case {"text": str(text), "prompt": str(prompt)}:
            pass
        case {"text": str(text), "prompt": None}:
            prompt = ""
        case {"text": str(text)} if "prompt" not in record:
            prompt = ""
        case _:
            raise _Bad("broken record", f"expected {_RECORD}, got {str(record)[:80]!r}")
    if not text.strip():
        raise _Bad("empty document", "empty text, skipped")
    try:
        refuse_half_pairs(prompt + text)
    except ValueError as error:
        raise _Bad("bad UTF-8", str(error)) from None
    return Document(text, prompt)
