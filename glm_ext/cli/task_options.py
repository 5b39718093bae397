"""The options of a task on the command line: --options.mask "[MASK]"."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from glm_ext.cli.arguments import parse_arguments

_PREFIX = "--options."


def parse_task_arguments(parser: Any, arguments: Sequence[str], **how: Any) -> Any:
    """`parse_arguments`; the value of an `--options.KEY` is a text, a number, true, false or null.

    jsonargparse would read it as YAML, in which [MASK] is a list and "Question: {source}" a key with its
    value. Within one `--options {...}` a text stays one, so that is what the parser is given.
    """
    rest, given = [], dict[str, str | None]()
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        key, equals, value = argument.partition("=")
        if not equals and waiting and not waiting[0].startswith("--"):
            value = waiting[0]
        if not key.startswith(_PREFIX) or not (equals or value):
            rest.append(argument)
            continue
        if not equals:
            waiting.pop(0)
        given[key.removeprefix(_PREFIX)] = None if value == "null" else value
    parsed = parse_arguments(parser, rest, **how)
    if given:
        options = json.dumps({**(parsed.get("options") or {}), **given}, ensure_ascii=False)
        end = rest.index("--") if "--" in rest else len(rest)
        parsed = parse_arguments(parser, [*rest[:end], "--options", options, *rest[end:]], **how)
    return parsed
