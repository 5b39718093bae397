"""Filling blanks: Part A is encoded once, then each blank is written left to right with a cache."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .model import GLM

if TYPE_CHECKING:
    from .data.tokenizer import GLMTokenizer


class Filled(NamedTuple):
    """A text with its blanks filled, and what went into each blank, left to right."""

    text: str
    spans: list[str]


def fill(
    model: GLM,
    tokenizer: GLMTokenizer,
    text: str,
    *,
    max_length: int = 32,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int | None = None,
) -> Filled:
    """Fills every [MASK], [sMASK] and [gMASK] of a text; the options are those of `fill_tokens`.

    ValueError if the text has no blank or does not fit into the model.
    """
    from .data.cloze import encode_prompt
    from .data.special import MASK_TOKENS

    prompt = encode_prompt(tokenizer, text, model.config.max_positions)
    written = fill_tokens(
        model,
        prompt.tokens,
        prompt.mask_positions,
        start_id=tokenizer.sop_id,
        end_ids=(tokenizer.eop_id, tokenizer.eos_id),
        max_length=max_length,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    spans = [tokenizer.decode(tokens) for tokens in written]
    blank = re.compile("|".join(map(re.escape, MASK_TOKENS)))
    remaining = iter(spans)
    return Filled(blank.sub(lambda _: next(remaining), text), spans)


@torch.no_grad()
def fill_tokens(
    model: GLM,
    tokens: Sequence[int],
    mask_positions: Sequence[int],
    *,
    start_id: int,
    end_ids: Collection[int],
    max_length: int = 32,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int | None = None,
) -> list[list[int]]:
    """What the model writes into each blank of Part A, in the order of mask_positions.

    The generation of Du et al. 2022, section 2.1. tokens is Part A, mask_positions the places of its mask
    tokens. Each blank starts with start_id and ends with one of end_ids, which is not returned, or after
    max_length tokens; later blanks see what was written into earlier ones. temperature 0 takes the likeliest
    token; above, one is drawn from softmax(logits / temperature), of the top_k likeliest tokens alone if
    top_k is not 0. `seed` makes the draws repeatable; None takes torch's default generator.

    >>> from glm_ext import GLM, GLMConfig
    >>> model = GLM(GLMConfig(vocab_size=20, num_layers=1, hidden_size=16, num_heads=2, max_positions=16))
    >>> [span] = fill_tokens(model, [5, 1, 6], [1], start_id=2, end_ids=[3], max_length=4)
    >>> len(span) <= 4
    True
    """
    if max_length < 1 or max_length >= model.config.max_positions:
        raise ValueError(
            f"max_length: expected 1 to {model.config.max_positions - 1} for this model, got {max_length}"
        )
    if any(not 0 <= place < len(tokens) for place in mask_positions):
        raise ValueError(
            f"mask_positions: expected places in the {len(tokens)} tokens, got {list(mask_positions)}"
        )
    pick = _Picker(temperature, top_k, seed)
    device = model.word_embeddings.weight.device
    cache = model.new_cache(1, len(tokens) + len(mask_positions) * (max_length + 1))

    def feed(new_tokens: Sequence[int], places: Sequence[int], block_places: Sequence[int]) -> Tensor:
        """Hidden states [S, E] of tokens that follow those in the cache."""
        ids = torch.tensor([new_tokens], device=device)
        positions = torch.tensor([[places, block_places]], device=device)
        return model.hidden(ids, positions, prefix_len=len(tokens), cache=cache)[0]

    was_training = model.training
    model.eval()
    try:
        feed(tokens, range(len(tokens)), [0] * len(tokens))
        spans = []
        for place in mask_positions:
            span: list[int] = []
            state = feed([start_id], [place], [1])
            while len(span) < max_length and (token := pick(model.logits(state[-1]))) not in end_ids:
                span.append(token)
                state = feed([token], [place], [len(span) + 1])
            spans.append(span)
        return spans
    finally:
        model.train(was_training)


class _Picker:
    """Chooses a token by its logits [V]."""

    def __init__(self, temperature: float, top_k: int, seed: int | None) -> None:
        if not temperature >= 0.0:
            raise ValueError(f"temperature: expected 0 (greedy) or more, got {temperature}")
        if top_k < 0:
            raise ValueError(f"top_k: expected 0 (all tokens) or more, got {top_k}")
        self.temperature, self.top_k = temperature, top_k
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __call__(self, logits: Tensor) -> int:
        if self.temperature == 0.0:
            return int(logits.argmax())
        logits = logits.float().cpu() / self.temperature
        if 0 < self.top_k < len(logits):
            logits[logits < logits.topk(self.top_k).values[-1]] = -torch.inf
        return int(torch.multinomial(logits.softmax(0), 1, generator=self.generator))
