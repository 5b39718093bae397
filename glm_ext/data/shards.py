"""Files to shards of tokens: the plan, the encoding of one shard, and the processes that encode them all.

A shard is a .npz file with the documents of some megabytes of files. It appears whole or not at all, and its
bytes depend on nothing but its sources, the tokenizer and the sentence splitter. Its arrays are in memory
while it is made. Only .jsonl is cut: a .txt, .gz or .parquet file is in one shard, however long.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from .bits import Bits, Flags
from .files import write_atomically
from .punkt import SentenceSplitter
from .sources import Piece, Problem, Report, read_documents
from .spans import Ints
from .store import token_dtype
from .tokenizer import GLMTokenizer

_MAX_CHARACTERS = 1 << 20  # of a text that is encoded at once: more costs memory, not less time
_WARNINGS_PER_SHARD = 5

OnError = Literal["stop", "skip"]


def plan_shards(files: Iterable[Path], shard_bytes: int) -> list[list[Piece]]:
    """Files, and parts of long .jsonl files, in shards of about shard_bytes; order is kept.

    Files of other kinds are not cut: one that is longer than shard_bytes makes a shard as long as it is.
    """
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
            shards[-1].append(piece := Piece(file, begin, end))
            room -= _bytes(piece)
    return shards


def sample_texts(
    pieces: Sequence[Piece], characters: int, report: Report = lambda problem: None
) -> Iterator[str]:
    """Texts of so many characters in all, if there are; of each piece an equal share, as far as it has one.

    The shortest piece comes first, and what it lacks of its share goes to the longer ones. What is bad
    is reported; where the report returns, it is left out.
    """
    left = characters
    for number, piece in enumerate(sorted(pieces, key=_bytes)):
        room = -(-left // (len(pieces) - number))
        left -= room
        texts = chain.from_iterable(
            chunks(document.prompt + document.text) for document in read_documents(piece, report)
        )
        while room > 0 and (chunk := next(texts, None)) is not None:
            yield chunk[:room]
            room -= min(room, len(chunk))
        left += room


def _bytes(piece: Piece) -> int:
    return (piece.file.stat().st_size if piece.end is None else piece.end) - piece.begin


def chunks(text: str, longest: int = _MAX_CHARACTERS) -> Iterator[str]:
    """A text in pieces of bounded length, cut before a blank line, else a line end, else a space.

    A word keeps the white space before it: in byte-level BPE the tokens are those of the whole, except about
    a cut within a word or a run of white space that leaves no other.

    >>> list(chunks("one two\\n\\nthree four", longest=12))
    ['one two', '\\n\\nthree four']
    """
    begin = 0
    while len(text) - begin > longest:
        cuts = (_before_space(text, begin, begin + longest, mark) for mark in ("\n\n", "\n", " "))
        end = next((cut for cut in cuts if cut > begin), begin + longest)
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _before_space(text: str, begin: int, end: int, mark: str) -> int:
    """Where the white space around the last `mark` of text[begin:end] begins; `begin` for no such place."""
    place = max(begin, text.rfind(mark, begin + 1, end))
    return begin + len(text[begin:place].rstrip())


# ------------------------------------------------------------------------------------------------ one shard


class Encoder:
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
        for group in _runs(documents, lambda document: len(document.text) + len(document.prompt)):
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
        for run in _runs(texts, len):  # a document may be of any length
            if self.splitter is None:
                for ids in self.tokenizer.encode_batch(run):
                    yield np.array(ids, dtype=self.dtype), np.zeros(len(ids), dtype=np.bool_)
            else:
                for text, (ids, reach) in zip(run, self.tokenizer.encode_with_ends(run), strict=True):
                    yield (
                        np.array(ids, dtype=self.dtype),
                        end_flags(self.splitter.ends(text), np.array(reach)),
                    )


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


_Item = TypeVar("_Item")


def _runs(items: Iterable[_Item], characters: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Items in runs of a million characters, and those of the last item: what is encoded in one call."""
    run: list[_Item] = []
    total = 0
    for item in items:
        run.append(item)
        total += characters(item)
        if total >= _MAX_CHARACTERS:
            yield run
            run, total = [], 0
    if run:
        yield run


def _make_shard(encoder: Encoder, path: Path, pieces: list[Piece], on_error: OnError) -> list[str]:
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


def shard_file(root: Path, number: int) -> Path:
    return root / "shards" / f"{number:06}.npz"


def encode_all(
    root: Path,
    shards: list[list[Piece]],
    encoder: Encoder,
    on_error: OnError,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    missing = [number for number in range(len(shards)) if not shard_file(root, number).exists()]
    jobs = [(shard_file(root, number), shards[number], on_error) for number in missing]
    done = len(shards) - len(jobs)
    progress(done, len(shards))
    with _mapping(encoder, min(workers, len(jobs))) as results:
        for messages in results(jobs):
            for message in messages:
                warnings.warn(message, stacklevel=2)
            done += 1
            progress(done, len(shards))


_Job = tuple[Path, list[Piece], OnError]
_pool_encoder: Encoder  # of this process, where it is one of a pool


@contextmanager
def _mapping(encoder: Encoder, workers: int) -> Iterator[Callable[[list[_Job]], Iterable[list[str]]]]:
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
    _pool_encoder = Encoder(GLMTokenizer.from_json(tokenizer), splitter)


def _end_with_parent() -> None:
    """A parent that is killed cannot stop its processes: they watch it themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_job(job: _Job) -> list[str]:
    return _make_shard(_pool_encoder, *job)
