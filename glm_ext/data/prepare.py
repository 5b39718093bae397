"""From files to a token store: in parts, in parallel, and resumable.

The files are cut into shards of some megabytes by a plan that depends on their names and sizes alone. A shard
is encoded by one process and appears in the folder whole or not at all, so a run that is stopped, however
hard, goes on with those that are missing; and the store has the same bytes for any number of processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .bits import Bits, Flags
from .punkt import SentenceSplitter
from .sources import Document, Piece, Problem, Report, find_files, read_documents
from .spans import Ints
from .store import HEADER, PLAN, StoreWriter, token_dtype, write_atomically
from .tokenizer import GLMTokenizer

_MAX_CHARACTERS = 1 << 20  # of a text that is encoded at once: more costs memory, not less time
_WARNINGS_PER_SHARD = 5


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What the store depends on besides its sources and its tokenizer.

    on_error: what becomes of documents that cannot be read, "stop" (a ValueError that names the place) or
    "skip" (counted). punkt: split sentences. shard_bytes: source bytes of a shard. sample_characters: how
    much text a tokenizer is trained on, punkt_characters how much Punkt, spread over the sources.
    """

    on_error: Literal["stop", "skip"] = "stop"
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

    make_tokenizer: gets a sample of the texts, to train on or to ignore. tokenizer_name: tells one choice of
    tokenizer from another. workers: processes, started afresh, so that a script with more than one keeps its
    own work under `if __name__ == "__main__"`. progress: called with the number of finished shards and of
    all. Returns the header of the store. FileExistsError if `out` is finished or something else; ValueError
    where its beginnings are of other sources or settings, for what cannot be read (on_error="stop"), and if
    there is no text at all.
    """
    root = Path(out)
    files = [file for source in sources for file in find_files(source)]
    shards = plan_shards(files, settings.shard_bytes)
    if not shards:
        raise ValueError(f"{', '.join(map(str, sources))}: no text found; expected files that are not empty")
    _begin(root, files, settings, tokenizer_name)
    tokenizer = _tokenizer(root, shards, settings, make_tokenizer)
    splitter = _splitter(root, shards, settings) if settings.punkt else None
    _encode_all(root, shards, _Encoder(tokenizer, splitter), settings, workers, progress)

    writer = StoreWriter(root, tokenizer.vocab_size, sentences=settings.punkt)
    skipped: Counter[str] = Counter()
    for number in range(len(shards)):
        with np.load(_shard_file(root, number)) as shard:
            ends = Bits(shard["ends"], len(shard["tokens"]))
            writer.add(shard["tokens"], shard["lengths"], shard["prompts"], ends[:])
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


def plan_shards(files: Iterable[Path], shard_bytes: int) -> list[list[Piece]]:
    """Files, and parts of long .jsonl files, in shards of about shard_bytes; order is kept."""
    shards: list[list[Piece]] = []
    room = 0
    for file in files:
        size = file.stat().st_size
        parts = max(1, round(size / shard_bytes)) if file.suffix == ".jsonl" else 1
        cuts = [size * part // parts for part in range(1, parts)]
        for begin, end in zip([0, *cuts], [*cuts, None], strict=True):
            if room <= 0:
                shards.append([])
                room = shard_bytes
            shards[-1].append(Piece(file, begin, end))
            room -= (size if end is None else end) - begin
    return shards


def sample_texts(pieces: Sequence[Piece], characters: int) -> Iterator[str]:
    """Texts of about so many characters in all, an equal share of each piece. What is bad is left out."""
    share = -(-characters // len(pieces))
    for piece in pieces:
        room = share
        for document in read_documents(piece, report=lambda problem: None):
            for chunk in chunks(document.prompt + document.text):
                yield chunk[:room]
                room -= len(chunk)
                if room <= 0:
                    break
            if room <= 0:
                break


def chunks(text: str, longest: int = _MAX_CHARACTERS) -> Iterator[str]:
    """A text in pieces of bounded length, cut before a blank line, else a line end, else a space.

    A word keeps the white space before it, as byte-level BPE wants; so its tokens are those of the whole.

    >>> list(chunks("one two\\n\\nthree four", longest=12))
    ['one two', '\\n\\nthree four']
    """
    begin = 0
    while len(text) - begin > longest:
        end = next(
            (
                place
                for mark in ("\n\n", "\n", " ")
                if (place := text.rfind(mark, begin + 1, begin + longest)) > 0
            ),
            begin + longest,
        )
        while end - 1 > begin and text[end - 1].isspace():  # cut before the whole run of white space
            end -= 1
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _begin(root: Path, files: list[Path], settings: PrepareSettings, tokenizer_name: str) -> None:
    """Writes down what the store will be of, or finds that an earlier call wrote the same."""
    plan = {
        "files": [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "settings": asdict(settings),
        "tokenizer": tokenizer_name,
    }
    path = root / PLAN
    if (root / HEADER).exists():
        raise FileExistsError(f"{root}: a finished token store; choose another folder, or remove this one")
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != plan:
            raise ValueError(
                f"{root}: begun with other files or settings; give the same ones to go on, or remove it"
            )
    elif root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root}: exists and is no token store; choose another folder")
    else:
        (root / "shards").mkdir(parents=True)
        write_atomically(path, json.dumps(plan).encode())


def _tokenizer(
    root: Path,
    shards: list[list[Piece]],
    settings: PrepareSettings,
    make: Callable[[Iterator[str]], GLMTokenizer],
) -> GLMTokenizer:
    if not (root / "tokenizer.json").exists():
        made = make(sample_texts(list(chain.from_iterable(shards)), settings.sample_characters))
        part = made.save(root / ".tokenizer.json")
        part.replace(root / "tokenizer.json")
    return GLMTokenizer.load(root)


def _splitter(root: Path, shards: list[list[Piece]], settings: PrepareSettings) -> SentenceSplitter:
    path = root / "punkt.json"
    if not path.exists():
        texts = sample_texts(list(chain.from_iterable(shards)), settings.punkt_characters)
        write_atomically(path, SentenceSplitter.train(texts).parameters.encode())
    return SentenceSplitter(path.read_text(encoding="utf-8"))


def _shard_file(root: Path, number: int) -> Path:
    return root / "shards" / f"{number:06}.npz"


# ------------------------------------------------------------------------------------------------ one shard


class _Encoder:
    """Texts to tokens with sentence ends; what every process of a pool holds one of."""

    def __init__(self, tokenizer: GLMTokenizer, splitter: SentenceSplitter | None) -> None:
        self.tokenizer, self.splitter = tokenizer, splitter
        self.dtype = token_dtype(tokenizer.vocab_size)

    def encode_shard(self, pieces: list[Piece], report: Report) -> dict[str, NDArray[Any]]:
        """The documents of a shard: tokens, lengths, prompt lengths, and a flag where a sentence ends."""
        tokens: list[NDArray[Any]] = []
        flags: list[Flags] = []
        lengths: list[int] = []
        prompts: list[int] = []
        documents = chain.from_iterable(read_documents(piece, report) for piece in pieces)
        for group in _groups(documents):
            parts = [list(chunks(part)) if part else [] for document in group for part in document]
            encoded = iter(self._encode([chunk for part in parts for chunk in part]))
            for text, prompt in zip(parts[::2], parts[1::2], strict=True):
                of_text, of_prompt = ([next(encoded) for _ in part] for part in (text, prompt))
                pairs = [*of_prompt, *of_text, (self._eos, np.ones(1, dtype=np.bool_))]
                tokens += [ids for ids, _ in pairs]
                flags += [ends for _, ends in pairs]
                lengths.append(sum(len(ids) for ids, _ in pairs))
                prompts.append(sum(len(ids) for ids, _ in of_prompt))
        none = np.zeros(0, dtype=np.bool_)
        return {
            "tokens": np.concatenate([np.zeros(0, dtype=self.dtype), *tokens]),
            "lengths": np.array(lengths, dtype=np.int64),
            "prompts": np.array(prompts, dtype=np.int64),
            "ends": Bits.pack(np.concatenate([none, *flags])).data,
        }

    @property
    def _eos(self) -> NDArray[Any]:
        return np.array([self.tokenizer.eos_id], dtype=self.dtype)

    def _encode(self, texts: list[str]) -> Iterator[tuple[NDArray[Any], Flags]]:
        if self.splitter is None:
            for ids in self.tokenizer.encode_batch(texts):
                yield np.array(ids, dtype=self.dtype), np.zeros(len(ids), dtype=np.bool_)
            return
        for text, (ids, reach) in zip(texts, self.tokenizer.encode_with_ends(texts), strict=True):
            yield np.array(ids, dtype=self.dtype), end_flags(self.splitter.ends(text), np.array(reach))


def end_flags(sentence_ends: list[int], reach: Ints) -> Flags:
    """Which tokens end a sentence: the last that reaches no further than its end, or the one that crosses it.

    reach [N]: up to which character each token reaches, never falling.

    >>> end_flags([3, 7], np.array([1, 3, 5, 8, 9]))
    array([False,  True, False,  True, False])
    """
    flags = np.zeros(len(reach), dtype=np.bool_)
    if len(reach):
        last = np.searchsorted(reach, sentence_ends, side="right") - 1
        crossed = (last < 0) | (reach[last] < sentence_ends)
        flags[np.minimum(last + crossed, len(reach) - 1)] = True
    return flags


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of about a million characters: what is encoded in one call."""
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.text) + len(document.prompt)
        if characters >= _MAX_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _make_shard(encoder: _Encoder, path: Path, pieces: list[Piece], on_error: str) -> list[str]:
    """Writes one shard; returns the first few of its problems."""
    problems: list[Problem] = []

    def report(problem: Problem) -> None:
        if on_error == "stop" and not problem.empty:
            raise ValueError(f"{problem.message} (or leave such documents out by --on_error skip)")
        problems.append(problem)

    arrays = encoder.encode_shard(pieces, report)
    arrays["skipped"] = np.array(json.dumps(Counter(problem.kind for problem in problems)))
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    write_atomically(path, stream.getvalue())
    more = len(problems) - _WARNINGS_PER_SHARD
    said = [problem.message for problem in problems[:_WARNINGS_PER_SHARD]]
    return said if more <= 0 else [*said, f"and {more} more in the same shard"]


