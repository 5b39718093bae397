"""glm-ext tokenizer: a vocabulary learned from text, or another model's with GLM's special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from glm_ext.cli.arguments import parse_arguments
from glm_ext.cli.errors import UserError, user_errors
from glm_ext.data.corpus import warn_or_raise
from glm_ext.data.shards import sample_texts
from glm_ext.data.sources import Piece, find_files
from glm_ext.data.tokenizer import GLMTokenizer
from glm_ext.train.settings import command_parser

_DESCRIPTION = """Writes a tokenizer.json: trained on files and folders of text (the kinds that glm-ext
prepare reads), or with --adopt the vocabulary of GPT-2, BERT or sentencepiece."""


def main(arguments: Sequence[str]) -> int:
    with user_errors():
        options = parse(arguments)
        if options.adopt is not None:
            tokenizer = GLMTokenizer.adopt(options.adopt)
        else:
            tokenizer = train(options)
        file = tokenizer.save(options.out)
    print(f"{tokenizer.vocab_size:,} tokens, special ones: {tokenizer.ids._asdict()}\n{file}")
    return 0


def parse(arguments: Sequence[str]) -> Any:
    parser = command_parser("glm-ext tokenizer", _DESCRIPTION)
    add = parser.add_argument
    add("sources", type=str, nargs="*", help="files, and folders that are searched for such files")
    add("--out", type=str, default="tokenizer.json", help="file to write, or a folder to write it into")
    add("--kind", type=str, default="bpe", help="bpe (of bytes, exact for any text), wordpiece or unigram")
    add("--vocab_size", type=int, default=32000, help="number of tokens, special ones included")
    add("--sample", type=int, default=100_000_000, help="characters to learn from, spread over the sources")
    add(
        *("--adopt",),
        type=str | None,
        default=None,
        help="GPT-2's vocab.json (merges.txt beside it), BERT's vocab.txt, a sentencepiece .model, a folder",
    )
    options = parse_arguments(parser, arguments)
    if (options.adopt is None) == (not options.sources):
        raise UserError("give either files and folders to learn from, or --adopt and a vocabulary")
    if options.sample < 1:
        raise UserError(f"sample: expected at least 1, got {options.sample}")
    return options


def train(options: Any) -> GLMTokenizer:
    pieces = [Piece(file) for source in options.sources for file in find_files(source)]
    texts = sample_texts(pieces, options.sample, warn_or_raise)
    first = next(texts, None)
    if first is None:
        raise UserError(f"{', '.join(options.sources)}: no text found; expected files that are not empty")
    return GLMTokenizer.train(chain([first], texts), options.vocab_size, options.kind)
