"""glm-ext fill: what a trained model writes into the blanks of a text."""

from __future__ import annotations

from collections.abc import Sequence

from glm_ext.cli.errors import user_errors
from glm_ext.extras import require
from glm_ext.generate import fill
from glm_ext.train.config import config_errors
from glm_ext.train.load import load_model

_DESCRIPTION = "Fills every [MASK] (a few words), [sMASK] (a sentence) and [gMASK] (the rest) of a text."


def main(arguments: Sequence[str]) -> int:
    with user_errors():
        jsonargparse = require("jsonargparse", extra="train")
        parser = jsonargparse.ArgumentParser(
            prog="glm-ext fill", description=_DESCRIPTION, exit_on_error=False
        )
        parser.add_argument("run", type=str, help="run folder, or one of its checkpoints")
        parser.add_argument("text", type=str, help='as in "The [MASK] of the list."')
        parser.add_argument("--max_length", type=int, default=32, help="longest blank, in tokens")
        parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token")
        parser.add_argument(
            "--top_k", type=int, default=0, help="draw from the k likeliest only; 0: from all"
        )
        parser.add_argument("--seed", type=int | None, default=None, help="makes the draws repeatable")
        with config_errors(known=["max_length", "temperature", "top_k", "seed"]):
            options = parser.parse_args(list(arguments))
        model, tokenizer = load_model(options.run)
        filled = fill(
            model,
            tokenizer,
            options.text,
            max_length=options.max_length,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed,
        )
    print(filled.text)
    return 0
