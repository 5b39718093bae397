"""Where documents come from: the default corpus, or the user's files; and which of them are held out."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .sources import SUFFIXES, Piece, Problem, find_files, read_documents
from .stdlib_text import default_documents

# With fewer held-out documents than this to expect, chance decides how much is held out: cut the documents
# into pieces of this many characters, some pages.
_FEW_HELD_OUT = 8
_PIECE_LENGTH = 4000


class Split(NamedTuple):
    """Documents to train on and documents never trained on."""

    train: list[str]
    held_out: list[str]


def load_documents(path: str | Path | None = None) -> list[str]:
    """Documents of a file or a folder of files, of the kinds that `sources` reads.

    Without a path, the default corpus. A folder is read with the folders in it, in the order of the names. An
    empty file or an empty text is skipped with a warning. FileNotFoundError if the path does not exist;
    ValueError for text that is not UTF-8, for a line that is not a record (with file and line), for a record
    with a prompt, which plain text cannot keep apart, and where there is nothing to read.
    """
    if path is None:
        return default_documents()
    documents = []
    for file in find_files(path):
        for document in read_documents(Piece(file), warn_or_raise):
            if document.prompt:
                raise ValueError(f"{file}: has prompts; make a token store of it: glm-ext prepare {path}")
            documents.append(document.text)
    if not documents:
        raise ValueError(f"{path}: no text found; expected {', '.join(SUFFIXES)} files that are not empty")
    return documents


def warn_or_raise(problem: Problem) -> None:
    """A report for `read_documents`: what is empty is skipped with a warning, the rest a ValueError."""
    if not problem.empty:
        raise ValueError(problem.message)
    warnings.warn(problem.message, stacklevel=2)


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