# ----------------------------------------------------------------------------------------------- all shards


def _encode_all(
    root: Path,
    shards: list[list[Piece]],
    encoder: _Encoder,
    settings: PrepareSettings,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    missing = [number for number in range(len(shards)) if not _shard_file(root, number).exists()]
    jobs = [(_shard_file(root, number), shards[number], settings.on_error) for number in missing]
    done = len(shards) - len(jobs)
    progress(done, len(shards))
    with _mapping(encoder, min(workers, len(jobs))) as results:
        for messages in results(jobs):
            for message in messages:
                warnings.warn(message, stacklevel=2)
            done += 1
            progress(done, len(shards))


_Job = tuple[Path, list[Piece], Literal["stop", "skip"]]
_pool_encoder: _Encoder  # of this process, where it is one of a pool


@contextmanager
def _mapping(encoder: _Encoder, workers: int) -> Iterator[Callable[[list[_Job]], Iterable[list[str]]]]:
    """What runs jobs: this process, or a pool of others that are started afresh (no lock is inherited)."""
    if workers <= 1:
        yield lambda jobs: (_make_shard(encoder, *job) for job in jobs)
        return
    parameters = None if encoder.splitter is None else encoder.splitter.parameters
    with ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(encoder.tokenizer.to_json(), parameters),
    ) as pool:
        yield lambda jobs: pool.map(_run_job, jobs)


def _start_worker(tokenizer: str, parameters: str | None) -> None:
    global _pool_encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a word of its own
    threading.Thread(target=_end_with_parent, daemon=True).start()
    splitter = None if parameters is None else SentenceSplitter(parameters)
    _pool_encoder = _Encoder(GLMTokenizer.from_json(tokenizer), splitter)


def _end_with_parent() -> None:
    """A parent that is killed cannot stop its processes: they watch it themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_job(job: _Job) -> list[str]:
    return _make_shard(_pool_encoder, *job)


def file_checksum(path: Path) -> str:
    """Tells one file from another, for tokenizer_name."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
