"""Writing and scoring answers on a GPU give what they give on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from glm_ext.generate import GenerationConfig
from glm_ext.generate.beam import beam_search
from glm_ext.generate.writer import Request, write
from glm_ext.tasks.choices import Question, choice_log_probs, choice_loss

from ..generate.models import EOP, SOP, model

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
REQUESTS = [Request([5, 1, 6, 7, 1, 8], [4, 1]), Request([1], [0]), Request([9, 1, 4], [1])]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_is_written_alike(temperature: float) -> None:
    config = GenerationConfig(max_length=6, temperature=temperature, seed=0, top_p=0.9, no_repeat_ngram=2)
    glm = model(4)
    ours, theirs = (
        list(write(twin, REQUESTS, start_id=SOP, end_ids=[EOP], config=config))
        for twin in (glm, copy.deepcopy(glm).to(DEVICE))
    )
    assert ours == theirs and ours


def test_beams_are_searched_alike() -> None:
    config = GenerationConfig(max_length=6, num_beams=3)
    glm = model(4)
    ours, theirs = (
        beam_search(twin, REQUESTS, start_id=SOP, end_ids=[EOP], config=config)
        for twin in (glm, copy.deepcopy(glm).to(DEVICE))
    )
    for mine, yours in zip(ours, theirs, strict=True):
        for a, b in zip(mine, yours, strict=True):
            assert a[0].span == b[0].span and a[0].score == pytest.approx(b[0].score, rel=1e-3)


def test_choices_are_scored_alike() -> None:
    glm = model(4, hidden_dropout=0.0, attention_dropout=0.0)
    twin = copy.deepcopy(glm).to(DEVICE)
    questions = [
        Question(context=[5, 1, 6, 7], place=1, choices=[[5, 9], [6], [6, 6, 4]], gold=frozenset([1])),
        Question(context=[9, 1], place=1, choices=[[8], [4]], gold=frozenset([0])),
    ]
    losses = []
    for one in (glm, twin):
        loss = choice_loss(choice_log_probs(one, questions, start_id=SOP, end_id=EOP), questions)
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for a, b in zip(glm.parameters(), twin.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(b.grad.cpu(), a.grad, rtol=1e-3, atol=1e-4)
