"""Where documents come from: the default corpus, or the user's files; and which of them are held out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

from .held_out import hold_out, too_few
from .sources import SUFFIXES, Piece, Problem, find_files, read_documents
from .stdlib_text import default_documents

_PIECE_LENGTH = 4000  # characters, some pages


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
    parts = list(documents)
    if too_few(len(parts), held_out):
        parts = [piece for document in documents for piece in _pieces(document)]
    hidden = hold_out((part.encode("utf-8", "surrogatepass") for part in parts), held_out)
    if hidden.all():
        raise ValueError(
            f"the corpus is too small to hold a part of it out: {len(documents)} documents, "
            f"{sum(map(len, documents)):,} characters; expected several different documents, or some pages "
            "of lines"
        )
    return Split(list(compress(parts, ~hidden)), list(compress(parts, hidden)))


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
