"""glm-ext fill: what a trained model writes into the blanks of texts."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress

from glm_ext.cli.arguments import parse_arguments
from glm_ext.cli.device_options import add_device_options, device_of
from glm_ext.cli.errors import UserError, user_errors
from glm_ext.cli.generation_options import add_generation_options, generation_config
from glm_ext.generate import fill
from glm_ext.train.load import load_model
from glm_ext.train.settings import add_flag, command_parser

_DESCRIPTION = """Fills every [MASK] (a few words), [sMASK] (a sentence) and [gMASK] (the rest) of a text.
Without a text it asks for one after another; from a pipe or a file it fills each line."""


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

    def filled(text: str) -> str:
        with user_errors():
            return fill(model, tokenizer, text, config, order=order, allow_special=options.allow_special).text

    if options.text is not None:
        print(filled(options.text))
        return 0
    interactive = sys.stdin.isatty()
    if interactive:
        print("A text with [MASK], [sMASK] or [gMASK] where something is missing; an empty line ends.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # so that filled() says which line is not UTF-8
    for number, line in enumerate(_lines(interactive), start=1):
        if not line.strip():
            continue
        try:
            print(filled(line), flush=True)
        except UserError as error:
            if not interactive:
                raise UserError(f"line {number}: {error}") from error
            print(f"  {error}")
    return 0


def _order(numbers: str | None) -> list[int] | None:
    if numbers is None:
        return None
    try:
        return [int(number) for number in numbers.strip("[] ").split(",")]
    except ValueError:
        raise UserError(f"order: expected numbers of blanks, as in 1,0, got {numbers!r}") from None


def _lines(interactive: bool) -> Iterator[str]:
    """What is typed until an empty line, or the lines of stdin."""
    if not interactive:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  (its import gives input() history and editing)
    try:
        while text := input("> ").strip():
            yield text
    except EOFError:
        print()
