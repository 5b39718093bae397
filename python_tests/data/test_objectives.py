"""What holds for every objective: texts come back, positions and loss are the paper's, prompts are free."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_ext.data import (
    Example,
    Objective,
    TokenSpanSettings,
    block_mask,
    crop,
    part_b_spans,
    restore,
    standard_objectives,
    token_spans,
)

from .objective_texts import FIRST_WORD, IDS, PIECES, VOCAB, text, texts

OBJECTIVES = standard_objectives(PIECES)
MASKS = {"token": IDS.mask, "single": IDS.mask, "document": IDS.gmask, "sentence": IDS.smask}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
seeds = st.integers(0, 2**32)


def make(name: str, tokens: np.ndarray, seed: int, weights: np.ndarray | None = None) -> Example | None:
    return OBJECTIVES[name](tokens, np.random.default_rng(seed), IDS, weights=weights)


@every_objective
@given(tokens=texts(), seed=seeds)
def test_an_example_inverts_to_its_text(name: str, tokens: np.ndarray, seed: int) -> None:
    example = make(name, tokens, seed)
    if example is not None:
        assert restore(example, sop=IDS.sop, eop=IDS.eop).tolist() == tokens.tolist()


@every_objective
@given(tokens=texts(), seed=seeds)
def test_masks_positions_and_loss_are_the_papers(name: str, tokens: np.ndarray, seed: int) -> None:
    example = make(name, tokens, seed)
    if example is None:
        return
    a = example.prefix_len
    spans = part_b_spans(example, IDS.sop)
    masks = np.flatnonzero(example.tokens[:a] == MASKS[name])
    assert len(masks) == len(spans) >= 1
    assert not np.isin(example.tokens[:a], [m for m in MASKS.values() if m != MASKS[name]]).any()
    assert sorted(example.positions[0, rows.start] for rows in spans) == masks.tolist()
    assert example.positions[0, :a].tolist() == list(range(a)) and not example.positions[1, :a].any()
    assert example.loss_mask.tolist() == [0.0] * a + [1.0] * (len(example) - a)
    assert example.positions.max() < len(tokens)  # inside the tables


@every_objective
@given(tokens=texts(), seed=seeds)
def test_an_unfinished_span_does_not_tell_its_length(name: str, tokens: np.ndarray, seed: int) -> None:
    """A row's positions follow from the rows before it: where its mask stands, and how many there were."""
    example = make(name, tokens, seed)
    if example is None:
        return
    for rows in part_b_spans(example, IDS.sop):
        place = example.positions[0, rows.start]
        assert example.positions[0, rows].tolist() == [place] * (rows.stop - rows.start)
        assert example.positions[1, rows].tolist() == list(range(1, rows.stop - rows.start + 1))
        assert example.tokens[rows][1:].tolist() == example.targets[rows][:-1].tolist()


@every_objective
@given(tokens=texts(), seed=seeds)
def test_document_ends_are_never_inside_a_blank(name: str, tokens: np.ndarray, seed: int) -> None:
    """But for the prefix form, whose blank is all the rest of the text."""
    example = make(name, tokens, seed)
    if example is None:
        return
    answers = example.targets[example.prefix_len :]
    if name == "document" and answers[-1] != IDS.eop:
        assert answers.tolist() == tokens[len(tokens) - len(answers) :].tolist()
    else:
        assert not np.isin(answers, [IDS.cls, IDS.eos]).any()


@every_objective
@given(tokens=texts(), seed=seeds, data=st.data())
def test_every_target_weighs_what_its_token_does(
    name: str, tokens: np.ndarray, seed: int, data: st.DataObject
) -> None:
    """The words of a text are all different, so that their weights can be looked up."""
    kinds = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=VOCAB, max_size=VOCAB))
    of_id = np.array(kinds, dtype=np.float32)
    example = make(name, tokens, seed, of_id[tokens])
    if example is None:
        return
    plain = make(name, tokens, seed)
    assert plain is not None and plain.tokens.tolist() == example.tokens.tolist()
    assert not example.loss_mask[: example.prefix_len].any()
    for rows in part_b_spans(example, IDS.sop):
        expected = of_id[example.targets[rows]]
        if example.targets[rows][-1] == IDS.eop:
            expected[-1] = of_id[example.targets[rows][-2]]  # an end weighs what its last word does
        assert example.loss_mask[rows].tolist() == expected.tolist()


@every_objective
def test_no_loss_on_a_prompt(name: str) -> None:
    tokens = text(200)
    prompt = tokens < FIRST_WORD + 100
    seen = 0
    for seed in range(200):
        example = make(name, tokens, seed, (~prompt).astype(np.float32))
        assert example is not None
        in_prompt = np.isin(example.targets, tokens[prompt & (tokens >= FIRST_WORD)])
        seen += np.count_nonzero(in_prompt[example.prefix_len :])
        assert not example.loss_mask[in_prompt].any()
    assert seen > 0  # prompts are blanked out too; they only do not count


