"""What a downstream task is to the finetuning loop and to evaluation: examples, a loss, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from glm_ext.config import GLMConfig
from glm_ext.model import GLM

T = TypeVar("T")


class Task(Protocol):
    """Made by `load_task`. Examples are of one type a task; loss and metrics take what `examples` gives.

    module: what the task learns besides the model (a classification head); None where there is nothing. Its
    parameters join the model's in the optimizer, and its state is saved beside the model's.
    """

    name: str
    primary: str  # the metric by which the best checkpoint is kept; larger is better
    module: nn.Module | None

    def check(self, config: GLMConfig) -> None:
        """What `metrics` would only find out after hours of training, for a model of these sizes.

        MissingExtra for a package that it needs, ValueError for an option that does not fit the model.
        """
        ...

    def examples(self, path: Path) -> list[Any]:
        """Those of a JSONL or CSV file. ValueError names file and line."""
        ...

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
