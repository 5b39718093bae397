import math

import pytest
import torch

from glm_ext.generate import GenerationConfig
from glm_ext.generate.filters import Draw, Rules, min_p, repeating, repetition_penalty, top_k, top_p


def rows(seed=0, size=(5, 11)):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2


def kept(logits):
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits]


@pytest.mark.parametrize("k", [1, 2, 7, 10])
def test_top_k_keeps_the_k_likeliest(k):
    logits = rows()
    assert kept(top_k(logits, k)) == [set(sorted(range(11), key=lambda i: -row[i])[:k]) for row in logits]


def test_filters_leave_what_they_keep_as_it_was():
    logits = rows()
    for filtered in (top_k(logits, 3), top_p(logits, 0.7), min_p(logits, 0.1)):
        assert 0 < filtered.isfinite().sum() < logits.numel()
        assert torch.equal(filtered[filtered.isfinite()], logits[filtered.isfinite()])


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.7, 0.95, 0.999])
def test_top_p_is_its_definition(p):
    logits = rows()
    expected = []
    for probability in logits.softmax(1).tolist():
        total, nucleus = 0.0, set()
        for token in sorted(range(11), key=lambda i: -probability[i]):
            nucleus.add(token)
            total += probability[token]
            if total >= p:
                break
        expected.append(nucleus)
    assert kept(top_p(logits, p)) == expected


@pytest.mark.parametrize("p", [0.01, 0.2, 1.0])
def test_min_p_is_its_definition(p):
    logits = rows()
    expected = [{i for i in range(11) if row[i] >= p * max(row)} for row in logits.softmax(1).tolist()]
    assert kept(min_p(logits, p)) == expected


def test_filters_that_are_off_change_nothing():
    logits = rows()
    for same in (top_k(logits, 0), top_k(logits, 11), top_p(logits, 1.0), min_p(logits, 0.0)):
        assert torch.equal(same, logits)
    assert torch.equal(repetition_penalty(logits, [[1, 2]] * 5, 1.0), logits)


def test_repetition_penalty_is_per_row_and_counts_a_token_once():
    logits = rows()
    spans = [[], [3], [3, 3, 4], [0], []]
    penalised = repetition_penalty(logits, spans, 1.5)
    for row, old, span in zip(penalised, logits, spans, strict=True):
        for token in range(11):
            factor = 1.0 if token not in span else 1 / 1.5 if old[token] > 0 else 1.5
            assert float(row[token]) == pytest.approx(float(old[token]) * factor)


def test_repeating_ngrams():
    assert repeating([1, 2, 1], 1) == {1, 2}
    assert repeating([1, 2, 3, 1], 2) == {2}
    assert repeating([1, 2, 1, 3, 1], 2) == {2, 3}
    assert repeating([1, 2], 3) == repeating([], 1) == repeating([1, 1, 1], 0) == set()
    assert repeating([1, 1, 1], 3) == {1}


def test_rules_forbid():
    config = GenerationConfig(min_length=2, no_repeat_ngram=1)
    rules = Rules(config, end_ids=[9], banned_ids=[0, 10])
    found = kept(rules(rows(size=(3, 11)), [[], [4], [4, 5]]))
    assert found == [set(range(1, 9)), {1, 2, 3, 5, 6, 7, 8}, {1, 2, 3, 6, 7, 8, 9}]


def test_where_nothing_may_follow_the_end_may():
    rules = Rules(GenerationConfig(min_length=5, max_length=5, no_repeat_ngram=1), [2], banned_ids=[3])
    assert kept(rules(torch.zeros(2, 4), [[0, 1], [0]])) == [{2}, {1}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.0, 1.0, math.nan, -math.inf], "expected finite numbers, got nan; look for NaN in the weights"),
        ([0.0, 1.0, math.inf, 0.0], "expected finite numbers, got inf"),
        ([0.0, -math.inf, -math.inf, -math.inf], "expected a token that may follow, got -inf for all"),
    ],
)
def test_a_row_without_a_likeliest_token_is_refused(row, message):
    rules = Rules(GenerationConfig(), end_ids=[3], banned_ids=[0])
    logits = torch.tensor([[math.nan, -math.inf, -5.0, -math.inf], row])
    assert kept(rules(logits[:1], [[]])) == [{2}]  # a token that is forbidden may hold anything
    with pytest.raises(ValueError, match=f"logits: {message}"):
        rules(logits, [[], []])


def test_draws_have_their_frequencies():
    probability = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
    draw = Draw(GenerationConfig(temperature=0.5, seed=0), 1)
    # p at temperature 0.5 is p squared, normalised.
    expected = probability**2 / (probability**2).sum()
    drawn = torch.tensor(draw(probability.log().expand(20_000, 5), [0] * 20_000)).bincount(minlength=5)
    deviation = 4 * math.sqrt(0.25 / 20_000)
    torch.testing.assert_close(drawn / 20_000, expected, atol=deviation, rtol=0)
    assert drawn[1] == drawn[4] == 0


def test_filters_narrow_a_draw():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(500, 4)
    for option, support in (
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.8}, {0, 1, 2}),
        ({"min_p": 0.45}, {0, 1, 2}),
    ):
        draw = Draw(GenerationConfig(temperature=1.0, seed=1, **option), 1)
        assert set(draw(logits, [0] * 500)) == support


@pytest.mark.parametrize(("temperature", "support"), [(1e-6, {1}), (1e6, {0, 1})])
def test_the_last_temperatures_still_draw(temperature, support):
    logits = torch.tensor([[0.0, 1e4, -torch.inf]]).expand(100, 3)
    draw = Draw(GenerationConfig(temperature=temperature, seed=0), 1)
    assert set(draw(logits, [0] * 100)) == support


def test_a_text_draws_by_its_own_seed():
    logits = rows(size=(3, 11))
    together = Draw(GenerationConfig(temperature=2.0, seed=7), 3)
    alone = [Draw(GenerationConfig(temperature=2.0, seed=7 + text), 1) for text in range(3)]
    for _ in range(10):
        expected = [one(logits[i : i + 1], [0])[0] for i, one in enumerate(alone)]
        assert together(logits, [0, 1, 2]) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length: expected 1 or more, got 0"),
        ({"min_length": 33}, "min_length: expected 0 to max_length, got 33"),
        ({"top_p": 0.0}, "top_p: expected 0 < top_p <= 1, got 0.0"),
        ({"min_p": 1.5}, "min_p: expected 0 to 1, got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: expected 1e-6 to 1e6"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram: expected 0"),
        ({"num_beams": 0}, "num_beams: expected 1"),
        (
            {"num_beams": 2, "temperature": 1.0},
            "a beam search draws nothing; expected temperature 0, got 1.0",
        ),
        ({"max_blanks": 0}, "max_blanks: expected 1"),
        ({"temperature": float("nan")}, "temperature: expected 0"),
        ({"temperature": 1e-45}, r"temperature: expected 0 \(greedy\), or 1e-6 to 1e6, got 1e-45"),
        ({"temperature": math.inf}, "temperature: expected 0"),
        ({"length_penalty": math.nan}, "length_penalty: expected a number"),
        ({"seed": -1}, "seed: expected a number in"),
        ({"seed": 2**63}, "seed: expected a number in"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**options)
