"""What a model can be finetuned for and judged by. A task is made by name: `load_task("rte", tokenizer)`.

Reads in this order: task, records, pattern, choices, cloze, superglue, head, likelihood, seq2seq.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .cloze import Cloze, Description
from .seq2seq import Seq2Seq
from .superglue import SUPERGLUE
from .task import Task

if TYPE_CHECKING:
    from glm_ext.data.tokenizer import GLMTokenizer

__all__ = ["SUPERGLUE", "TASKS", "Cloze", "Description", "Seq2Seq", "Task", "load_task"]

# Name -> factory(tokenizer, **options). "cloze" takes a description of your own.
TASKS: dict[str, Callable[..., Task]] = {
    **{name: functools.partial(Cloze, description=task) for name, task in SUPERGLUE.items()},
    "cloze": Cloze,
    "seq2seq": Seq2Seq,
}


def load_task(name: str, tokenizer: GLMTokenizer, **options: Any) -> Task:
    """The task of that name. ValueError for a name or an option that there is not.

    >>> load_task("boolk", None)
    Traceback (most recent call last):
    ValueError: task: there is no 'boolk'; did you mean 'boolq'?
    """
    if name not in TASKS:
        raise ValueError(f"task: there is no {name!r}{_nearest(name, list(TASKS))}")
    factory = TASKS[name]
    known = [
        parameter.name
        for parameter in list(inspect.signature(factory).parameters.values())[1:]
        if not isinstance(parameter.default, Description)
    ]
    for option in options:
        # An options object of a task checks its own names.
        if option not in known and "options" not in known:
            raise ValueError(f"{name}: there is no option {option!r}{_nearest(option, known)}")
    missing = [
        parameter.name
        for parameter in list(inspect.signature(factory).parameters.values())[1:]
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
        and parameter.name not in options
    ]
    if missing:
        raise ValueError(f"{name}: expected the option {missing[0]}")
    return factory(tokenizer, **options)


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
