"""What a model can be finetuned for and judged by. A task is made by name: `load_task("rte", tokenizer)`.

Reads in this order: task, records, pattern, choices, cloze, superglue, head; likelihood, language_modelling.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .cloze import Cloze, Description
from .head import Head
from .language_modelling import Infill, LastWord, Perplexity
from .superglue import SUPERGLUE
from .task import Task
from .wsc import Wsc

if TYPE_CHECKING:
    from glm_ext.config import GLMConfig
    from glm_ext.data.tokenizer import GLMTokenizer

__all__ = ["SUPERGLUE", "TASKS", "Cloze", "Description", "Task", "load_task"]

# Name -> factory(tokenizer, **options). "cloze" and "head" take a description of your own.
TASKS: dict[str, Callable[..., Task]] = {
    **{name: functools.partial(Cloze, description=task) for name, task in SUPERGLUE.items()},
    "wsc": Wsc,
    "cloze": Cloze,
    "head": Head,
    "last_word": LastWord,
    "perplexity": Perplexity,
    "infill": Infill,
}


def load_task(
    name: str, tokenizer: GLMTokenizer, *, model_config: GLMConfig | None = None, **options: Any
) -> Task:
    """The task of that name. ValueError for a name or an option that there is not.

    model_config: tells a task with layers of its own (`head`) their hidden_size.

    >>> load_task("boolk", None)
    Traceback (most recent call last):
    ValueError: task: there is no 'boolk'; did you mean 'boolq'?
    """
    if name not in TASKS:
        raise ValueError(f"task: there is no {name!r}{_nearest(name, list(TASKS))}")
    factory = TASKS[name]
    _, *parameters = inspect.signature(factory).parameters.values()
    given = factory.keywords if isinstance(factory, functools.partial) else {}
    known = [parameter.name for parameter in parameters if parameter.name not in given]
    if model_config is not None and "hidden_size" in known:
        options.setdefault("hidden_size", model_config.hidden_size)
    # A task that takes any keyword checks its options itself.
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        for option in options:
            if option not in known:
                raise ValueError(f"{name}: there is no option {option!r}{_nearest(option, known)}")
        for parameter in parameters:
            if parameter.default is parameter.empty and parameter.name not in options:
                raise ValueError(f"{name}: expected the option {parameter.name}")
    return factory(tokenizer, **options)


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
