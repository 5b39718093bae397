"""What a downstream task is to the finetuning loop and to evaluation: examples, a loss, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from glm_ext.model import GLM


class Task(Protocol):
    name: str
    primary: str  # the metric by which the best checkpoint is kept; larger is better

    def examples(self, path: Path) -> list[Any]: ...  # of a JSONL/CSV file; ValueError names file and line
    def loss(
        self, model: GLM, examples: Sequence[Any]
    ) -> Tensor: ...  # scalar with gradient, mean over examples
    def metrics(
        self, model: GLM, examples: Sequence[Any]
    ) -> dict[str, float]: ...  # without gradient, eval mode
