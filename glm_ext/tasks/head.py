"""A classification head: what the cloze form is compared with.

logits = output(dropout(tanh(dense(h)))),   h the last hidden state of [CLS]
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from glm_ext.data.special import SPECIAL_TOKENS
from glm_ext.data.tokenizer import GLMTokenizer
from glm_ext.model import GLM

from .choices import Question
from .cloze import Cloze
from .description import Description
from .pattern import Piece, parse_pattern
from .superglue import SUPERGLUE


class ClassificationHead(nn.Module):
    """[B, E] -> [B, labels]: dense, tanh, dropout, output. Weights ~ N(0, 0.02), biases 0.

    The state that it saves holds the labels: ValueError for one with others, or in another order, as its
    numbers would mean something else. A state without labels is loaded with a warning.

    >>> ClassificationHead(8, ["no", "maybe", "yes"])(torch.randn(5, 8)).shape
    torch.Size([5, 3])
    """

    def __init__(self, hidden_size: int, labels: Sequence[str], dropout: float = 0.1) -> None:
        super().__init__()
        self.labels = list(labels)
        self.register_load_state_dict_pre_hook(_without_labels)  # type: ignore[no-untyped-call]
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, len(self.labels))
        for layer in (self.dense, self.output):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, state: Tensor) -> Tensor:
        logits: Tensor = self.output(self.dropout(torch.tanh(self.dense(state))))
        return logits

    def get_extra_state(self) -> Tensor:
        """The labels as the bytes of a JSON list: a checkpoint holds tensors only."""
        return torch.frombuffer(bytearray(json.dumps(self.labels).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        labels = json.loads(bytes(state.tolist()))
        if labels != self.labels:
            raise ValueError(
                f"the labels of the head are {', '.join(labels)}, in this order; those of the task are "
                f"{', '.join(self.labels)}"
            )


def _without_labels(head: ClassificationHead, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Heads of earlier versions did not save their labels."""
    if f"{prefix}_extra_state" not in state:
        labels = ", ".join(head.labels)
        warnings.warn(f"the head does not tell its labels; taken to be {labels}, in this order", stacklevel=2)
        state[f"{prefix}_extra_state"] = head.get_extra_state()


class Head(Cloze):
    """The labels of a cloze task, told by a head: the same records, the same metrics, no words.

    Part A is [CLS], the fields of the task's pattern with [SEP] between them, and eos; there is no Part B.
    """

    def __init__(
        self,
        tokenizer: GLMTokenizer,
        description: Description | str | Path,
        *,
        hidden_size: int,
        dropout: float = 0.1,
        max_length: int | None = None,
        eval_batch_size: int = 16,
        max_positions: int | None = None,
    ) -> None:
        """description: its name among SuperGLUE's tasks, or a file. hidden_size: that of the model."""
        if isinstance(description, str):
            description = SUPERGLUE.get(description, description)
        super().__init__(
            tokenizer,
            description,
            max_length=max_length,
            eval_batch_size=eval_batch_size,
            max_positions=max_positions,
        )
        if not self.description.verbalizer:
            raise ValueError(f"{self.name}: a head needs labels that all examples share; this task has none")
        self.name = f"{self.name}-head"
        self.module = self.head = ClassificationHead(hidden_size, self.description.labels, dropout)
        fields = [piece for piece in parse_pattern(self.description.pattern) if piece.field is not None]
        parts = [(Piece(SPECIAL_TOKENS["sep"]), Piece("", piece.field, piece.form)) for piece in fields]
        self._pieces = [piece for pair in parts for piece in pair][1:]

    def _place(self, context: Sequence[int]) -> int:
        return 0  # no blank: [CLS] is read

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """A head says no words: an answer is the number of its label."""
        return [[label] for label in range(len(texts))]

    def _check_verbalizer(self) -> None:
        """So any words will do."""

    def log_probs(self, model: GLM, examples: Sequence[Question]) -> Tensor:
        """Of every label [Q, K], by the head."""
        device = model.word_embeddings.weight.device
        lengths = torch.tensor([len(example.context) for example in examples], device=device)
        tokens = pad_sequence(
            [torch.tensor(example.context) for example in examples],
            batch_first=True,
            padding_value=self.tokenizer.pad_id,
        ).to(device)
        places = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
        positions = torch.stack((places, torch.zeros_like(places)), 1)
        # Padding stands at position 0: a longer neighbour does not count against the tables.
        positions = positions * (places < lengths[:, None])[:, None]
        state = model.hidden(tokens, positions, lengths, lengths)[:, 0]
        log_probs: Tensor = self.head.to(device)(state).float().log_softmax(1)
        return log_probs

    def predict(self, model: GLM, examples: Sequence[Question]) -> list[int]:
        was_training = self.head.training
        self.head.eval()
        try:
            return super().predict(model, examples)
        finally:
            self.head.train(was_training)
