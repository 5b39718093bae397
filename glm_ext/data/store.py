"""The token store: a folder of tokenized documents that is read through memory maps.

    store.json      format, counts, and of every file its size and checksum; written last
    tokenizer.json  what the ids mean
    tokens.bin      ids, uint16 or uint32 by the size of the vocabulary, every document closed by eos
    offsets.bin     int64 [documents + 1]: where each document begins
    sentences.bits  a bit a token: ends a sentence (only where sentences were split)
    weights.bits    a bit a token: counts in the loss (only where there are prompts)

All numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bits import Bits, Flags
from .documents import TokenDocuments
from .files import file_sha256, write_atomically
from .spans import Ints
from .tokenizer import GLMTokenizer

HEADER = "store.json"
PLAN = "plan.json"  # of a store that is only begun
_FORMAT = 1
_TOKENIZER = "tokenizer.json"


class TokenStore(NamedTuple):
    """An open store: its documents are memory maps, nothing is copied."""

    documents: TokenDocuments
    tokenizer: GLMTokenizer
    header: dict[str, Any]

    @property
    def sha256(self) -> str:
        """The checksum of the tokens: what a run has learned from."""
        checksum: str = self.header["files"]["tokens.bin"]["sha256"]
        return checksum


def is_store(path: str | Path) -> bool:
    """Whether a folder is a store, finished or only begun."""
    return any((Path(path) / name).is_file() for name in (HEADER, PLAN))


def open_store(path: str | Path, *, verify: bool = True) -> TokenStore:
    """Opens a finished store.

    verify: read every file once and compare its checksum; otherwise only the sizes. FileNotFoundError if the
    folder is no finished store, ValueError naming the file that is altered, cut off or missing.
    """
    root = Path(path)
    if not (root / HEADER).is_file():
        raise FileNotFoundError(
            f"{root}: no finished token store (no {HEADER}); run glm-ext prepare to its end"
        )
    header = _read_header(root / HEADER)
    for name, expected in header["files"].items():
        _check_file(root / name, expected, verify)

    def array(name: str, dtype: str) -> NDArray[Any]:
        return _Mapped(root / name, dtype=dtype, mode="r")

    def bits(name: str) -> Bits | None:
        return Bits(array(name, "u1"), header["tokens"]) if name in header["files"] else None

    try:
        documents = TokenDocuments(
            tokens=array("tokens.bin", header["dtype"]),
            offsets=array("offsets.bin", "<i8"),
            weights=bits("weights.bits"),
            sentence_ends=bits("sentences.bits"),
        )
    except (ValueError, KeyError) as error:
        raise ValueError(f"{root / HEADER}: does not fit its files: {error}; prepare it again") from error
    if (len(documents), documents.num_tokens) != (header["documents"], header["tokens"]):
        raise ValueError(
            f"{root / HEADER}: counts {header['documents']} documents and {header['tokens']} tokens, the "
            f"files hold {len(documents)} and {documents.num_tokens}; prepare it again"
        )
    return TokenStore(documents, GLMTokenizer.load(root), header)


class StoreWriter:
    """Writes a store part by part; it is one when `close` has returned, and not before.

    The tokenizer's tokenizer.json must lie in the folder.
    """

    def __init__(self, root: Path, vocab_size: int, *, sentences: bool) -> None:
        self.root, self.sentences = root, sentences
        self.dtype = token_dtype(vocab_size)
        self._counts = {"documents": 0, "tokens": 0, "prompt_tokens": 0}
        self._files = {name: _Sink(root / name) for name in ("tokens.bin", "offsets.bin", "weights.bits")}
        self._packers = {"weights.bits": _Packer(self._files["weights.bits"])}
        if sentences:
            self._files["sentences.bits"] = _Sink(root / "sentences.bits")
            self._packers["sentences.bits"] = _Packer(self._files["sentences.bits"])
        self._files["offsets.bin"].write(np.zeros(1, dtype="<i8"))

    def add(self, tokens: NDArray[Any], lengths: Ints, prompts: Ints, ends: Flags) -> None:
        """Documents in a row: their tokens, how many each has and how many of these are prompt, the ends."""
        offsets = np.cumsum(lengths, dtype=np.int64)
        edge = np.zeros(len(tokens) + 1, dtype=np.int64)
        np.add.at(edge, offsets - lengths, 1)
        np.add.at(edge, offsets - lengths + prompts, -1)
        self._files["tokens.bin"].write(tokens.astype(self.dtype))
        self._files["offsets.bin"].write((offsets + self._counts["tokens"]).astype("<i8"))
        self._packers["weights.bits"].add(np.cumsum(edge[:-1]) == 0)
        if self.sentences:
            self._packers["sentences.bits"].add(ends)
        self._counts["documents"] += len(lengths)
        self._counts["tokens"] += len(tokens)
        self._counts["prompt_tokens"] += int(prompts.sum())

    @property
    def documents(self) -> int:
        return self._counts["documents"]

    def close(self, **facts: Any) -> None:
        """Finishes the files and writes the header, `facts` in it, in one step."""
        for packer in self._packers.values():
            packer.close()
        files = {name: sink.close() for name, sink in self._files.items()}
        if not self._counts["prompt_tokens"]:
            del files["weights.bits"]
            (self.root / "weights.bits").unlink()
        tokenizer = self.root / _TOKENIZER
        files[_TOKENIZER] = {"bytes": tokenizer.stat().st_size, "sha256": file_sha256(tokenizer)}
        header = {"format": _FORMAT, **self._counts, "dtype": self.dtype, **facts, "files": files}
        write_atomically(self.root / HEADER, json.dumps(header, indent=2, ensure_ascii=False).encode())


def token_dtype(vocab_size: int) -> str:
    """The smallest of the two dtypes that holds every id.

    >>> token_dtype(65536), token_dtype(65537)
    ('<u2', '<u4')
    """
    return "<u2" if vocab_size <= 2**16 else "<u4"


class _Mapped(np.memmap):
    """A memory map that travels to another process by the name of its file; a part of it as a copy."""

    def __getitem__(self, place: Any) -> Any:
        # To make a part a memory map takes longer than to copy its tokens.
        return self.view(np.ndarray)[place]

    def __reduce__(self) -> Any:
        if self.filename is not None and self.nbytes == Path(self.filename).stat().st_size:
            return _Mapped, (self.filename, self.dtype, "r")
        return np.array(self).__reduce__()


class _Sink:
    """A file that is written once from begin to end, and its checksum."""

    def __init__(self, path: Path) -> None:
        self._stream, self._hash, self._bytes = path.open("wb"), hashlib.sha256(), 0

    def write(self, array: NDArray[Any]) -> None:
        data = array.tobytes()
        self._stream.write(data)
        self._hash.update(data)
        self._bytes += len(data)

    def close(self) -> dict[str, Any]:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}


class _Packer:
    """Flags of any number at a time, written as whole bytes."""

    def __init__(self, sink: _Sink) -> None:
        self._sink, self._rest = sink, np.zeros(0, dtype=np.bool_)

    def add(self, flags: Flags) -> None:
        flags = np.concatenate((self._rest, flags))
        whole = len(flags) // 8 * 8
        self._sink.write(Bits.pack(flags[:whole]).data)
        self._rest = flags[whole:]

    def close(self) -> None:
        self._sink.write(Bits.pack(self._rest).data)


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: altered or cut off: {error}; prepare the store again") from error
    match header:
        case {"format": int(version)} if version != _FORMAT:
            raise ValueError(f"{path}: expected format {_FORMAT}, got {version}; prepare the store again")
        case {"documents": int(), "tokens": int(), "dtype": "<u2" | "<u4", "files": dict()}:
            return dict(header)
    raise ValueError(f"{path}: not the header of a token store; prepare the store again")


def _check_file(path: Path, expected: Mapping[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: missing from the token store; prepare it again")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(
            f"{path}: expected {expected['bytes']} bytes, got {size}: cut off or altered; "
            "prepare the store again"
        )
    if verify and file_sha256(path) != expected["sha256"]:
        raise ValueError(f"{path}: altered: its checksum is not the one in {HEADER}; prepare the store again")
