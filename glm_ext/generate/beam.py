"""Beam search: each blank is written as the likeliest span that is found."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..model import GLM, inference
from .config import GenerationConfig
from .decoder import Decoder
from .filters import Rules
from .writer import Request


class Hypothesis(NamedTuple):
    """A finished span and its score, sum(log p) / n ** length_penalty over its n tokens.

    The token that ends it is one of them; a span that was cut at max_length has none.
    """

    score: float
    span: list[int]


class _Beam(NamedTuple):
    """A span under way: where it lies in the decoder's batch, and the sum of its log-probabilities."""

    row: int
    total: float
    span: list[int]


def beam_search(
    model: GLM,
    requests: Sequence[Request],
    *,
    start_id: int,
    end_ids: Collection[int],
    config: GenerationConfig,
    banned_ids: Collection[int] = (),
) -> list[list[list[Hypothesis]]]:
    """Per text, per blank (in the order of the request): up to num_beams hypotheses, best first.

    In each step num_beams spans are kept under way, and an end token among the num_beams likeliest
    continuations finishes one. A blank is done when no span under way can still beat those that are finished.
    Later blanks see the best hypothesis of every earlier one. Texts with one blank are searched together.
    """
    found: list[list[list[Hypothesis]]] = [[] for _ in requests]
    together = [text for text, request in enumerate(requests) if len(request.places) == 1]
    alone = [text for text, request in enumerate(requests) if len(request.places) > 1]
    for texts in ([together] if together else []) + [[text] for text in alone]:
        blanks = len(requests[texts[0]].places)
        rules = Rules(config, end_ids, banned_ids)
        with inference(model):
            contexts = [requests[text].tokens for text in texts]
            decoder = Decoder(model, contexts, blanks * (config.max_length + 1))
            for blank in range(blanks):
                places, first = [requests[text].places[blank] for text in texts], decoder.length
                best = _search(decoder, places, start_id, rules)
                for text, hypotheses in zip(texts, best, strict=True):
                    found[text].append(hypotheses)
                if blank + 1 < blanks:  # one text: what its beams fed gives way to the best hypothesis
                    decoder.rewind(first)
                    decoder.select([0])
                    span = [start_id, *best[0][0].span]
                    decoder.feed([span], [[places[0]] * len(span)], [[*range(1, len(span) + 1)]])
    return found


def _search(decoder: Decoder, places: Sequence[int], start_id: int, rules: Rules) -> list[list[Hypothesis]]:
    """The hypotheses of one blank in each text; texts are dropped from the decoder as they are done."""
    config, first = rules.config, decoder.length
    finished: list[list[Hypothesis]] = [[] for _ in places]
    under_way = {text: [_Beam(text, 0.0, [])] for text in range(len(places))}
    for length in range(config.max_length):  # of the spans under way
        beams = [beam for kept in under_way.values() for beam in kept]
        owners = [text for text, kept in under_way.items() for _ in kept]
        last = [beam.span[-1] if beam.span else start_id for beam in beams]
        logits = decoder.step(last, [places[text] for text in owners], [length + 1] * len(beams))
        log_p = rules(logits, [beam.span for beam in beams]).log_softmax(1)
        for text, kept in list(under_way.items()):
            row = kept[0].row
            under_way[text] = _extend(kept, log_p[row : row + len(kept)], finished[text], rules)
            if _is_done(under_way[text], finished[text], config):
                del under_way[text]
        if not under_way:
            break
        rows = [beam.row for kept in under_way.values() for beam in kept]
        if owners == [text for text, kept in under_way.items() for _ in kept]:
            decoder.reorder(rows, first)  # Part A stays where it is
        else:
            decoder.select(rows)
        numbers = iter(range(len(rows)))
        under_way = {
            text: [beam._replace(row=next(numbers)) for beam in kept] for text, kept in under_way.items()
        }
    return finished


def _extend(kept: list[_Beam], log_p: Tensor, finished: list[Hypothesis], rules: Rules) -> list[_Beam]:
    """The num_beams likeliest spans that are one token longer; finished ones go to `finished`."""
    config, width = rules.config, log_p.shape[1]
    so_far = torch.tensor([[beam.total] for beam in kept], dtype=torch.float64, device=log_p.device)
    totals = so_far + log_p
    # Every beam may bring each end token once, so that many suffice to find num_beams that go on.
    most = config.num_beams * (len(rules.end_ids) + 1)
    values, indices = totals.flatten().topk(min(most, totals.numel()))
    longer: list[_Beam] = []
    for rank, (total, index) in enumerate(zip(values.tolist(), indices.tolist(), strict=True)):
        beam, token = kept[index // width], index % width
        if total == float("-inf") or len(longer) == config.num_beams:
            break
        if token in rules.end_ids:
            if rank < config.num_beams:
                score = total / (len(beam.span) + 1) ** config.length_penalty
                finished.append(Hypothesis(score, beam.span))
        else:
            longer.append(_Beam(beam.row, total, [*beam.span, token]))
    if longer and len(longer[0].span) == config.max_length:
        penalty = config.max_length**config.length_penalty
        finished.extend(Hypothesis(beam.total / penalty, beam.span) for beam in longer)
        longer = []
    finished.sort(key=lambda found: -found.score)  # stable: of equal scores the one found first
    del finished[config.num_beams :]
    return longer


def _is_done(under_way: list[_Beam], finished: list[Hypothesis], config: GenerationConfig) -> bool:
    """Whether no span under way can still enter the num_beams best."""
    if not under_way:
        return True
    if len(finished) < config.num_beams:
        return False
    # A sum of log-probabilities only falls; a positive penalty divides it at most by that of max_length.
    longest = config.max_length if config.length_penalty > 0 else len(under_way[0].span)
    attainable: float = under_way[0].total / longest**config.length_penalty
    return finished[-1].score >= attainable
