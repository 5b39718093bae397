"""Parts B that share a Part A are what each of them is alone."""

import pytest
import torch

from glm_ext import GLM, GLMConfig
from glm_ext.branches import Branches

CONTEXTS = [[5, 1, 6, 7], [1], [9, 1, 4, 4, 8, 3]]
PLACES = [1, 0, 1]
CHOICES = [[[2, 5], [2], [2, 6, 6]], [[2, 7, 7, 7]], [[2], [2, 8]]]


def model(backend="auto", dtype=torch.float64, **overrides):
    torch.manual_seed(0)
    settings = {
        "num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_positions": 16, "init_std": 0.3,
        "hidden_dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    return GLM(GLMConfig(vocab_size=12, **(settings | overrides)), backend=backend, dtype=dtype)


def packed():
    """tokens [3, S], positions, prefix_len, branches; padding has odd tokens and positions."""
    lengths = [len(a) + sum(map(len, b)) for a, b in zip(CONTEXTS, CHOICES, strict=True)]
    S = max(lengths)
    tokens, positions = torch.full((3, S), 11), torch.full((3, 2, S), 7)
    rows, cu_seqlens = [], [0]
    for b, (context, choices) in enumerate(zip(CONTEXTS, CHOICES, strict=True)):
        end = len(context)
        tokens[b, :end] = torch.tensor(context)
        positions[b, :, :end] = torch.stack((torch.arange(end), torch.zeros(end, dtype=torch.int64)))
        for choice in choices:
            begin, end = end, end + len(choice)
            tokens[b, begin:end] = torch.tensor(choice)
            positions[b, 0, begin:end] = PLACES[b]
            positions[b, 1, begin:end] = torch.arange(1, len(choice) + 1)
            rows += range(b * S + begin, b * S + end)
            cu_seqlens.append(len(rows))
    prefix_len = torch.tensor([len(context) for context in CONTEXTS])
    return tokens, positions, prefix_len, Branches(torch.tensor(rows), torch.tensor(cu_seqlens))


def together(glm):
    """Hidden states of every row of every choice, choices in order: [C, E]."""
    tokens, positions, prefix_len, branches = packed()
    hidden = glm.hidden(tokens, positions, prefix_len, cache=[branches] * glm.config.num_layers)
    return hidden.flatten(0, 1)[branches.rows]


def alone(glm):
    """The same, one sequence a choice, Part A repeated."""
    found = []
    for context, place, choices in zip(CONTEXTS, PLACES, CHOICES, strict=True):
        n = len(context)
        for choice in choices:
            places = [[*range(n), *[place] * len(choice)], [*[0] * n, *range(1, len(choice) + 1)]]
            hidden = glm.hidden(torch.tensor([context + choice]), torch.tensor([places]), n)
            found.append(hidden[0, n:])
    return torch.cat(found)


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_values_and_gradients_are_those_of_each_alone(backend):
    glm, results = model(backend), []
    weights = torch.randn(13, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for way in (together, alone):
        hidden = way(glm)
        gradients = torch.autograd.grad((hidden * weights).sum(), list(glm.parameters()))
        results.append([hidden, *gradients])
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_near(dtype):
    eps = torch.finfo(dtype).eps
    ours, peer = together(model(dtype=dtype)), alone(model(dtype=dtype))
    truth = together(model(dtype=dtype).double())
    scale = truth.abs().max()
    error, plain = ((x - truth).abs().max() / scale for x in (ours, peer))
    assert error <= 2 * plain + 4 * eps


def test_a_choice_does_not_see_another():
    glm = model()
    before = together(glm)
    tokens, positions, prefix_len, branches = packed()
    tokens[0, 4:6] = 10  # the first choice of the first question
    hidden = glm.hidden(tokens, positions, prefix_len, cache=[branches] * 2).flatten(0, 1)[branches.rows]
    assert not torch.allclose(hidden[:2], before[:2])
    assert torch.equal(hidden[2:], before[2:])


@pytest.mark.parametrize("lengths", [{"seq_len": 8}, {"start": torch.tensor([0, 1, 0])}])
def test_lengths_that_branches_do_not_know_are_refused(lengths):
    glm = model()
    tokens, positions, prefix_len, branches = packed()
    with pytest.raises(ValueError, match="cache: expected no seq_len or start beside Branches"):
        glm.hidden(tokens, positions, prefix_len, cache=[branches] * 2, **lengths)


def test_dropout_keeps_the_mean():
    """Dropped softmax weights, drawn for both sets of keys: unbiased, and off in evaluation."""
    q, k, v = torch.randn(3, 1, 1, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    from glm_ext import ops

    branches = Branches(torch.tensor([2, 3, 4]), torch.tensor([0, 1, 3]))
    exact = branches.attend(ops, q, k, v, 2)
    torch.manual_seed(0)
    draws = torch.stack([branches.attend(ops, q, k, v, 2, dropout_p=0.3) for _ in range(3000)])
    deviation = draws.std(0) / 3000**0.5
    assert ((draws.mean(0) - exact).abs() < 5 * deviation + 1e-12).all()
    glm = model(hidden_dropout=0.5, attention_dropout=0.5)
    assert not torch.equal(together(glm), together(glm))
    assert torch.equal(together(glm.eval()), together(glm))
