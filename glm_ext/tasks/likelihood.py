"""Tasks whose loss is a likelihood: what Part B of an example costs, and examples with one blank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from glm_ext.batch import Batch
from glm_ext.data.blocks import Example
from glm_ext.data.collate import collate
from glm_ext.data.special import SPECIAL_TOKENS
from glm_ext.data.tokenizer import GLMTokenizer
from glm_ext.model import GLM, inference

from .task import Task, at_least, batches


class HasBlocks(Protocol):
    """An example of a task with the blocks that the model reads."""

    @property
    def blocks(self) -> Example: ...


class Likelihood(Task):
    """What these tasks share. Loss: -log p a target, averaged within an example, then over examples."""

    module: nn.Module | None = None
    mask: str

    def __init__(self, tokenizer: GLMTokenizer, eval_batch_size: int, max_positions: int | None) -> None:
        at_least(1, eval_batch_size=eval_batch_size)
        self.tokenizer, self.eval_batch_size, self.max_positions = tokenizer, eval_batch_size, max_positions

    def loss(self, model: GLM, examples: Sequence[HasBlocks]) -> Tensor:
        batch, hidden, head = self._forward(model, examples)
        return (self._nll(model, batch, hidden, head) / batch.loss_mask.sum(1)).mean()

    def nll(self, model: GLM, examples: Sequence[HasBlocks]) -> list[float]:
        """-log p of each example's targets together, in nats, without gradient."""
        costs: list[float] = []
        with inference(model):
            for part in batches(examples, self.eval_batch_size):
                costs += self._nll(model, *self._forward(model, part)).tolist()
        return costs

    def nll_and_hits(self, model: GLM, examples: Sequence[HasBlocks]) -> list[tuple[float, bool]]:
        """`nll`, and whether every target of an example is the likeliest token where it stands.

        A word that the vocabulary lacks is never right: its token stands for any such word.
        """
        found: list[tuple[float, bool]] = []
        with inference(model):
            for part in batches(examples, self.eval_batch_size):
                batch, hidden, head = self._forward(model, part)
                targets = batch.loss_mask > 0
                hits = torch.ones_like(targets)
                answers = batch.targets[targets]
                likeliest = model.logits(hidden[targets]).argmax(1) == answers
                hits[targets] = likeliest & (answers != self.tokenizer.ids.unk)
                costs = self._nll(model, batch, hidden, head).tolist()
                found += zip(costs, hits.all(1).tolist(), strict=True)
        return found

    def _forward(self, model: GLM, examples: Sequence[HasBlocks]) -> tuple[Batch, Tensor, Tensor]:
        batch = collate([example.blocks for example in examples], self.tokenizer.pad_id)
        batch = batch.to(model.word_embeddings.weight.device)
        hidden, head = model.hidden_and_head(batch.tokens, batch.positions, batch.prefix_len, batch.seq_len)
        return batch, hidden, head

    def _nll(self, model: GLM, batch: Batch, hidden: Tensor, head: Tensor) -> Tensor:
        """[B]: summed over targets."""
        nll: Tensor = model.transformer.ops(hidden).linear_cross_entropy(
            hidden, head, batch.targets, batch.loss_mask, reduction="none"
        )
        return nll.float().sum(1)


def one_blank(
    tokenizer: GLMTokenizer,
    part_a: Sequence[int],
    place: int,
    written: Sequence[int],
    *,
    scored: int | None = None,
) -> Example:
    """Part A, then what is written into its blank at `place`, of which the last `scored` are targets.

    Part A | <sop> written, whose last token is a target and no input (scored None: all are targets)
    """
    a, b = len(part_a), len(written)
    positions = np.zeros((2, a + b), dtype=np.int64)
    positions[0] = [*range(a), *[place] * b]
    positions[1, a:] = range(1, b + 1)
    loss_mask = np.zeros(a + b, dtype=np.float32)
    loss_mask[a + b - (b if scored is None else scored) :] = 1.0
    return Example(
        tokens=np.array([*part_a, tokenizer.sop_id, *written[:-1]], dtype=np.int64),
        targets=np.array([*part_a, *written], dtype=np.int64),
        positions=positions,
        loss_mask=loss_mask,
        prefix_len=a,
    )


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
    """
    ids = tokenizer.ids
    part_a = [ids.cls, *([] if unidirectional else context), getattr(ids, mask)]
    place = len(part_a) - 1
    if mask != "gmask" and not unidirectional:
        part_a.append(ids.eos)
    written = [*(context if unidirectional else []), *answer]
    return one_blank(tokenizer, part_a, place, written, scored=len(answer))


def tokens_besides(mask: str, *, unidirectional: bool) -> int:
    """What `continuation` takes of max_positions besides the context.

    [CLS], the mask and eos in Part A; one way, a token of the answer at least, in Part B.
    """
    return 1 if unidirectional else 2 + (mask != "gmask")


def mask_field(name: str) -> str:
    """The field of SpecialIds that a mask's spelling names, as mask for "[MASK]"."""
    masks = {SPECIAL_TOKENS[entry]: entry for entry in ("mask", "gmask", "smask")}
    if name not in masks:
        raise ValueError(f"mask: expected one of {', '.join(masks)}, got {name!r}")
    return masks[name]
