"""glm-ext generate: a text continued, or written out of nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glm_ext.cli.arguments import parse_arguments
from glm_ext.cli.device_options import add_device_options, device_of
from glm_ext.cli.errors import user_errors
from glm_ext.cli.generation_options import add_generation_options, generation_config
from glm_ext.cli.untrained import warn_if_untrained
from glm_ext.generate import continued, generate, stream
from glm_ext.train.checkpoint import load_checkpoint
from glm_ext.train.load import model_of
from glm_ext.train.settings import command_parser

_DESCRIPTION = """Continues a prompt, or writes a text out of nothing where none is given; shows it as it is
written. By default it draws at temperature 0.8 up to 128 tokens; with --num_beams it searches first and shows
the result."""


def main(arguments: Sequence[str]) -> int:
    with user_errors():
        parser = command_parser("glm-ext generate", _DESCRIPTION)
        parser.add_argument("run", type=str, help="run folder, or one of its checkpoints")
        parser.add_argument("prompt", type=str, nargs="?", default="", help="plain text; nothing by default")
        parser.add_argument(
            "--mask", type=str, default="[gMASK]", help="[gMASK]: a long continuation; [sMASK]: sentences"
        )
        add_generation_options(parser, max_length=None, temperature=None, top_p=0.95)
        add_device_options(parser)
        options = parse_arguments(parser, arguments)
        device = device_of(options)
        checkpoint, folder = load_checkpoint(Path(options.run))
        model, tokenizer = model_of(checkpoint, folder, device=device)
        config = generation_config(
            options,
            max_length=min(128, model.config.max_positions - 1),
            temperature=0.8 if options.num_beams == 1 else 0.0,
        )
        if config.num_beams > 1:
            pieces = iter([generate(model, tokenizer, options.prompt, config, mask=options.mask)])
        else:
            pieces = stream(model, tokenizer, options.prompt, config, mask=options.mask)
        warn_if_untrained(options.mask, folder)
    for piece in continued(options.prompt, pieces):
        print(piece, end="", flush=True)
    print()
    return 0
