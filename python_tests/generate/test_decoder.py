"""The cache: what it gives is what the whole sequence gives, padded or not, and nothing is read twice."""

import pytest
import torch

from glm_ext.generate import GenerationConfig, fill_tokens
from glm_ext.generate.decoder import Decoder
from glm_ext.generate.filters import Rules
from glm_ext.generate.writer import Request, write
from glm_ext.model import inference

from ..test_model import GOLDEN, golden_model
from .models import EOP, SOP, logits_by_definition, model

CONTEXTS = [[5, 1, 6, 7, 1, 8], [1], [9, 1, 4]]
PLACES = [1, 0, 1]


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_golden_run(backend):
    glm, n = golden_model(backend), int(GOLDEN["decode_prefix"])
    tokens, positions = GOLDEN["input_ids"][0].tolist(), GOLDEN["decode_position_ids"][0].tolist()
    # A longer neighbour, so that the run is padded on its left.
    with inference(glm):
        decoder = Decoder(glm, [tokens[:n], [*tokens[:n], 1, 2, 3]], len(tokens) - n)
        for column in range(n, len(tokens)):
            logits = decoder.step(
                [tokens[column]] * 2, [positions[0][column]] * 2, [positions[1][column]] * 2
            )
            torch.testing.assert_close(logits[0], GOLDEN["decode_logits"][0, column], rtol=0, atol=1e-4)


def test_padded_and_cached_logits_are_those_of_the_definition():
    glm = model()
    fed = [[SOP, 4, 5], [SOP, 7, 7], [SOP, 10, 6]]
    with inference(glm):
        decoder = Decoder(glm, CONTEXTS, 3)
        for step in range(3):
            logits = decoder.step([span[step] for span in fed], PLACES, [step + 1] * 3)
            for row in range(3):
                expected = logits_by_definition(glm, CONTEXTS[row], [(PLACES[row], fed[row][: step + 1])])
                torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-5)


def test_under_autocast_keys_and_values_are_kept_as_they_come():
    """In half the room, and no less exact than without a cache."""
    glm, fed = model(), [[SOP, 4, 5], [SOP, 7, 7], [SOP, 10, 6]]
    found, plain, exact = [], [], []
    with inference(glm), torch.autocast("cpu", torch.bfloat16):
        decoder = Decoder(glm, CONTEXTS, 3)
        assert {x.dtype for layer in decoder.cache for x in (layer.key, layer.value)} == {torch.bfloat16}
        for step in range(3):
            found += decoder.step([span[step] for span in fed], PLACES, [step + 1] * 3)
            for row in range(3):
                written = [(PLACES[row], fed[row][: step + 1])]
                plain.append(logits_by_definition(glm, CONTEXTS[row], written))
                with torch.autocast("cpu", enabled=False):
                    exact.append(logits_by_definition(glm, CONTEXTS[row], written))
    error, usual = ((torch.stack(x).float() - torch.stack(exact)).abs().max() for x in (found, plain))
    assert 0 < error <= 2 * usual
    assert glm.double().new_cache(1, 4)[0].key.dtype == torch.float64


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 1.0, "seed": 0}])
def test_blanks_are_written_under_autocast(options):
    glm = model()
    with torch.autocast("cpu", torch.bfloat16):
        spans = fill_tokens(
            glm, [5, 1, 6, 1], [1, 3], start_id=SOP, end_ids=[EOP], max_length=4, min_length=2, **options
        )
    assert all(2 <= len(span) <= 4 for span in spans)


def test_selecting_reordering_and_rewinding():
    glm = model()
    with inference(glm):
        decoder = Decoder(glm, CONTEXTS, 6)
        decoder.select([2, 0, 0])
        decoder.step([SOP] * 3, [1] * 3, [1] * 3)
        first = decoder.length
        decoder.step([4, 5, 6], [1] * 3, [2] * 3)
        decoder.reorder([0, 2, 1], first)
        logits = decoder.step([7, 7, 7], [1] * 3, [3] * 3)
        for row, (text, token) in enumerate([(2, 4), (0, 6), (0, 5)]):
            expected = logits_by_definition(glm, CONTEXTS[text], [(1, [SOP, token, 7])])
            torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-5)
        decoder.rewind(first)
        logits = decoder.step([9] * 3, [1] * 3, [2] * 3)
        expected = logits_by_definition(glm, CONTEXTS[0], [(1, [SOP, 9])])
        torch.testing.assert_close(logits[1], expected, rtol=1e-4, atol=1e-5)


def test_every_token_is_fed_once(monkeypatch):
    """A step costs one token of each text that is not done; Part A and earlier spans are not read again."""
    glm, fed = model(), []
    hidden = type(glm).hidden
    monkeypatch.setattr(
        type(glm), "hidden", lambda self, tokens, *rest, **more: fed.append(tokens.shape) or hidden(
            self, tokens, *rest, **more
        )
    )  # fmt: skip
    requests = [
        Request(context, places) for context, places in zip(CONTEXTS, [[1, 4], [0], [1]], strict=True)
    ]
    options = {"start_id": SOP, "end_ids": [EOP], "config": GenerationConfig(max_length=5)}
    lengths = {}
    for text, blank, _ in write(glm, requests, **options):
        lengths[text, blank] = lengths.get((text, blank), 0) + 1
    assert fed[0] == (3, 6) and all(shape[1] == 1 for shape in fed[1:])
    # A blank feeds its start and what it holds, but for a last token that nothing follows.
    cost = [2 + lengths[0, 0] + min(lengths[0, 1], 4)] + [1 + min(lengths[text, 0], 4) for text in (1, 2)]
    assert [shape[0] for shape in fed[1:]] == [sum(step < c for c in cost) for step in range(max(cost))]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_a_batch_writes_what_its_texts_write_alone(seed, temperature):
    glm = model(seed)
    requests = [
        Request(context, places) for context, places in zip(CONTEXTS, [[4, 1], [0], [1]], strict=True)
    ]

    def written(requests, seed):
        config = GenerationConfig(
            max_length=5, temperature=temperature, seed=seed, repetition_penalty=1.3, no_repeat_ngram=2
        )
        found = {}
        for text, blank, token in write(glm, requests, start_id=SOP, end_ids=[EOP], config=config):
            found.setdefault(text, []).append((blank, token))
        return [found.get(text, []) for text in range(len(requests))]

    assert written(requests, 3) == [written([request], 3 + i)[0] for i, request in enumerate(requests)]


def test_writing_follows_the_rules_at_each_step():
    """Greedy writing with penalties, step by step from the definition."""
    glm = model(3)
    config = GenerationConfig(max_length=6, min_length=4, repetition_penalty=1.4, no_repeat_ngram=2)
    rules, span = Rules(config, [EOP], [0, 1, 2]), []
    while len(span) < 6:
        logits = logits_by_definition(glm, CONTEXTS[0], [(4, [SOP, *span])])
        token = int(rules(logits[None], [span]).argmax())
        if token == EOP:
            break
        span.append(token)
    request = Request(CONTEXTS[0], [4])
    found = write(glm, [request], start_id=SOP, end_ids=[EOP], config=config, banned_ids=[0, 1, 2])
    assert [written.token for written in found] == span and len(span) >= 4
    assert glm.training


def test_nothing_to_write():
    config = GenerationConfig()
    assert list(write(model(), [Request([5], [])], start_id=SOP, end_ids=[EOP], config=config)) == []
