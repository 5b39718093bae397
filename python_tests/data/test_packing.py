"""Packed batches: full, whole examples of one document each, a pure function of (seed, step, rank)."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glm_ext.batch import PackedBatch
from glm_ext.data import (
    Example,
    ExampleBatches,
    GLMTokenizer,
    Mixture,
    SpecialIds,
    TokenDocuments,
    collate,
    collate_packed,
    restore,
    standard_objectives,
)
from glm_ext.data.packing import Drawn, fill_budget

IDS = SpecialIds()


def example(length: int) -> Example:
    fields = np.arange(length)
    return Example(
        tokens=fields,
        targets=fields,
        positions=np.stack([fields, fields]),
        loss_mask=np.ones(length, dtype=np.float32),
        prefix_len=1,
    )


@given(
    lengths=st.lists(st.tuples(st.integers(2, 60), st.integers(0, 30)), min_size=40, max_size=40),
    budget=st.integers(64, 300),
)
def test_a_budget_is_kept_and_nearly_spent(lengths: list[tuple[int, int]], budget: int) -> None:
    """Texts of any length, whose examples are longer by up to 30 tokens: what is left is less than 8 + 30."""
    asked = []

    def draw(place: int, limit: int) -> Drawn | None:
        asked.append((place, limit))
        if place >= len(lengths):
            return None
        text, more = lengths[place]
        return Drawn(example(min(text, limit) + more), min(text, limit))

    examples = fill_budget(budget, 60, draw)
    left = budget - sum(map(len, examples))
    assert left >= 0 and (left < 8 + 30 or len(asked) > len(lengths))
    assert [place for place, _ in asked] == list(range(len(asked)))
    assert all(8 <= limit <= 60 for _, limit in asked)


def test_what_is_left_is_filled_by_a_shorter_text() -> None:
    texts = [50, 40, 50, 20]
    drawn = [example(100), example(80), example(100), example(38)]
    limits = []

    def draw(place: int, limit: int) -> Drawn | None:
        limits.append(limit)
        return Drawn(drawn[place], texts[place])

    assert fill_budget(220, 50, draw) == [drawn[0], drawn[1], drawn[3]]
    assert limits == [50, 50, 40, 20]  # 40 left: texts of 20 make examples of 40


def documents(rng: np.random.Generator, count: int = 300, longest: int = 400) -> TokenDocuments:
    """Word 1000 + d makes up document d."""
    lengths = rng.integers(2, longest, count)
    tokens = np.concatenate([[*[1000 + d] * (length - 1), IDS.eos] for d, length in enumerate(lengths)])
    return TokenDocuments(tokens.astype(np.uint16), np.concatenate(([0], np.cumsum(lengths))))


SOURCE = documents(np.random.default_rng(0))
OBJECTIVES = standard_objectives([b"word."] * 2000)


def batches(**options: Any) -> ExampleBatches:
    defaults: dict[str, Any] = {"max_length": 128, "token_budget": 2048, "join_documents": False}
    return ExampleBatches(documents=SOURCE, ids=IDS, batch_size=4, **(defaults | options))


def parts(batch: Any) -> list[Example]:
    assert isinstance(batch, PackedBatch)
    bounds = batch.cu_seqlens.tolist()
    return [
        Example(
            tokens=batch.tokens[begin:end].numpy(),
            targets=batch.targets[begin:end].numpy(),
            positions=batch.positions[:, begin:end].numpy(),
            loss_mask=batch.loss_mask[begin:end].numpy(),
            prefix_len=int(prefix),
        )
        for begin, end, prefix in zip(bounds[:-1], bounds[1:], batch.prefix_len, strict=True)
    ]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("max_length", "budget"), [(64, 1024), (128, 2048), (512, 4096)])
def test_more_than_97_percent_of_the_budget_are_real_tokens(name: str, max_length: int, budget: int) -> None:
    source = batches(max_length=max_length, token_budget=budget, objective=OBJECTIVES[name])
    for batch in source.take(8):
        assert 0.97 * budget < batch.num_tokens <= budget
        assert batch.num_tokens == len(batch.tokens)  # no padding
        assert batch.positions.max() < max_length


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_example_is_whole_and_of_one_document(name: str) -> None:
    for batch in batches(objective=OBJECTIVES[name]).take(4):
        for one in parts(batch):
            assert one.loss_mask.any()
            text = restore(one, sop=IDS.sop, eop=IDS.eop)
            assert text[0] == IDS.cls
            words = text[1:-1] if text[-1] == IDS.eos else text[1:]
            assert len(set(words.tolist())) == 1


def test_tokens_of_long_and_short_documents_are_read_equally_often() -> None:
    lengths = np.array([20] * 50 + [500] * 2)  # 1000 tokens each
    tokens = np.concatenate([[1000 + d] * length for d, length in enumerate(lengths)])
    source = dataclasses.replace(
        batches(max_length=101), documents=TokenDocuments(tokens, np.concatenate(([0], np.cumsum(lengths))))
    )
    short = long = 0
    for step in range(40):
        for one in parts(source.batch(step)):
            words = restore(one, sop=IDS.sop, eop=IDS.eop)[1:]
            short += len(words) if words[0] < 1050 else 0
            long += len(words) if words[0] >= 1050 else 0
    assert short / (short + long) == pytest.approx(0.5, abs=0.05)


def test_documents_may_share_an_example() -> None:
    """The public implementation's way, packed."""
    made = batches(join_documents=True).take(4)
    assert any(np.count_nonzero(one.tokens == IDS.cls) > 1 for batch in made for one in parts(batch))


