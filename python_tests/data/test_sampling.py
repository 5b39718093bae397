"""Texts, examples, batches: pure functions of (seed, step, index) inside the tables; the unigram loss."""

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np
import pytest
import torch

from glm_ext.batch import Batch
from glm_ext.data import (
    Example,
    ExampleBatches,
    GLMTokenizer,
    SpecialIds,
    TokenDocuments,
    collate,
    encode_documents,
    sample_text,
    target_counts,
    unigram_loss,
)

IDS = SpecialIds()


def documents(*lengths: int) -> TokenDocuments:
    """Document d is words 1000 * (d + 1), ... and eos; lengths include the eos."""
    parts = [[*range(1000 * d, 1000 * d + length - 1), IDS.eos] for d, length in enumerate(lengths, start=1)]
    return TokenDocuments(np.concatenate(parts), np.cumsum([0, *lengths]))


def batches(source: TokenDocuments, **options: Any) -> ExampleBatches:
    defaults: dict[str, Any] = {"batch_size": 4, "max_length": 64}
    return ExampleBatches(documents=source, ids=IDS, **(defaults | options))


def tensors(batch: Batch) -> list[torch.Tensor]:
    assert batch.seq_len is not None
    return [batch.tokens, batch.positions, batch.targets, batch.loss_mask, batch.prefix_len, batch.seq_len]


def equal(left: Batch, right: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(left), tensors(right), strict=True))


