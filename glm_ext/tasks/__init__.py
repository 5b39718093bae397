"""What a model can be finetuned for and judged by. A task is made by name: `load_task("rte", tokenizer)`.

Reads in this order: task, records, pattern, description, choices, cloze, superglue, head, seq2seq;
likelihood, words, language_modelling.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from types import NoneType
from typing import TYPE_CHECKING, Any

from glm_ext.spelling import did_you_mean

from .cloze import Cloze
from .description import Description
from .head import Head
from .language_modelling import Infill, LastWord, Perplexity
from .seq2seq import Seq2Seq
from .superglue import SUPERGLUE
from .task import Task
from .wsc import Wsc

if TYPE_CHECKING:
    from glm_ext.config import GLMConfig
    from glm_ext.data.tokenizer import GLMTokenizer

__all__ = ["SUPERGLUE", "TASKS", "Cloze", "Description", "Seq2Seq", "Task", "load_task"]

# Name -> factory(tokenizer, **options). "cloze" and "head" take a description of your own.
TASKS: dict[str, Callable[..., Task]] = {
    **{name: functools.partial(Cloze, description=task) for name, task in SUPERGLUE.items()},
    "wsc": Wsc,
    "cloze": Cloze,
    "head": Head,
    "last_word": LastWord,
    "perplexity": Perplexity,
    "infill": Infill,
    "seq2seq": Seq2Seq,
}


def load_task(
    name: str, tokenizer: GLMTokenizer, *, model_config: GLMConfig | None = None, **options: Any
) -> Task:
    """The task of that name. ValueError for a name or an option that there is not, or of another type.

    model_config: of the model that it is for. It tells a task with layers of its own (`head`) their
    hidden_size, and every task how long a text may be; what the task would miss later, room in the model or
    a package, is an error now.

    >>> load_task("boolk", None)
    Traceback (most recent call last):
    ValueError: task: there is no 'boolk'; did you mean 'boolq'?
    """
    if name not in TASKS:
        raise ValueError(f"task: there is no {name!r}{_hint(name, TASKS)}")
    factory = TASKS[name]
    _, *parameters = inspect.signature(factory).parameters.values()
    cls, given = (factory.func, factory.keywords) if isinstance(factory, functools.partial) else (factory, {})
    known = [parameter.name for parameter in parameters if parameter.name not in given]
    if model_config is not None:
        of_model = [option for option in ("hidden_size", "max_positions") if option in known]
        if overridden := [option for option in of_model if option in options]:
            raise ValueError(f"{name}: {overridden[0]} is the model's, and no option")
        options |= {option: getattr(model_config, option) for option in of_model}
    types = typing.get_type_hints(cls.__init__)
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"{name}: there is no option {option!r}{_hint(option, known)}")
        _check_type(f"{name}: {option}", types[option], value)
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise ValueError(f"{name}: expected the option {parameter.name}")
    task = factory(tokenizer, **options)
    if model_config is not None:
        task.check()
    return task


_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _check_type(name: str, hint: Any, value: object) -> None:
    kinds = typing.get_args(hint) or (hint,)
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        named = [_TYPES.get(kind, kind.__name__) for kind in kinds if kind is not NoneType]
        expected = " or ".join(named)
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def _hint(word: str, known: Iterable[str]) -> str:
    return did_you_mean(word, known) or f"; there are {', '.join(known)}"
