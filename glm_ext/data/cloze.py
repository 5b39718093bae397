"""Texts with blanks: what a user asks the model to fill, and held-out sentences to try it on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .special import MASK_TOKENS
from .tokenizer import GLMTokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """Part A of a text with blanks: tokens, and the place of every blank, left to right."""

    tokens: list[int]
    mask_positions: list[int]


def encode_prompt(
    tokenizer: GLMTokenizer, text: str, max_positions: int, *, allow_special: bool = False
) -> Prompt:
    """[CLS] + text + eos, its [MASK]s, [sMASK]s and [gMASK]s being blanks to fill.

    A text that ends in [gMASK] asks to be continued and gets no eos. Every other special token in the text is
    plain text unless allow_special is True. ValueError if there is no blank, or if the text does not fit into
    a model with max_positions.

    >>> tokenizer = GLMTokenizer.train(["the cat sat on the mat"], vocab_size=280)
    >>> prompt = encode_prompt(tokenizer, "the [MASK] sat", max_positions=64)
    >>> prompt.tokens[prompt.mask_positions[0]] == tokenizer.mask_id
    True
    """
    tokens = tokenizer.encode(text, allow_special=True if allow_special else MASK_TOKENS)
    prompt = _as_prompt(tokenizer, tokens, max_positions)
    if not prompt.mask_positions:
        raise ValueError(
            f"no blank to fill in {text!r}: write [MASK] for a few words, [sMASK] for a sentence, "
            "or [gMASK] at the end for a continuation"
        )
    return prompt


def encode_continuation(
    tokenizer: GLMTokenizer, text: str, max_positions: int, *, mask: str = "[gMASK]"
) -> Prompt:
    """[CLS] + text + mask: asks for the rest of a text, which may be empty. An eos follows all but [gMASK].

    The text is plain text throughout. ValueError for a mask that there is not, or a text that does not fit.

    >>> tokenizer = GLMTokenizer.train(["the cat sat on the mat"], vocab_size=280)
    >>> encode_continuation(tokenizer, "", max_positions=64).tokens == [tokenizer.cls_id, tokenizer.gmask_id]
    True
    """
    if mask not in MASK_TOKENS:
        raise ValueError(f"mask: expected one of {', '.join(MASK_TOKENS)}, got {mask!r}")
    # A blank swallows the white space on its left.
    tokens = [*tokenizer.encode(text.rstrip()), *tokenizer.encode(mask, allow_special=MASK_TOKENS)]
    return _as_prompt(tokenizer, tokens, max_positions)


def _as_prompt(tokenizer: GLMTokenizer, text: Sequence[int], max_positions: int) -> Prompt:
    tokens = [tokenizer.cls_id, *text]
    if tokens[-1] != tokenizer.gmask_id:
        tokens.append(tokenizer.eos_id)
    if len(tokens) > max_positions:
        raise ValueError(
            f"the text has {len(tokens)} tokens and the model takes {max_positions} (max_positions); "
            "shorten it"
        )
    masks = tokenizer.mask_ids
    return Prompt(tokens, [place for place, token in enumerate(tokens) if token in masks])


class Cloze(NamedTuple):
    """A sentence with one [MASK] and what stood there."""

    text: str
    truth: str


# A sentence of 8 to 30 words of plain prose, from its capital to its full stop.
_SENTENCE = re.compile(r"(?:(?<=\. )|^)[A-Z][a-z]*(?:,? [A-Za-z']+){7,29}\.(?=\s|$)", re.MULTILINE)
_WORD = re.compile(r"(?<= )[a-z]{3,}")


def held_out_cloze(documents: Sequence[str], rng: np.random.Generator, n: int) -> list[Cloze]:
    """n different sentences of the documents, in each one word (or two that follow each other) blanked out.

    Fewer, or none, where the documents have no n sentences of 8 to 30 plain English words.
    """
    sentences = sorted({sentence for document in documents for sentence in _SENTENCE.findall(document)})
    sentences = [sentence for sentence in sentences if len(_WORD.findall(sentence)) >= 2]
    chosen = rng.choice(len(sentences), size=min(n, len(sentences)), replace=False)
    return [_blank_words(sentences[index], rng) for index in chosen]


def _blank_words(sentence: str, rng: np.random.Generator) -> Cloze:
    words = list(_WORD.finditer(sentence))
    pick = int(rng.integers(len(words)))
    start, end = words[pick].span()
    following = words[pick + 1] if pick + 1 < len(words) else None
    if following is not None and following.start() == end + 1 and rng.random() < 0.5:
        end = following.end()
    return Cloze(f"{sentence[:start]}[MASK]{sentence[end:]}", sentence[start:end])