def test_documents_need_not_share_one_in_a_padded_batch() -> None:
    [batch] = batches(join_documents=False, token_budget=None).take(1)
    assert not isinstance(batch, PackedBatch) and batch.tokens.shape[0] == 4
    assert all(int((row == IDS.eos).sum()) <= 1 for row in batch.tokens)


def same(left: Any, right: Any) -> bool:
    return torch.equal(left.tokens, right.tokens) and torch.equal(left.cu_seqlens, right.cu_seqlens)


def test_a_batch_is_a_pure_function_of_seed_step_and_place() -> None:
    mixture = Mixture(objectives=OBJECTIVES, weights={"token": 1, "document": 1, "sentence": 1})
    source, later = batches(objective=mixture), batches(objective=mixture)
    later.batch(99)
    assert same(source.batch(5), later.batch(5))
    others = [
        source.batch(6),
        source.batch(5, micro_step=1),
        dataclasses.replace(source, seed=4).batch(5),
        dataclasses.replace(source, rank=1, world_size=2).batch(5),
    ]
    assert not any(same(source.batch(5), other) for other in others)
    assert same(others[1], others[3])  # the second micro step of one rank is the first of the second
    kinds = {int(token) for batch in source.take(4) for token in batch.tokens if token in IDS}
    assert {IDS.mask, IDS.gmask, IDS.smask} <= kinds  # drawn per example


def test_one_draw_of_the_mixture_for_a_whole_batch() -> None:
    mixture = Mixture(objectives=OBJECTIVES, weights={"token": 1, "sentence": 1}, per_batch=True)
    masks = [
        {int(token) for token in batch.tokens} & {IDS.mask, IDS.smask}
        for batch in batches(objective=mixture).take(12)
    ]
    assert all(len(kinds) == 1 for kinds in masks) and len({kinds.pop() for kinds in masks}) == 2


def test_an_objective_that_fits_no_text_gives_way_to_another() -> None:
    """Sentences in documents without end marks: one at the end of a document alone, and hardly ever drawn."""
    lengths = np.full(40, 3000)
    tokens = np.concatenate([[*[1000 + d] * (length - 1), IDS.eos] for d, length in enumerate(lengths)])
    source = TokenDocuments(tokens, np.concatenate(([0], np.cumsum(lengths))))
    objectives = standard_objectives([b"word"] * 2000)
    mixture = Mixture(objectives=objectives, weights={"token": 1, "sentence": 1})
    for budget in (2048, None):
        mixed = dataclasses.replace(batches(token_budget=budget, objective=mixture), documents=source)
        for step in range(4):
            batch = mixed.batch(step)
            assert torch.equal(batch.tokens, mixed.batch(step).tokens)
            assert budget is None or batch.num_tokens > 0.9 * budget
        shares = {
            name: dataclasses.replace(mixed, objective=mixture.only(name)).share_that_fits()
            for name in mixture.active
        }
        assert shares["token"] == 1.0 and shares["sentence"] < 0.05


def test_prompts_weigh_nothing() -> None:
    weights = (SOURCE.tokens % 2 == 0).astype(np.float32)  # every other document is a prompt
    source = dataclasses.replace(batches(), documents=dataclasses.replace(SOURCE, weights=weights))
    for batch in source.take(4):
        counted = batch.targets[batch.loss_mask > 0]
        assert ((counted % 2 == 0) | (counted == IDS.eop)).all()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="token_budget: expected at least max_length, 128, got 127"):
        batches(token_budget=127)
    tiny = TokenDocuments(np.array([20, 8] * 9), np.arange(10) * 2)
    with pytest.raises(ValueError, match="no room for blanks"):
        dataclasses.replace(batches(), documents=tiny).batch(0)
    with pytest.raises(ValueError, match="at least one example"):
        collate_packed([])


def test_packed_and_padded_hold_the_same(tokenizer: GLMTokenizer) -> None:
    [packed] = batches().take(1)
    padded = collate(parts(packed), IDS.pad)
    assert padded.seq_len is not None
    assert packed.num_tokens == padded.num_tokens and packed.num_targets == padded.num_targets
    for row, one in enumerate(parts(packed)):
        length = int(padded.seq_len[row])
        assert padded.tokens[row, :length].tolist() == one.tokens.tolist()
