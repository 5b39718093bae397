"""How a blank is written: the settings that every way of generation shares."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """Settings of generation, checked when made: ValueError names the setting, what it may be, and what came.

    temperature 0 takes the likeliest token. Above, one is drawn from softmax(logits / temperature) after
    top_k, top_p and min_p, in that order. num_beams > 1 searches for the likeliest span instead, by
    sum(log p) / length ** length_penalty.

    >>> GenerationConfig(top_p=0.9, temperature=0.7).top_p
    0.9
    >>> GenerationConfig(top_p=1.5)
    Traceback (most recent call last):
    ValueError: top_p: expected 0 < top_p <= 1, got 1.5
    """

    max_length: int = _setting(32, "longest blank, in tokens")
    min_length: int = _setting(0, "no blank ends before so many tokens")
    temperature: float = _setting(0.0, "0: always the likeliest token; above: draw, the flatter the higher")
    top_k: int = _setting(0, "draw from the k likeliest tokens only; 0: from all")
    top_p: float = _setting(1.0, "draw from the fewest tokens that together have this probability")
    min_p: float = _setting(0.0, "draw from tokens that have this share of the likeliest one's probability")
    repetition_penalty: float = _setting(1.0, "above 1: makes tokens that the blank already holds unlikelier")
    no_repeat_ngram: int = _setting(0, "no n tokens in a row twice within a blank; 0: off")
    num_beams: int = _setting(1, "beam search of this width; 1: no search")
    length_penalty: float = _setting(
        1.0, "beams compare log p / length ** this: larger favours longer blanks"
    )
    max_blanks: int = _setting(32, "most blanks that a text may have")
    seed: int | None = _setting(None, "makes draws repeatable; text i of a batch draws by seed + i")

    def __post_init__(self) -> None:
        _expect(self.max_length >= 1, "max_length", "1 or more", self.max_length)
        _expect(0 <= self.min_length <= self.max_length, "min_length", "0 to max_length", self.min_length)
        # Beyond these, logits that are divided by them are no numbers any more.
        drawn = 1e-6 <= self.temperature <= 1e6
        greedy = self.temperature == 0.0
        _expect(greedy or drawn, "temperature", "0 (greedy), or 1e-6 to 1e6", self.temperature)
        _expect(self.top_k >= 0, "top_k", "0 (all tokens) or more", self.top_k)
        _expect(0.0 < self.top_p <= 1.0, "top_p", "0 < top_p <= 1", self.top_p)
        _expect(0.0 <= self.min_p <= 1.0, "min_p", "0 to 1", self.min_p)
        penalty = self.repetition_penalty
        _expect(1e-6 <= penalty <= 1e6, "repetition_penalty", "1e-6 to 1e6 (1: off)", penalty)
        _expect(self.no_repeat_ngram >= 0, "no_repeat_ngram", "0 (off) or more", self.no_repeat_ngram)
        _expect(self.num_beams >= 1, "num_beams", "1 (no search) or more", self.num_beams)
        _expect(math.isfinite(self.length_penalty), "length_penalty", "a number", self.length_penalty)
        _expect(self.max_blanks >= 1, "max_blanks", "1 or more", self.max_blanks)
        seed = self.seed
        _expect(seed is None or 0 <= seed < 2**63, "seed", "a number in [0, 2**63)", seed)
        if self.num_beams > 1 and self.temperature > 0.0:
            raise ValueError(
                f"num_beams: a beam search draws nothing; expected temperature 0, got {self.temperature}"
            )

    @classmethod
    def of(cls, config: GenerationConfig | None, changes: dict[str, Any]) -> GenerationConfig:
        """A config (None: the defaults) with some settings changed; TypeError for an unknown one."""
        return replace(config or cls(), **changes)


def _expect(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {value}")
