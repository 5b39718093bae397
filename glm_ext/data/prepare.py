"""From files to a token store: in parts, in parallel, and resumable.

The files are cut into shards of some megabytes by a plan that depends on their names and sizes alone. A shard
is encoded by one process and appears in the folder whole or not at all, so a run that is stopped, however
hard, goes on with those that are missing; and the store has the same bytes for any number of processes.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .bits import Bits
from .files import write_atomically
from .punkt import SentenceSplitter
from .shards import Encoder, OnError, encode_all, plan_shards, sample_texts, shard_file
from .sources import Piece, find_files
from .store import HEADER, PLAN, StoreWriter
from .tokenizer import GLMTokenizer


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What the store depends on besides its sources and its tokenizer.

    on_error: what becomes of documents that cannot be read, "stop" (a ValueError that names the place) or
    "skip" (counted).
    punkt: split sentences.
    shard_bytes: source bytes of a shard.
    sample_characters: how much text a tokenizer is trained on, punkt_characters how much Punkt, spread over
    the sources.
    """

    on_error: OnError = "stop"
    punkt: bool = True
    shard_bytes: int = 16 << 20
    sample_characters: int = 100_000_000
    punkt_characters: int = 10_000_000

    def __post_init__(self) -> None:
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f'on_error: expected "stop" or "skip", got {self.on_error!r}')
        for name in ("shard_bytes", "sample_characters", "punkt_characters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    make_tokenizer: Callable[[Iterator[str]], GLMTokenizer],
    *,
    settings: PrepareSettings = PrepareSettings(),
    tokenizer_name: str = "given",
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Makes a token store of files and folders, or goes on where an earlier call was stopped.

    make_tokenizer: gets a sample of the texts, to train on or to ignore.
    tokenizer_name: tells one choice of tokenizer from another.
    workers: processes, started afresh, so that a script with more than one keeps its own work under
    `if __name__ == "__main__"`.
    progress: called with the number of finished shards and of all.

    Returns the header of the store. FileExistsError if `out` is finished or something else; ValueError where
    its beginnings are of other sources or settings, for what cannot be read (on_error="stop"), and if there
    is no text at all.
    """
    root = Path(out)
    files = [file for source in sources for file in find_files(source)]
    shards = plan_shards(files, settings.shard_bytes)
    if not shards:
        raise ValueError(f"{', '.join(map(str, sources))}: no text found; expected files that are not empty")
    _begin(root, files, settings, tokenizer_name)
    tokenizer = _tokenizer(root, shards, settings, make_tokenizer)
    splitter = _splitter(root, shards, settings) if settings.punkt else None
    encode_all(root, shards, Encoder(tokenizer, splitter), settings.on_error, workers, progress)

    writer = StoreWriter(root, tokenizer.vocab_size, sentences=settings.punkt)
    skipped: Counter[str] = Counter()
    for number in range(len(shards)):
        with np.load(shard_file(root, number)) as shard:
            tokens = shard["tokens"]  # read from the file each time that it is asked for
            writer.add(tokens, shard["lengths"], shard["prompts"], Bits(shard["ends"], len(tokens))[:])
            skipped.update(json.loads(str(shard["skipped"])))
    if not writer.documents:
        raise ValueError(
            f"{', '.join(map(str, sources))}: no text found: skipped {dict(skipped)}; remove {root}"
        )
    writer.close(
        vocab_size=tokenizer.vocab_size, files_read=len(files), skipped=dict(skipped), punkt=settings.punkt
    )
    shutil.rmtree(root / "shards")
    for name in (PLAN, "punkt.json"):
        (root / name).unlink(missing_ok=True)
    header: dict[str, Any] = json.loads((root / HEADER).read_text(encoding="utf-8"))
    return header


def _begin(root: Path, files: list[Path], settings: PrepareSettings, tokenizer_name: str) -> None:
    """Writes down what the store will be of, or finds that an earlier call wrote the same."""
    # Shards that were finished under on_error="stop" are those that "skip" would make: it may change.
    plan = {
        "files": [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "settings": {name: value for name, value in asdict(settings).items() if name != "on_error"},
        "tokenizer": tokenizer_name,
    }
    path = root / PLAN
    begun = (root / "tokenizer.json").exists()  # made first: before it, nothing is of the plan
    if (root / HEADER).exists():
        raise FileExistsError(f"{root}: a finished token store; choose another folder, or remove this one")
    if not path.exists() and root.exists() and any(not file.name.startswith(".") for file in root.iterdir()):
        raise FileExistsError(f"{root}: exists and is no token store; choose another folder")
    if not (path.exists() and begun):
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(plan).encode())
    elif json.loads(path.read_text(encoding="utf-8")) != plan:
        raise ValueError(
            f"{root}: begun with other files or settings; give the same ones to go on, or remove it"
        )
    (root / "shards").mkdir(exist_ok=True)


def _tokenizer(
    root: Path,
    shards: list[list[Piece]],
    settings: PrepareSettings,
    make: Callable[[Iterator[str]], GLMTokenizer],
) -> GLMTokenizer:
    if not (root / "tokenizer.json").exists():
        made = make(sample_texts(list(chain.from_iterable(shards)), settings.sample_characters))
        write_atomically(root / "tokenizer.json", made.to_json().encode())
    return GLMTokenizer.load(root)


def _splitter(root: Path, shards: list[list[Piece]], settings: PrepareSettings) -> SentenceSplitter:
    path = root / "punkt.json"
    if not path.exists():
        texts = sample_texts(list(chain.from_iterable(shards)), settings.punkt_characters)
        write_atomically(path, SentenceSplitter.train(texts).parameters.encode())
    return SentenceSplitter(path.read_text(encoding="utf-8"))
