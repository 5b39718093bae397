"""Blanks filled token by token, greedily or by chance, several texts at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..model import GLM, inference
from .config import GenerationConfig
from .decoder import Decoder
from .filters import Draw, Rules


class Request(NamedTuple):
    """Part A of a text and the places of its blanks, in the order in which they are to be filled."""

    tokens: Sequence[int]
    places: Sequence[int]


class Written(NamedTuple):
    """One token that was written: into which text and which blank, both counted as in the requests."""

    text: int
    blank: int
    token: int


@dataclass(slots=True)
class _State:
    """Where the writing of one text stands: the blank under the pen, and what it holds."""

    text: int
    places: Sequence[int]
    blank: int = 0
    span: list[int] = field(default_factory=list)


def write(
    model: GLM,
    requests: Sequence[Request],
    *,
    start_id: int,
    end_ids: Collection[int],
    config: GenerationConfig,
    banned_ids: Collection[int] = (),
) -> Iterator[Written]:
    """Yields tokens as they are written; end tokens are not yielded, and no yield holds a text up.

    A text that is done leaves the batch. Each step feeds one token of every text that is not: the start of a
    blank, or what was written last, at the blank's place and its place in the span.
    """
    states = [_State(text, request.places) for text, request in enumerate(requests) if request.places]
    if not states:
        return
    rules, draw = Rules(config, end_ids, banned_ids), Draw(config, len(requests))
    ends = set(end_ids)
    with inference(model):
        room = max(len(state.places) for state in states) * (config.max_length + 1)
        decoder = Decoder(model, [requests[state.text].tokens for state in states], room)
    while states:
        with inference(model):
            logits = decoder.step(
                [state.span[-1] if state.span else start_id for state in states],
                [state.places[state.blank] for state in states],
                [len(state.span) + 1 for state in states],
            )
            picked = draw(rules(logits, [state.span for state in states]), [state.text for state in states])
        going = []
        for row, (state, token) in enumerate(zip(states, picked, strict=True)):
            last_blank = state.blank + 1 == len(state.places)
            full = len(state.span) == config.max_length  # its last token was fed for later blanks to see
            if full or token in ends:
                state.blank, state.span = state.blank + 1, []
                done = last_blank
            else:
                state.span.append(token)
                yield Written(state.text, state.blank, token)
                done = last_blank and len(state.span) == config.max_length
            if not done:
                going.append(row)
        if 0 < len(going) < len(states):
            decoder.select(going)
        states = [states[row] for row in going]
