"""glm-ext fill: what a trained model writes into the blanks of texts."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from glm_ext.cli.arguments import parse_arguments
from glm_ext.cli.device_options import add_device_options, device_of
from glm_ext.cli.errors import UserError, user_errors
from glm_ext.cli.generation_options import add_generation_options, generation_config
from glm_ext.generate import fill_all
from glm_ext.train.load import load_model
from glm_ext.train.settings import add_flag, command_parser

_CHUNK = 16  # lines of a batch

_DESCRIPTION = f"""Fills every [MASK] (a few words), [sMASK] (a sentence) and [gMASK] (the rest) of a text.
Without a text it asks for one after another; from a pipe or a file it fills each line, {_CHUNK} in
a batch."""

# (texts, number of the first of them among all, by which they draw) -> the texts filled in one batch
_Fill = Callable[[Sequence[str], int], list[str]]


def main(arguments: Sequence[str]) -> int:
    with user_errors():
        parser = command_parser("glm-ext fill", _DESCRIPTION)
        parser.add_argument("run", type=str, help="run folder, or one of its checkpoints")
        parser.add_argument("text", type=str, nargs="?", default=None, help='as in "The [MASK] of the list."')
        parser.add_argument(
            "--order",
            type=str | None,
            default=None,
            help="which blank is filled first, second, ..., from 0, as in 1,0; left to right by default",
        )
        add_flag(parser, "allow_special", False, "read [SEP] and the like in the text as such")
        add_generation_options(parser)
        add_device_options(parser)
        options = parse_arguments(parser, arguments)
        config, order = generation_config(options), _order(options.order)
        model, tokenizer = load_model(options.run, device=device_of(options))

    def filled(texts: Sequence[str], first: int) -> list[str]:
        with user_errors():
            found = fill_all(
                model,
                tokenizer,
                texts,
                config if config.seed is None else replace(config, seed=config.seed + first),
                orders=None if order is None else [order] * len(texts),
                allow_special=options.allow_special,
            )
        return [text for text, _ in found]

    if options.text is not None:
        print(*filled([options.text], 0))
        return 0
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # so that filled() says which line is not UTF-8
    return _converse(filled) if sys.stdin.isatty() else _fill_lines(filled)


def _converse(filled: _Fill) -> int:
    print("A text with [MASK], [sMASK] or [gMASK] where something is missing; an empty line ends.")
    with suppress(ImportError):
        import readline  # noqa: F401  (its import gives input() history and editing)
    try:
        while text := input("> ").strip():
            try:
                print(*filled([text], 0), flush=True)
            except UserError as error:
                print(f"  {error}")
    except EOFError:
        print()
    return 0


def _fill_lines(filled: _Fill) -> int:
    """Fills the lines of stdin; one that cannot be filled is named, and costs no other."""
    filled([], 0)  # a setting that fits no text is told once, not of every line
    code = first = 0
    lines = ((number, line.rstrip("\n")) for number, line in enumerate(sys.stdin, start=1))
    texts = ((number, line) for number, line in lines if line.strip())
    while chunk := list(islice(texts, _CHUNK)):
        results = _results(filled, [text for _, text in chunk], first)
        for (number, _), result in zip(chunk, results, strict=True):
            if isinstance(result, UserError):
                print(f"glm-ext: line {number}: {result}", file=sys.stderr)
                code = 2
            else:
                print(result)
        sys.stdout.flush()
        first += len(chunk)
    return code


def _results(filled: _Fill, texts: Sequence[str], first: int) -> Sequence[str | UserError]:
    """Each text filled, or why it cannot be: halves are tried until what is wrong stands alone."""
    try:
        return filled(texts, first)
    except UserError as error:
        if len(texts) == 1:
            return [error]
    half = len(texts) // 2
    return [*_results(filled, texts[:half], first), *_results(filled, texts[half:], first + half)]


def _order(numbers: str | None) -> list[int] | None:
    if numbers is None:
        return None
    try:
        return [int(number) for number in numbers.strip("[] ").split(",")]
    except ValueError:
        raise UserError(f"order: expected numbers of blanks, as in 1,0, got {numbers!r}") from None
