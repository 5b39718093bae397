"""glm-ext prepare: files of text -> a token store that `glm-ext pretrain --data.path` reads."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glm_ext.cli.arguments import parse_arguments
from glm_ext.cli.errors import UserError, user_errors
from glm_ext.data.files import file_sha256
from glm_ext.data.prepare import PrepareSettings, prepare
from glm_ext.data.tokenizer import GLMTokenizer
from glm_ext.train.settings import command_parser

_DESCRIPTION = """Makes a token store of files and folders: .txt (a document), .jsonl (a document a line,
as {"text": ...} or {"prompt": ..., "text": ...}), both also as .gz, and .parquet with such columns. Stopped
at any moment, the same command goes on where it was."""


def main(arguments: Sequence[str]) -> int:
    with user_errors():
        options = parse(arguments)
        settings = PrepareSettings(on_error=options.on_error, punkt=split_by_punkt(options.sentences))
        tokenizer = None if options.tokenizer == "train" else GLMTokenizer.load(options.tokenizer)

        def make_tokenizer(texts: Iterator[str]) -> GLMTokenizer:
            return tokenizer or GLMTokenizer.train(texts, options.vocab_size, options.kind)

        began = time.perf_counter()
        header = prepare(
            options.sources,
            options.out,
            make_tokenizer,
            settings=settings,
            tokenizer_name=tokenizer_name(options, tokenizer),
            workers=options.workers,
            progress=show_progress,
        )
    report(options.out, header, time.perf_counter() - began)
    return 0


def parse(arguments: Sequence[str]) -> Any:
    parser = command_parser("glm-ext prepare", _DESCRIPTION)
    add = parser.add_argument
    add("sources", type=str, nargs="+", help="files, and folders that are searched for such files")
    add("--out", type=str, required=True, help="folder of the store, to be made")
    add("--tokenizer", type=str, required=True, help='tokenizer.json, or "train" to learn one from the text')
    add("--kind", type=str, default="bpe", help="of a tokenizer to train: bpe, wordpiece or unigram")
    add("--vocab_size", type=int, default=32000, help="of a tokenizer to train")
    add(
        *("--sentences",),
        type=str,
        default="auto",
        help="punkt: ends found by nltk, which learns abbreviations from the text; marks: at every end mark, "
        "as training does without a store; auto: punkt where nltk is installed",
    )
    add("--on_error", type=str, default="stop", help="at what cannot be read: stop, or skip and count")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parse_arguments(parser, arguments)
    if options.workers < 1:
        raise UserError(f"workers: expected at least 1, got {options.workers}")
    if options.sentences not in ("auto", "punkt", "marks"):
        raise UserError(f"sentences: expected auto, punkt or marks, got {options.sentences!r}")
    return options


def split_by_punkt(sentences: str) -> bool:
    if sentences != "auto":
        return sentences == "punkt"
    found = find_spec("nltk") is not None
    if not found:
        print(
            "glm-ext: sentences end at every end mark, since nltk is not installed "
            "(pip install 'glm_ext[data]')",
            file=sys.stderr,
        )
    return found


def tokenizer_name(options: Any, tokenizer: GLMTokenizer | None) -> str:
    """Tells one choice of tokenizer from another, so that a resumed run cannot mix two."""
    if tokenizer is None:
        return f"train {options.kind} {options.vocab_size}"
    file = Path(options.tokenizer)
    return file_sha256(file / "tokenizer.json" if file.is_dir() else file)


def show_progress(done: int, total: int) -> None:
    """About twenty lines, however many shards there are."""
    if done == total or done * 20 // total > (done - 1) * 20 // total:
        print(f"shard {done}/{total}", flush=True)


def report(out: str, header: dict[str, Any], seconds: float) -> None:
    tokens = header["tokens"]
    print(f"\n{tokens:,} tokens in {header['documents']:,} documents, vocabulary {header['vocab_size']:,}")
    if header["prompt_tokens"]:
        print(f"{header['prompt_tokens']:,} of them prompt, without loss")
    if header["skipped"]:
        print(f"skipped {json.dumps(header['skipped'])}")
    print(f"{seconds:.1f} s, {tokens / seconds:,.0f} tokens/s\n")
    print(f"train on it:  {shlex.join(['glm-ext', 'pretrain', '--data.path', out])}")
