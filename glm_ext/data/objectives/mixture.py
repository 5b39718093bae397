"""The mixture of objectives: which one an example is made by (Du et al. 2022, section 2.2)."""

from __future__ import annotations

import dataclasses
import functools
import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import numpy as np

from ..bits import Flags
from ..blocks import Example, Weights
from ..spans import Ints
from ..special import SpecialIds
from .block_mask import block_mask
from .document import DocumentSettings, document_span
from .sentences import SentenceSettings, sentence_spans
from .short import crop
from .token_spans import TokenSpanSettings, token_spans


class Objective(Protocol):
    """Makes an example of a text, all randomness from rng; None if the text does not fit.

    weights: loss weights of the text's tokens (default 1), e.g. 0 on a prompt.
    ends: which of the tokens end a sentence, where the corpus knows (an objective that does not ask ignores
    it).
    """

    def __call__(
        self,
        tokens: Ints,
        rng: np.random.Generator,
        ids: SpecialIds,
        /,
        *,
        weights: Weights | None = None,
        ends: Flags | None = None,
    ) -> Example | None: ...


def standard_objectives(
    pieces: Sequence[bytes],
    *,
    token: TokenSpanSettings | None = None,
    document: DocumentSettings | None = None,
    sentence: SentenceSettings | None = None,
) -> dict[str, Objective]:
    """The objectives of GLM by name; pieces: the bytes of every token id, which tell where sentences end."""
    token = token or TokenSpanSettings()
    sentence = sentence or SentenceSettings()
    return {
        "token": functools.partial(token_spans, settings=token),
        "document": functools.partial(document_span, settings=document or DocumentSettings()),
        "sentence": functools.partial(sentence_spans, settings=sentence, pieces=pieces),
        "single": functools.partial(token_spans, settings=dataclasses.replace(token, single=True)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Draws an objective, by default for every example anew.

    weights: how often each objective is drawn, relative to the others; 0 or absent: never.
    per_batch: one draw for a whole micro batch, as the public implementation does.
    short: probability that an example is made of a piece of the text.
    block_mask: probability that an input of Part B is hidden, in the objectives of short spans ("token" and
    "single").

    With one objective and nothing else, no random number is drawn: the examples are that objective's own.

    >>> mixture = Mixture(objectives=standard_objectives([]), weights={"token": 1, "document": 1})
    >>> mixture.active
    ('token', 'document')
    """

    objectives: Mapping[str, Objective]
    weights: Mapping[str, float]
    per_batch: bool = False
    short: float = 0.0
    block_mask: float = 0.0
    active: tuple[str, ...] = field(init=False, repr=False, compare=False)  # the objectives that can be drawn
    _reach: list[float] = field(init=False, repr=False, compare=False)  # cumulative weight of each of them

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(self.objectives))
        if unknown:
            raise ValueError(f"weights: expected some of {', '.join(self.objectives)}, got {unknown}")
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"weights: expected 0 or more for {name}, got {weight}")
        active = tuple(name for name in self.objectives if self.weights.get(name, 0) > 0)
        object.__setattr__(self, "active", active)
        object.__setattr__(self, "_reach", list(accumulate(self.weights[name] for name in active)))
        if not active:
            raise ValueError("weights: expected one above 0, got none")
        for name, probability in (("short", self.short), ("block_mask", self.block_mask)):
            if not 0 <= probability <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {probability}")

    def choose(self, rng: np.random.Generator) -> str:
        """The name of an objective, drawn by weight."""
        if len(self.active) == 1:
            return self.active[0]
        return self.active[bisect(self._reach[:-1], rng.random() * self._reach[-1])]

    def only(self, name: str) -> Mixture:
        """The same without the other objectives: to evaluate one by one."""
        return Mixture(
            objectives=self.objectives, weights={name: 1.0}, short=self.short, block_mask=self.block_mask
        )

    def draw(self, rng: np.random.Generator) -> Objective:
        """An objective, drawn by weight, with the options of the mixture."""
        return functools.partial(self._make, self.choose(rng))

    def _make(
        self,
        name: str,
        tokens: Ints,
        rng: np.random.Generator,
        ids: SpecialIds,
        /,
        *,
        weights: Weights | None = None,
        ends: Flags | None = None,
    ) -> Example | None:
        if self.short and rng.random() < self.short:
            tokens, weights, ends = crop(tokens, rng, ids, weights=weights, ends=ends)
        example = self.objectives[name](tokens, rng, ids, weights=weights, ends=ends)
        if example is not None and self.block_mask and name in ("token", "single"):
            example = block_mask(example, rng, ids, self.block_mask)
        return example