def test_documents_are_drawn_in_proportion_to_their_length() -> None:
    source = documents(100, 300, 600)
    rng = np.random.default_rng(0)
    firsts = [int(source.tokens[source.draw(rng)][0]) // 1000 for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(firsts)[1:] / 4000, [0.1, 0.3, 0.6], atol=0.04)


def test_a_long_document_is_cut_anywhere_its_end_included() -> None:
    source = documents(20)
    rng = np.random.default_rng(0)
    texts = [sample_text(source, rng, 8, IDS.cls).tokens for _ in range(500)]
    assert all(len(text) == 8 and text[0] == IDS.cls for text in texts)
    assert all((np.diff(text[1:-1]) == 1).all() for text in texts)
    assert {int(text[1]) for text in texts} == set(range(1000, 1014))


def test_short_documents_share_a_text() -> None:
    text = sample_text(documents(5), np.random.default_rng(0), 14, IDS.cls).tokens
    document = [IDS.cls, 1000, 1001, 1002, 1003, IDS.eos]
    assert text.tolist() == document + document + [IDS.cls, 1000]
    shorter = sample_text(documents(5), np.random.default_rng(0), 13, IDS.cls).tokens
    assert len(shorter) == 12  # no room for [CLS] and a word


def test_a_text_takes_the_weights_of_its_documents() -> None:
    """Words below 1003 are a prompt; a [CLS] never counts."""
    source = documents(5)
    weighed = TokenDocuments(source.tokens, source.offsets, np.array([0, 0, 0, 1, 1], dtype=np.float32))
    assert sample_text(weighed, np.random.default_rng(0), 14, IDS.cls).weights.tolist() == [
        *(0, 0, 0, 0, 1, 1),
        *(0, 0, 0, 0, 1, 1),
        *(0, 0),
    ]
    plain = sample_text(source, np.random.default_rng(0), 14, IDS.cls)
    assert plain.weights.tolist() == (plain.tokens != IDS.cls).tolist()
    with pytest.raises(ValueError, match="a weight for each of 5 tokens, got \\[4\\]"):
        TokenDocuments(source.tokens, source.offsets, np.ones(4, dtype=np.float32))


def test_prompts_have_no_loss_and_texts_of_prompts_alone_are_not_drawn() -> None:
    source = documents(300, 300)
    weights = (source.tokens > 2000).astype(np.float32)  # the first document is a prompt
    weighed = TokenDocuments(source.tokens, source.offsets, weights)
    for batch in batches(weighed, batch_size=16).take(4):
        counted = batch.targets[batch.loss_mask > 0]
        assert ((counted > 2000) | (counted == IDS.eop)).all()
        assert (batch.loss_mask.sum(1) > 0).all()
    with pytest.raises(ValueError, match="all prompt"):
        batches(dataclasses.replace(weighed, weights=np.zeros(600, dtype=np.float32))).batch(0)


def test_default_batches_are_those_of_the_first_release() -> None:
    """Runs resume on the examples they would have had: these bits may only change with a new major version.

    (Or with a numpy whose generators draw other numbers.)
    """
    digest = hashlib.sha256()
    source = batches(documents(100, 300, 600, 5, 20), seed=7)
    for step in range(3):
        for micro_step in range(2):
            for tensor in tensors(source.batch(step, micro_step)):
                digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == "cb743bfb63cefceb5fad820178e6a72549d5b1daa7841708a55fd1dfa1c57d0f"


def test_a_batch_is_a_pure_function_of_seed_step_and_place(train_documents: TokenDocuments) -> None:
    source = batches(train_documents, seed=3)
    later = batches(train_documents, seed=3)
    later.batch(99)
    assert equal(source.batch(5), later.batch(5))
    others = [source.batch(6), source.batch(5, micro_step=1), batches(train_documents, seed=4).batch(5)]
    assert not any(equal(source.batch(5), other) for other in others)


def test_accumulation_and_ranks_share_out_the_same_examples(train_documents: TokenDocuments) -> None:
    def rows(parts: list[Batch]) -> list[list[int]]:
        return [
            row[:length].tolist()
            for part in parts
            for row, length in zip(part.tokens, part.seq_len, strict=True)  # type: ignore[arg-type]
        ]

    whole = rows([batches(train_documents, batch_size=8).batch(2)])
    accumulated = rows([batches(train_documents, batch_size=4).batch(2, micro) for micro in range(2)])
    ranks = rows([batches(train_documents, batch_size=4, rank=r, world_size=2).batch(2) for r in range(2)])
    both = rows(
        [
            batches(train_documents, batch_size=2, rank=r, world_size=2).batch(2, micro)
            for micro in range(2)
            for r in range(2)
        ]
    )
    assert whole == accumulated == ranks == both
    assert len({tuple(row) for row in whole}) == 8


def test_batches_stay_inside_the_tables(train_documents: TokenDocuments) -> None:
    for max_length in (7, 32, 256):
        for batch in batches(train_documents, max_length=max_length, batch_size=16).take(8):
            assert batch.positions.max() < max_length
            assert batch.tokens.shape[1] <= max_length + 2 * int(0.15 * max_length)
            assert batch.num_targets > 0
            assert batch.tokens.max() < 4096 and batch.tokens.min() >= 0


def test_padding_is_marked_by_the_lengths_alone(train_documents: TokenDocuments) -> None:
    batch = batches(train_documents, batch_size=16).batch(0)
    _, _, _, _, prefix_len, seq_len = tensors(batch)
    padding = torch.arange(batch.tokens.shape[1]) >= seq_len[:, None]
    assert padding.any() and seq_len.max() == batch.tokens.shape[1]
    assert (batch.tokens[padding] == IDS.pad).all() and (batch.targets[padding] == IDS.pad).all()
    assert not batch.loss_mask[padding].any()
    assert not batch.positions.transpose(1, 2)[padding].any()
    assert (batch.num_tokens, batch.num_targets) == (int(seq_len.sum()), int((seq_len - prefix_len).sum()))


def test_collate_keeps_each_example(train_documents: TokenDocuments) -> None:
    source = batches(train_documents)
    examples: list[Example] = [source.sample(0, place) for place in range(4)]
    batch = collate(examples, IDS.pad)
    for row, example in enumerate(examples):
        size = len(example)
        assert batch.tokens[row, :size].tolist() == example.tokens.tolist()
        assert batch.targets[row, :size].tolist() == example.targets.tolist()
        assert batch.positions[row, :, :size].tolist() == example.positions.tolist()
        assert batch.loss_mask[row, :size].tolist() == example.loss_mask.tolist()
        assert batch.prefix_len[row] == example.prefix_len
    with pytest.raises(ValueError, match="at least one example"):
        collate([], IDS.pad)


def test_encoded_documents_are_those_documents(tokenizer: GLMTokenizer) -> None:
    texts = ["The first one.", "Another, with [MASK] and <|endoftext|> in it."]
    encoded = encode_documents(tokenizer, texts)
    assert len(encoded) == 2
    for place, text in enumerate(texts):
        *ids, end = encoded[place].tolist()
        assert end == tokenizer.eos_id and min(ids) > max(tokenizer.ids)
        assert tokenizer.decode(ids) == text


def test_unigram_loss_is_the_cross_entropy_of_the_counts(train_documents: TokenDocuments) -> None:
    train, held_out = batches(train_documents).take(20), batches(train_documents, seed=1).take(5)
    counts = target_counts(train, 4096)
    assert counts.sum() == sum(batch.num_targets for batch in train)
    p = (counts + 0.5) / (counts + 0.5).sum()
    targets = torch.cat([batch.targets[batch.loss_mask > 0] for batch in held_out]).numpy()
    assert unigram_loss(counts, held_out) == pytest.approx(-np.log(p[targets]).mean())
    assert (
        unigram_loss(counts, held_out)
        < unigram_loss(np.zeros(4096), held_out)
        == pytest.approx(math.log(4096))
    )
    with pytest.raises(ValueError, match="at least one target"):
        unigram_loss(counts, [])


@pytest.mark.parametrize(
    "options, said",
    [
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"max_length": 1}, "max_length: expected at least 2"),
        ({"rank": 2, "world_size": 2}, "0 <= rank < world_size"),
        ({"seed": -1}, "seed: expected 0 <= seed"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        batches(documents(50), **options)


def test_a_corpus_that_holds_no_blank_says_so() -> None:
    with pytest.raises(ValueError, match=r"documents too short, .* 1\.0 tokens on average"):
        batches(documents(1, 1, 1)).batch(0)


@pytest.mark.parametrize("offsets", [[0], [0, 3], [1, 5], [0, 0, 5]])
def test_offsets_must_cut_the_tokens(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="documents: expected"):
        TokenDocuments(np.zeros(5, dtype=np.int32), np.array(offsets))
