"""Scores of choices, packed on one Part A, against one sequence a choice."""

import pytest
import torch

from glm_ext import GLM, GLMConfig
from glm_ext.tasks.choices import Question, choice_log_probs, choice_loss

SOP, EOP = 2, 3
QUESTIONS = [
    Question(context=[5, 1, 6, 7], place=1, choices=[[5, 9], [6], [6, 6, 4]], gold=frozenset([1])),
    Question(context=[9, 1], place=1, choices=[[8], [4]], gold=frozenset([0])),
    Question(context=[5, 4, 8, 7, 1, 6], place=4, choices=[[7, 7, 7]], gold=frozenset([0])),
]


@pytest.fixture
def glm():
    torch.manual_seed(0)
    settings = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_positions": 16, "init_std": 0.3}
    return GLM(
        GLMConfig(vocab_size=12, hidden_dropout=0.0, attention_dropout=0.0, **settings), dtype=torch.float64
    )


def by_definition(glm, question, length_penalty=0.0):
    """Every choice in a sequence of its own, through the logits; float64."""
    n, scores = len(question.context), []
    single = all(len(choice) == 1 for choice in question.choices)
    for choice in question.choices:
        fed, targets = [SOP, *choice], [*choice, EOP]
        if single:
            fed, targets = [SOP], choice
        places = [[*range(n), *[question.place] * len(fed)], [*[0] * n, *range(1, len(fed) + 1)]]
        logits = glm(torch.tensor([question.context + fed]), torch.tensor([places]), n)[0, n:]
        log_p = logits.log_softmax(1)[range(len(fed)), targets].sum()
        scores.append(log_p / len(targets) ** length_penalty)
    return torch.stack(scores)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_log_probs_are_those_of_each_choice_alone(glm, length_penalty):
    found = choice_log_probs(glm, QUESTIONS, start_id=SOP, end_id=EOP, length_penalty=length_penalty)
    assert found.dtype == torch.float32 and found.shape == (3, 3)
    for row, question in zip(found, QUESTIONS, strict=True):
        expected = by_definition(glm, question, length_penalty)
        count = len(question.choices)
        torch.testing.assert_close(row[:count].double(), expected, rtol=1e-5, atol=1e-6)
        assert row[count:].tolist() == [-float("inf")] * (3 - count)


def test_the_loss_has_the_gradient_of_its_definition(glm):
    found = choice_loss(choice_log_probs(glm, QUESTIONS, start_id=SOP, end_id=EOP), QUESTIONS)
    expected = torch.stack(
        [-by_definition(glm, q).log_softmax(0)[sorted(q.gold)].logsumexp(0) for q in QUESTIONS]
    ).mean()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    parameters = list(glm.parameters())
    ours, truth = torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-12)


def test_autocast_is_near(glm):
    glm = glm.float()
    exact = choice_loss(choice_log_probs(glm, QUESTIONS, start_id=SOP, end_id=EOP), QUESTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = choice_loss(choice_log_probs(glm, QUESTIONS, start_id=SOP, end_id=EOP), QUESTIONS)
    loss.backward()
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)
    assert all(parameter.grad.isfinite().all() for parameter in glm.parameters())


def test_several_right_choices_count_together():
    log_probs = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()
    question = Question(context=[1], place=0, choices=[[1]] * 4, gold=frozenset([1, 3]))
    assert float(choice_loss(log_probs, [question]).exp()) == pytest.approx(1 / 0.3)


def test_part_a_is_fed_once(glm, monkeypatch):
    fed, run = [], GLM.hidden_and_head
    monkeypatch.setattr(
        GLM, "hidden_and_head", lambda self, t, *a, **k: fed.append(t.shape) or run(self, t, *a, **k)
    )
    choice_log_probs(glm, QUESTIONS[:1], start_id=SOP, end_id=EOP)
    choice_log_probs(glm, QUESTIONS[1:2], start_id=SOP, end_id=EOP)
    assert fed == [(1, 4 + 3 + 2 + 4), (1, 2 + 1)]  # single tokens share their one start


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": []}, "choices: expected at least one"),
        ({"choices": [[5], []]}, "choices: expected at least one, each of one token or more"),
        ({"choices": [[5] * 16]}, "the longest answer has 16 tokens and the model takes 15"),
        ({"context": [5] * 17}, r"the text has 17 tokens and the model takes 16 \(max_positions\); lower"),
    ],
)
def test_what_cannot_be_scored_is_refused(glm, changes, message):
    fields = {"context": [5, 1], "place": 1, "choices": [[5]], "gold": frozenset([0])}
    with pytest.raises(ValueError, match=message):
        choice_log_probs(glm, [Question(**(fields | changes))], start_id=SOP, end_id=EOP)


def test_a_loss_needs_labels():
    question = Question(context=[1], place=0, choices=[[1]], gold=frozenset())
    with pytest.raises(ValueError, match="expected a label in every example to learn from"):
        choice_loss(torch.zeros(1, 1), [question])
