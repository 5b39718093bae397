"""Whole examples to a budget of tokens: what makes a packed batch nearly full."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .blocks import Example

# Texts shorter than this are not made to fill what is left.
_SHORTEST = 8


class Drawn(NamedTuple):
    """An example, and how many tokens its text has."""

    example: Example
    text_length: int


def fill_budget(budget: int, longest: int, draw: Callable[[int, int], Drawn | None]) -> list[Example]:
    """Examples of `budget` tokens or a few less.

    draw(n, limit): draw number n, of a text of at most `limit` tokens; None if such a text holds no example,
    and the rest of the budget is to be left free.
    Texts have up to `longest` tokens; only where an example does not fit into what is left is another drawn,
    of a text so much shorter. No example is cut. Nothing that fits may come of it: an empty list.
    """
    examples: list[Example] = []
    room, limit = budget, min(longest, budget)
    draws = 0
    while limit >= _SHORTEST:
        drawn = draw(draws, limit)
        draws += 1
        if drawn is None:
            break
        example, text_length = drawn
        if len(example) <= room:
            examples.append(example)
            room -= len(example)
            limit = min(longest, room)
        else:
            limit = min(limit - 1, text_length * room // len(example))
    return examples