@every_objective
def test_weights_of_another_length_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="weights: expected one for each of the 102 tokens, got \\[101\\]"):
        make(name, text(100), 0, np.ones(101, dtype=np.float32))


@every_objective
@pytest.mark.parametrize("tokens", [[], [IDS.cls], [IDS.cls, IDS.eos]])
def test_texts_without_words_hold_no_blank(name: str, tokens: list[int]) -> None:
    for seed in range(20):
        example = make(name, np.array(tokens, dtype=np.int64), seed)
        # The prefix form may always ask for the end of the document.
        assert example is None or (name == "document" and example.targets[-1] == IDS.eos)


def test_span_order_is_permuted_uniformly() -> None:
    tokens = text(500)
    objective: Objective
    for objective in (OBJECTIVES["token"], OBJECTIVES["sentence"]):
        rng = np.random.default_rng(0)
        rising = []
        for _ in range(400):
            example = objective(tokens, rng, IDS)
            assert example is not None
            rising.append((np.diff(example.positions[0][example.tokens == IDS.sop]) > 0).mean())
        assert np.mean(rising) == pytest.approx(0.5, abs=0.03)


def test_a_single_span_is_one_of_poisson_length() -> None:
    tokens, rng = text(500), np.random.default_rng(0)
    lengths = []
    for _ in range(4000):
        example = token_spans(tokens, rng, IDS, TokenSpanSettings(single=True))
        assert example is not None and np.count_nonzero(example.tokens == IDS.sop) == 1
        lengths.append(len(example) - example.prefix_len - 1)
    assert np.mean(lengths) == pytest.approx(3.157, abs=5 * 1.6 / 4000**0.5)


# Short sequences and block masks.


@given(tokens=texts(), seed=seeds)
def test_a_short_text_is_a_piece_of_the_text(tokens: np.ndarray, seed: int) -> None:
    weights = (tokens % 3 == 0).astype(np.float32)
    short, short_weights, _ = crop(tokens, np.random.default_rng(seed), IDS, weights=weights)
    assert short_weights is not None and len(short) == len(short_weights)
    if len(tokens) <= 32:
        assert short is tokens
        return
    assert 31 <= len(short) < len(tokens) and short[0] == IDS.cls and short[1] != IDS.cls
    assert short_weights[0] == 0
    joined, words = " ".join(map(str, tokens)), " ".join(map(str, short[1:]))
    assert f" {words} " in f" {joined} "
    expected = np.where(short >= FIRST_WORD, short % 3 == 0, short_weights)
    assert short_weights.tolist() == expected.tolist()


def test_short_lengths_and_places_are_uniform() -> None:
    tokens, rng = text(130), np.random.default_rng(0)
    pieces = [crop(tokens, rng, IDS)[0] for _ in range(4000)]
    lengths = np.array([len(piece) for piece in pieces])
    assert (lengths.min(), lengths.max()) == (32, 131)
    assert lengths.mean() == pytest.approx(81.5, abs=5 * 28.9 / 4000**0.5)
    begins = {int(piece[1]) for piece in pieces}
    assert begins >= set(range(FIRST_WORD, FIRST_WORD + 50))


@given(tokens=texts(), seed=seeds, probability=st.sampled_from([0.0, 0.3, 1.0]))
def test_a_block_mask_hides_inputs_only(tokens: np.ndarray, seed: int, probability: float) -> None:
    example = make("token", tokens, seed)
    if example is None:
        return
    masked = block_mask(example, np.random.default_rng(seed), IDS, probability)
    changed = masked.tokens != example.tokens
    assert (masked.tokens[changed] == IDS.dblock).all()
    assert not changed[: example.prefix_len].any() and not changed[example.tokens == IDS.sop].any()
    for field in ("targets", "positions", "loss_mask"):
        assert getattr(masked, field) is getattr(example, field)
    hideable = len(example) - example.prefix_len - np.count_nonzero(example.tokens == IDS.sop)
    assert changed.sum() == {0.0: 0, 1.0: hideable}.get(probability, changed.sum())
    assert restore(masked, sop=IDS.sop, eop=IDS.eop).tolist() == tokens.tolist()


def test_block_masks_come_with_their_probability() -> None:
    example = make("document", text(500), 0)
    assert example is not None
    rng = np.random.default_rng(0)
    rates = [
        (block_mask(example, rng, IDS, 0.1).tokens == IDS.dblock).sum()
        / (len(example) - example.prefix_len - 1)
        for _ in range(200)
    ]
    assert np.mean(rates) == pytest.approx(0.1, abs=0.005)
