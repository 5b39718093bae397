"""What a downstream task is to the finetuning loop and to evaluation: examples, a loss, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from glm_ext.model import GLM


class Task(Protocol):
    """Made by `load_task`. Examples are of one type a task; the other two methods take what the first gives.

    module: what the task learns besides the model (a classification head); None where there is nothing. Its
    parameters join the model's in the optimizer, and its state is saved beside the model's.
    """

    name: str
    primary: str  # the metric by which the best checkpoint is kept; larger is better
    module: nn.Module | None

    def examples(self, path: Path) -> list[Any]:
        """Those of a JSONL or CSV file. ValueError names file and line."""
        ...

    def loss(self, model: GLM, examples: Sequence[Any]) -> Tensor:
        """A scalar with gradient, the mean over examples."""
        ...

    def metrics(self, model: GLM, examples: Sequence[Any]) -> dict[str, float]:
        """Without gradient, in evaluation mode."""
        ...
