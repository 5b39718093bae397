"""Where documents come from: the default corpus, or the user's files; and which of them are held out."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .stdlib_text import default_documents

_SUFFIXES = (".txt", ".jsonl")

# With fewer held-out documents than this to expect, chance decides how much is held out: cut the documents
# into pieces of this many characters, some pages.
_FEW_HELD_OUT = 8
_PIECE_LENGTH = 4000


class Split(NamedTuple):
    """Documents to train on and documents never trained on."""

    train: list[str]
    held_out: list[str]


def load_documents(path: str | Path | None = None) -> list[str]:
    """Documents of a .txt file (one), a .jsonl file (one a line: {"text": ...}) or a folder of such files.

    Without a path, the default corpus. A folder is read with the folders in it, in the order of the names. An
    empty file or an empty text is skipped with a warning. FileNotFoundError if the path does not exist;
    ValueError for text that is not UTF-8, for a line that is not such a JSON object (with file and line), and
    where there is nothing to read.
    """
    if path is None:
        return default_documents()
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder; expected a folder, a .txt or a .jsonl file")
    if root.is_file():
        if root.suffix not in _SUFFIXES:
            raise ValueError(f"{root}: expected a .txt or a .jsonl file, got suffix {root.suffix!r}")
        files = [root]
    else:
        files = sorted(file for suffix in _SUFFIXES for file in root.rglob(f"*{suffix}") if file.is_file())
    documents = [document for file in files for document in _read_file(file)]
    if not documents:
        raise ValueError(f"{root}: no text found; expected .txt or .jsonl files that are not empty")
    return documents


def split_documents(documents: Sequence[str], held_out: float = 0.05) -> Split:
    """Holds out about this part of the documents, at least one, chosen by a hash of their text.

    Equal documents share a side. Where there are too few of them to share out (a corpus of some long files),
    they are first cut at line ends into pieces of some pages. ValueError if that leaves fewer than two
    different pieces.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out: expected a number between 0 and 1, got {held_out}")
    parts = list(documents)
    if len(parts) * held_out < _FEW_HELD_OUT:
        parts = [piece for document in documents for piece in _pieces(document)]
    ranks = [_hash_fraction(part) for part in parts]
    limit = max(held_out, min(ranks, default=0.0))
    train = [part for part, rank in zip(parts, ranks, strict=True) if rank > limit]
    if not train:
        raise ValueError(
            f"the corpus is too small to hold a part of it out: {len(documents)} documents, "
            f"{sum(map(len, documents)):,} characters; expected several documents, or some pages of lines"
        )
    return Split(train, [part for part, rank in zip(parts, ranks, strict=True) if rank <= limit])


def _hash_fraction(document: str) -> float:
    digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _pieces(document: str) -> Iterator[str]:
    piece: list[str] = []
    size = 0
    for line in document.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= _PIECE_LENGTH:
            yield "".join(piece)
            piece, size = [], 0
    if size:
        yield "".join(piece)


def _read_file(file: Path) -> Iterator[str]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: not UTF-8 at byte {error.start} ({error.reason}); convert it, e.g. with iconv -t UTF-8"
        ) from error
    if not text.strip():
        warnings.warn(f"{file}: empty, skipped", stacklevel=3)
    elif file.suffix == ".txt":
        yield text
    else:
        yield from _read_json_lines(file, text)


def _read_json_lines(file: Path, text: str) -> Iterator[str]:
    # Not splitlines: a JSON string may hold U+2028 and its like.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number}: broken JSON: {error.msg} at column {error.colno}") from error
        match record:
            case {"text": str(document)}:
                pass
            case _:
                raise ValueError(
                    f'{file}:{number}: expected an object with a string "text", got {line[:80]!r}'
                )
        if document.strip():
            yield document
        else:
            warnings.warn(f"{file}:{number}: empty text, skipped", stacklevel=4)
