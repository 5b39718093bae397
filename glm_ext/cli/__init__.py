"""The command line: `glm-ext COMMAND ...`.

A command is a module of this package with main(arguments) -> exit code; it is imported only when called, so
that `glm-ext info` runs where nothing but torch is installed.

Exit codes: 0 done, 1 the run failed, 2 the user can mend it, 128 + n stopped by signal n.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from glm_ext.cli.errors import UserError

COMMANDS = {
    "pretrain": "train a GLM on text; with no arguments, on the documentation inside Python",
    "prepare": "a token store of your own text: .txt, .jsonl, .gz, .parquet",
    "tokenizer": "train a vocabulary, or take over GPT-2's, BERT's or sentencepiece's",
    "finetune": "train a pretrained model on the examples of a task, and keep the best checkpoint",
    "fill": 'fill the blanks of a text: glm-ext fill RUN "The [MASK] of the list."',
    "generate": 'continue a text, or write one out of nothing: glm-ext generate RUN "Once upon a time"',
    "evaluate": "a model on the examples of a task: glm-ext evaluate RUN --task rte --data val.jsonl",
    "show": "a training example as a picture: both parts, attention mask, positions, targets",
    "bench": "every kernel beside its peers in torch, on this machine",
    "info": "versions, instruction set, GPU and peers, to paste into a bug report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; what the user can mend is one line, not a traceback."""
    warnings.showwarning = _show_warning
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return _run(command, rest)
    except BrokenPipeError:
        # Nobody reads any more, as in `glm-ext ... | head`; what is left to write would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _run(command: str, arguments: Sequence[str]) -> int:
    try:
        if command in ("-h", "--help"):
            print(_overview())
            return 0
        if command not in COMMANDS:
            from glm_ext.spelling import did_you_mean

            raise UserError(f"there is no command {command!r}{did_you_mean(command, list(COMMANDS))}")
        code: int = importlib.import_module(f"glm_ext.cli.{command}").main(arguments)
        return code
    except UserError as error:
        print(f"glm-ext: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("glm-ext: interrupted", file=sys.stderr)
        return 130
    finally:
        sys.stdout.flush()  # at exit, a closed pipe would be a traceback


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {help}" for name, help in COMMANDS.items()]
    return "\n".join(["usage: glm-ext COMMAND ...   (glm-ext COMMAND --help)", "", *lines])


def _show_warning(message: Warning | str, *args: object, **kwargs: object) -> None:
    print(f"glm-ext: warning: {message}", file=sys.stderr)
