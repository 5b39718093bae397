"""Tasks whose loss is a likelihood: what Part B of an example costs, and examples with one blank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from glm_ext.data.blocks import Example
from glm_ext.data.collate import collate
from glm_ext.data.special import SPECIAL_TOKENS
from glm_ext.generate.decoder import inference
from glm_ext.model import GLM

if TYPE_CHECKING:
    from glm_ext.data.tokenizer import GLMTokenizer


class HasBlocks(Protocol):
    """An example of a task with the blocks that the model reads."""

    @property
    def blocks(self) -> Example: ...


class Likelihood:
    """What these tasks share. Loss: -log p a target, averaged within an example, then over examples."""

    module: nn.Module | None = None

    def __init__(self, tokenizer: GLMTokenizer, eval_batch_size: int) -> None:
        if eval_batch_size < 1:
            raise ValueError(f"eval_batch_size: expected 1 or more, got {eval_batch_size}")
        self.tokenizer, self.eval_batch_size = tokenizer, eval_batch_size

    def loss(self, model: GLM, examples: Sequence[HasBlocks]) -> Tensor:
        counts = [float(example.blocks.loss_mask.sum()) for example in examples]
        nll = self._nll(model, examples)
        return (nll / torch.tensor(counts, device=nll.device)).mean()

    def nll(self, model: GLM, examples: Sequence[HasBlocks]) -> list[float]:
        """-log p of each example's targets together, in nats, without gradient."""
        costs: list[float] = []
        with inference(model):
            for batch in self._batches(examples):
                costs += self._nll(model, batch).tolist()
        return costs

    def all_likeliest(self, model: GLM, examples: Sequence[HasBlocks]) -> list[bool]:
        """Whether every target of an example is the likeliest token where it stands."""
        right: list[bool] = []
        with inference(model):
            for part in self._batches(examples):
                batch = collate([example.blocks for example in part], self.tokenizer.pad_id)
                batch = batch.to(model.word_embeddings.weight.device)
                hidden = model.hidden(batch.tokens, batch.positions, batch.prefix_len, batch.seq_len)
                targets = batch.loss_mask > 0
                hits = torch.ones_like(targets)
                hits[targets] = model.logits(hidden[targets]).argmax(1) == batch.targets[targets]
                right += hits.all(1).tolist()
        return right

    def _nll(self, model: GLM, examples: Sequence[HasBlocks]) -> Tensor:
        """[B]: summed over targets."""
        batch = collate([example.blocks for example in examples], self.tokenizer.pad_id)
        batch = batch.to(model.word_embeddings.weight.device)
        hidden = model.hidden(batch.tokens, batch.positions, batch.prefix_len, batch.seq_len)
        nll: Tensor = model.transformer.ops.linear_cross_entropy(
            hidden, model.word_embeddings.weight, batch.targets, batch.loss_mask, reduction="none"
        )
        return nll.float().sum(1)

    def _batches(self, examples: Sequence[HasBlocks]) -> list[Sequence[HasBlocks]]:
        size = self.eval_batch_size
        return [examples[first : first + size] for first in range(0, len(examples), size)]


def continuation(
    tokenizer: GLMTokenizer,
    context: Sequence[int],
    answer: Sequence[int],
    *,
    mask: str = "gmask",
    unidirectional: bool = False,
) -> Example:
    """An example that scores `answer` after `context`. mask: a field of SpecialIds.

    Both ways:      [CLS] context [mask] (eos, but not after gMASK) | <sop> answer
    One way:        [CLS] [mask] | <sop> context answer                 where only the answer is scored

    The last token of the answer is a target and no input.
    """
    ids = tokenizer.ids
    part_a = [ids.cls, *([] if unidirectional else context), getattr(ids, mask)]
    place = len(part_a) - 1
    if mask != "gmask" and not unidirectional:
        part_a.append(ids.eos)
    written = [*(context if unidirectional else []), *answer]
    a, b = len(part_a), len(written)
    positions = np.zeros((2, a + b), dtype=np.int64)
    positions[0] = [*range(a), *[place] * b]
    positions[1, a:] = range(1, b + 1)
    loss_mask = np.zeros(a + b, dtype=np.float32)
    loss_mask[a + b - len(answer) :] = 1.0
    return Example(
        tokens=np.array([*part_a, ids.sop, *written[:-1]], dtype=np.int64),
        targets=np.array([*part_a, *written], dtype=np.int64),
        positions=positions,
        loss_mask=loss_mask,
        prefix_len=a,
    )


def mask_field(name: str) -> str:
    """The field of SpecialIds that a mask's spelling names, as mask for "[MASK]"."""
    masks = {SPECIAL_TOKENS[entry]: entry for entry in ("mask", "gmask", "smask")}
    if name not in masks:
        raise ValueError(f"mask: expected one of {', '.join(masks)}, got {name!r}")
    return masks[name]
