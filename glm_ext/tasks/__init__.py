"""What a model can be finetuned for and judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glm_ext.tasks.seq2seq import Seq2Seq
from glm_ext.tasks.task import Task

if TYPE_CHECKING:
    from glm_ext.data.tokenizer import GLMTokenizer

__all__ = ["Seq2Seq", "Task", "load_task"]


def load_task(name: str, tokenizer: GLMTokenizer, **options: Any) -> Task:
    """The task of that name. ValueError for a name or an option that does not exist."""
    if name == "seq2seq":
        return Seq2Seq(tokenizer, **options)
    raise ValueError(f"task: expected seq2seq, got {name!r}")
