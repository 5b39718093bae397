"""What a downstream task is to the finetuning loop and to evaluation: examples, a loss, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from glm_ext.model import GLM

T = TypeVar("T")


class Task(Protocol):
    """Made by `load_task`. Examples are of one type a task; metrics take those of `examples`, loss either.

    A task that is given max_positions, those of its model, makes no example that the model would not take:
    ValueError for an option or a line of data that leaves no room.

    module: what the task learns besides the model (a classification head); None where there is nothing. Its
    parameters join the model's in the optimizer, and its state is saved beside the model's.
    """

    name: str
    primary: str  # the metric by which the best checkpoint is kept; larger is better
    module: nn.Module | None
    mask: str | None = None  # field of SpecialIds: the blank that it is asked by, if that is one for all

    def check(self) -> None:
        """MissingExtra for a package that `metrics` would only miss after hours of training."""

    def examples(self, path: Path) -> list[Any]:
        """Those of a JSONL or CSV file, labelled or not. ValueError names file and line."""
        ...

    def labelled_examples(self, path: Path) -> list[Any]:
        """Those to be judged by: ValueError also for one that does not tell what is right."""
        return self.examples(path)

    def training_examples(self, path: Path, rng: np.random.Generator) -> list[Any]:
        """Those to learn from, where they are not those to be judged by; what is drawn is drawn by rng."""
        return self.labelled_examples(path)

    def loss(self, model: GLM, examples: Sequence[Any]) -> Tensor:
        """A scalar with gradient, the mean over examples."""
        ...

    def metrics(self, model: GLM, examples: Sequence[Any]) -> dict[str, float]:
        """Without gradient, in evaluation mode."""
        ...


def batches(examples: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The examples in order, `size` at once.

    >>> list(batches("abcde", 2))
    ['ab', 'cd', 'e']
    """
    for first in range(0, len(examples), size):
        yield examples[first : first + size]


def at_least(lowest: int, **options: int) -> None:
    """ValueError for an option that is less."""
    for name, value in options.items():
        if value < lowest:
            raise ValueError(f"{name}: expected {lowest} or more, got {value}")


def length_option(
    name: str,
    value: int | None,
    max_positions: int | None,
    *,
    besides: int = 0,
    lowest: int = 1,
    usual: int = 256,
) -> int:
    """The value of an option that counts tokens; None: the usual one, or what fits where that is less.

    besides: how many tokens the task adds. max_positions: of the model, None where it is not known.

    >>> length_option("max_length", None, 512), length_option("max_length", None, 64, besides=3)
    (256, 61)
    >>> length_option("max_length", 256, 64, besides=3)
    Traceback (most recent call last):
    ValueError: max_length: expected 1 to 61 for this model (max_positions = 64), got 256
    """
    if value is None:
        value = usual if max_positions is None else min(usual, max_positions - besides)
    if max_positions is not None and value > max_positions - besides:
        raise ValueError(
            f"{name}: expected {lowest} to {max_positions - besides} for this model "
            f"(max_positions = {max_positions}), got {value}"
        )
    at_least(lowest, **{name: value})
    return value
