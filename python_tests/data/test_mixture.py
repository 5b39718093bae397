"""The mixture of objectives, and the batches made by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glm_ext.batch import Batch
from glm_ext.data import ExampleBatches, Mixture, TokenDocuments, restore, standard_objectives, token_spans

from .objective_texts import IDS, PIECES, text

OBJECTIVES = standard_objectives(PIECES)
THREE = {"token": 5, "sentence": 3, "document": 2}


def mixture(**options: Any) -> Mixture:
    return Mixture(**({"objectives": OBJECTIVES, "weights": THREE} | options))


def batches(**options: Any) -> ExampleBatches:
    tokens = text(400, 300)
    tokens = tokens[tokens != IDS.cls]
    source = TokenDocuments(tokens, np.array([0, 401, 702]))
    defaults: dict[str, Any] = {"batch_size": 8, "max_length": 100, "objective": mixture()}
    return ExampleBatches(documents=source, ids=IDS, **(defaults | options))


def kinds(batch: Batch) -> list[str]:
    """The objective of each example, by its masks."""
    masks = {IDS.mask: "token", IDS.smask: "sentence", IDS.gmask: "document"}
    found = []
    for tokens in batch.tokens.numpy():
        [kind] = {masks[token] for token in tokens if token in masks}
        found.append(kind)
    return found


def test_objectives_are_drawn_by_weight() -> None:
    rng = np.random.default_rng(0)
    drawn = [mixture().choose(rng) for _ in range(10_000)]
    for name, weight in THREE.items():
        assert drawn.count(name) / 10_000 == pytest.approx(weight / 10, abs=0.025)


def test_every_example_draws_its_own() -> None:
    found = [kind for batch in batches().take(100) for kind in kinds(batch)]
    for name, weight in THREE.items():
        assert found.count(name) / 800 == pytest.approx(weight / 10, abs=0.09)
    mixed = [len(set(kinds(batch))) for batch in batches().take(20)]
    assert min(mixed) > 1


def test_a_whole_micro_batch_may_share_one_draw() -> None:
    shared = batches(objective=mixture(per_batch=True))
    drawn = []
    for step in range(100):
        for micro_step in range(2):
            [kind] = set(kinds(shared.batch(step, micro_step)))
            drawn.append(kind)
    for name, weight in THREE.items():
        assert drawn.count(name) / 200 == pytest.approx(weight / 10, abs=0.18)
    assert any(a != b for a, b in zip(drawn[::2], drawn[1::2], strict=True))  # micro batches differ
    ranks = [batches(objective=mixture(per_batch=True), rank=rank, world_size=2) for rank in range(2)]
    assert any(kinds(ranks[0].batch(step)) != kinds(ranks[1].batch(step)) for step in range(20))


def test_alone_an_objective_draws_nothing_more() -> None:
    plain, alone = batches(objective=token_spans), batches(objective=mixture(weights={"token": 0.3}))
    for step in range(3):
        assert (plain.batch(step).tokens == alone.batch(step).tokens).all()
    assert set(kinds(batches(objective=mixture().only("sentence")).batch(0))) == {"sentence"}


def test_short_texts_come_with_their_probability() -> None:
    def lengths(short: float) -> np.ndarray:
        source = batches(objective=mixture(short=short))
        examples = [source.sample(0, index) for index in range(400)]
        return np.array([len(restore(example, sop=IDS.sop, eop=IDS.eop)) for example in examples])

    assert (lengths(0.0) >= 99).all()
    assert np.mean(lengths(0.5) < 99) == pytest.approx(0.5, abs=0.125)
    assert lengths(1.0).mean() == pytest.approx(65.5, abs=5)


def test_block_masks_are_for_short_spans() -> None:
    source = batches(objective=mixture(block_mask=0.5))
    for batch in source.take(10):
        hidden = (batch.tokens == IDS.dblock).any(1).tolist()
        for kind, any_hidden in zip(kinds(batch), hidden, strict=True):
            assert any_hidden == (kind == "token")
        assert not (batch.targets == IDS.dblock).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": {"tokens": 1.0}}, r"weights: expected some of token, .*got \['tokens'\]"),
        ({"weights": {"token": -1.0}}, "weights: expected 0 or more for token, got -1.0"),
        ({"weights": {"token": float("nan")}}, "weights: expected 0 or more for token"),
        ({"weights": {"token": 0.0}}, "weights: expected one above 0"),
        ({"weights": {}}, "weights: expected one above 0"),
        ({"short": 1.5}, "short: expected a probability"),
        ({"block_mask": -0.5}, "block_mask: expected a probability"),
    ],
)
def test_impossible_mixtures_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mixture(**options)
