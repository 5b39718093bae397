"""How every command reads its arguments."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from glm_ext.train.settings import config_errors

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_OPTION = re.compile(r"-h|--[\w.+-]*(=.*)?", re.DOTALL)
_BOOLEANS = ("true", "false", "yes", "no")


def parse_arguments(parser: ArgumentParser, arguments: Sequence[str], **how: Any) -> Namespace:
    """What the arguments say; positional ones may stand before, between and after the options.

    An option wins over a file of --config, wherever the two stand; of two files the later one wins.

    how: further arguments of parser.parse_args. ConfigError for what the parser does not take, with the
    nearest name for a misspelt one.
    """
    actions = parser._actions
    given = config_first(arguments)
    if any(not action.option_strings for action in actions):
        flags = {name for action in actions if action.nargs in (0, "?") for name in action.option_strings}
        given = options_first(given, flags)
    with config_errors([action.dest for action in actions]):
        return parser.parse_args(given, **how)


def config_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with each --config FILE moved to the beginning: jsonargparse lets the last one win.

    >>> config_first(["--steps", "2", "--config", "a.yaml", "--", "--config"])
    ['--config', 'a.yaml', '--steps', '2', '--', '--config']
    """
    files: list[str] = []
    others: list[str] = []
    rest = list(arguments)
    while rest and rest[0] != "--":
        argument = rest.pop(0)
        is_file = argument == "--config" or argument.startswith("--config=")
        (files if is_file else others).append(argument)
        if argument == "--config" and rest:
            files.append(rest.pop(0))
    return [*files, *others, *rest]


def options_first(arguments: Sequence[str], flags: Collection[str]) -> list[str]:
    """The arguments with the positional ones moved to the end.

    argparse holds one that may be missing for missing as soon as an option comes before it. flags: the
    options that need no value; they may have a boolean one.

    >>> options_first(["RUN", "--seed", "1", "--quick", "a text"], flags=["--quick"])
    ['--seed', '1', '--quick', '--', 'RUN', 'a text']
    """
    options: list[str] = []
    positional: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            positional += rest
            break
        if not _OPTION.fullmatch(argument):
            positional.append(argument)
            continue
        options.append(argument)
        if "=" in argument or not rest or _OPTION.fullmatch(rest[0]):
            continue
        if argument not in flags or rest[0].lower() in _BOOLEANS:
            options.append(rest.pop(0))
    return [*options, "--", *positional] if positional else options
