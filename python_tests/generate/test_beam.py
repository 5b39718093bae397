"""Beam search against every span there is, on vocabularies small enough for that."""

import itertools

import pytest
import torch

from glm_ext import fill_tokens
from glm_ext.generate import GenerationConfig
from glm_ext.generate.beam import beam_search
from glm_ext.generate.writer import Request

from .models import EOP, SOP, logits_by_definition, model

CONTEXTS = [[1, 0, 4, 1], [0, 1], [4, 0, 1, 4, 4, 0]]
PLACES = [0, 1, 2]
LENGTH = 3


def all_hypotheses(glm, context, before, place, config, ends=(EOP,)):
    """Every span of at most LENGTH tokens with its score, best first, by the definition of both."""
    width, cache = glm.config.vocab_size, {}

    def log_p(span):
        if span not in cache:
            logits = logits_by_definition(glm, context, [*before, (place, [SOP, *span])]).double()
            if len(span) < config.min_length:
                logits[list(ends)] = -torch.inf
            cache[span] = logits.log_softmax(0)
        return cache[span]

    found = []
    inner = [token for token in range(width) if token not in ends]
    for length in range(LENGTH + 1):
        for span in itertools.product(inner, repeat=length):
            total = sum(float(log_p(span[:i])[token]) for i, token in enumerate(span))
            if length == LENGTH:
                found.append((total / length**config.length_penalty, list(span)))
            else:
                found += [
                    ((total + float(log_p(span)[end])) / (length + 1) ** config.length_penalty, list(span))
                    for end in ends
                ]
    return sorted(found, key=lambda pair: -pair[0])


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 0.7, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_a_wide_search_finds_the_best_of_all(seed, length_penalty):
    glm = model(seed, vocab_size=5, num_layers=1)
    config = GenerationConfig(max_length=LENGTH, num_beams=100, length_penalty=length_penalty)
    requests = [Request(context, [place]) for context, place in zip(CONTEXTS, PLACES, strict=True)]
    found = beam_search(glm, requests, start_id=SOP, end_ids=[EOP], config=config)
    for [hypotheses], context, place in zip(found, CONTEXTS, PLACES, strict=True):
        expected = all_hypotheses(glm, context, [], place, config)
        assert len(hypotheses) == len(expected) == 1 + 4 + 16 + 64
        for (score, span), (best, best_span) in zip(hypotheses[:20], expected[:20], strict=True):
            assert score == pytest.approx(best, rel=1e-4)
            assert span == best_span


def test_minimum_length_and_two_ends():
    glm = model(1, vocab_size=5, num_layers=1)
    config = GenerationConfig(max_length=LENGTH, min_length=2, num_beams=100)
    [[found]] = beam_search(glm, [Request(CONTEXTS[0], [0])], start_id=SOP, end_ids=[EOP, 4], config=config)
    expected = all_hypotheses(glm, CONTEXTS[0], [], 0, config, ends=(EOP, 4))
    expected = [pair for pair in expected if pair[0] > float("-inf")]
    assert len(found) == len(expected)
    assert [h.score for h in found] == pytest.approx([score for score, _ in expected], rel=1e-4)
    assert min(len(h.span) for h in found) == 2


def test_later_blanks_see_the_best_of_earlier_ones():
    glm = model(5, vocab_size=5, num_layers=1)
    config = GenerationConfig(max_length=LENGTH, num_beams=100)
    options = {"start_id": SOP, "end_ids": [EOP], "config": config}
    [blanks, [alone]] = beam_search(
        glm, [Request(CONTEXTS[0], [3, 0, 2]), Request(CONTEXTS[1], [1])], **options
    )
    before = []
    for place, hypotheses in zip([3, 0, 2], blanks, strict=True):
        expected = all_hypotheses(glm, CONTEXTS[0], before, place, config)
        assert hypotheses[0].span == expected[0][1]
        assert hypotheses[0].score == pytest.approx(expected[0][0], rel=1e-4)
        before.append((place, [SOP, *hypotheses[0].span]))
    assert alone == beam_search(glm, [Request(CONTEXTS[1], [1])], **options)[0][0]


@pytest.mark.parametrize("seed", range(5))
def test_one_beam_is_greedy(seed):
    """Where length counts for nothing, a search of width 1 takes the likeliest token each time."""
    glm = model(seed)
    config = GenerationConfig(max_length=4, length_penalty=0.0)
    [[found]] = beam_search(glm, [Request([5, 1, 6], [1])], start_id=SOP, end_ids=[EOP], config=config)
    assert found[0].span == fill_tokens(glm, [5, 1, 6], [1], start_id=SOP, end_ids=[EOP], max_length=4)[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_narrow_batch_is_its_texts_alone(seed):
    glm = model(seed)
    config = GenerationConfig(max_length=6, num_beams=3, no_repeat_ngram=2, length_penalty=0.8)
    options = {"start_id": SOP, "end_ids": [EOP], "config": config}
    requests = [Request([5, 1, 6, 7, 1, 8], [4]), Request([1], [0]), Request([9, 1, 4], [1])]
    together = beam_search(glm, requests, **options)
    for request, [hypotheses] in zip(requests, together, strict=True):
        [[alone]] = beam_search(glm, [request], **options)
        assert [h.span for h in hypotheses] == [h.span for h in alone]
        assert [h.score for h in hypotheses] == pytest.approx([h.score for h in alone], rel=1e-4)
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for _, span in hypotheses:
            pairs = list(itertools.pairwise(span))
            assert len(pairs) == len(set(pairs))
