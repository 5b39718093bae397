"""The document and sentence objectives: the golden examples, how much they blank out, where sentences end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from glm_ext.data import (
    DocumentSettings,
    Example,
    ExampleBatches,
    GLMTokenizer,
    SentenceSettings,
    SpecialIds,
    TokenDocuments,
    document_span,
    find_sentences,
    sentence_spans,
    split_token_documents,
)

from .objective_texts import FIRST_WORD, IDS, PIECES, text

# The ids of the golden examples, which were produced by the public implementation.
GOLDEN_IDS = SpecialIds(
    eos=0, cls=1, mask=2, sop=3, eop=4, gmask=5, smask=6, pad=90, unk=91, sep=92, dblock=93
)


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def fields(example: Example) -> tuple[list[int], list[int], list[int], list[int], list[float], int]:
    places, within = example.positions.tolist()
    return (
        *(example.tokens.tolist(), example.targets.tolist(), places, within),
        *(example.loss_mask.tolist(), example.prefix_len),
    )


def documents(tokens: np.ndarray, settings: DocumentSettings, count: int) -> Iterator[Example]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        example = document_span(tokens, rng, GOLDEN_IDS, settings)
        assert example is not None
        yield example


def test_golden_prefix_form() -> None:
    golden = (
        *([1, 11, 12, 13, 5, 3, 14, 15, 16], [1, 11, 12, 13, 5, 14, 15, 16, 0]),
        *([0, 1, 2, 3, 4, 4, 4, 4, 4], [0, 0, 0, 0, 0, 1, 2, 3, 4]),
        *([0] * 5 + [1] * 4, 5),
    )
    tokens = array(1, 11, 12, 13, 14, 15, 16, 0)
    made = documents(tokens, DocumentSettings(infill=0.0), 200)
    assert golden in [fields(example) for example in made]


def test_golden_infill_form() -> None:
    golden = (
        *([1, 11, 5, 16, 0, 3, 12, 13, 14, 15], [1, 11, 5, 16, 0, 12, 13, 14, 15, 4]),
        *([0, 1, 2, 3, 4, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 1, 2, 3, 4, 5]),
        *([0] * 5 + [1] * 5, 5),
    )
    tokens = array(1, 11, 12, 13, 14, 15, 16, 0)
    made = documents(tokens, DocumentSettings(infill=1.0), 200)
    assert golden in [fields(example) for example in made]


@pytest.mark.parametrize(("infill", "room"), [(0.0, 201), (1.0, 200)])
def test_half_to_all_of_a_text_is_blanked_uniformly(infill: float, room: int) -> None:
    """The prefix form may take the closing eos with it, so it has a token more to choose from."""
    rng, tokens = np.random.default_rng(0), text(200)
    lengths = []
    for _ in range(4000):
        example = document_span(tokens, rng, IDS, DocumentSettings(infill=infill))
        assert example is not None
        lengths.append(np.count_nonzero(example.targets[example.prefix_len :] != IDS.eop))
    shortest = -(-room // 2)
    assert (min(lengths), max(lengths)) == (shortest, room)
    counts = np.histogram(lengths, bins=4, range=(shortest - 0.5, room + 0.5))[0] / 4000
    np.testing.assert_allclose(counts, 0.25, atol=0.035)


def test_infilled_spans_lie_anywhere() -> None:
    rng, tokens = np.random.default_rng(0), text(200)
    settings = DocumentSettings(infill=1.0, max_ratio=0.5)
    examples = [document_span(tokens, rng, IDS, settings) for _ in range(4000)]
    places = [example.positions[0, -1] for example in examples if example is not None]
    assert len(places) == 4000
    assert (min(places), max(places)) == (1, 101)
    assert np.mean(places) == pytest.approx(51, abs=5 * 29.2 / 4000**0.5)


@pytest.mark.parametrize("infill", [0.0, 0.3, 1.0])
def test_the_forms_come_with_their_probability(infill: float) -> None:
    rng, tokens = np.random.default_rng(0), text(50)
    forms = []
    for _ in range(2000):
        example = document_span(tokens, rng, IDS, DocumentSettings(infill=infill))
        assert example is not None
        forms.append(example.targets[-1] == IDS.eop)
    assert np.mean(forms) == pytest.approx(infill, abs=5 * (infill * (1 - infill) / 2000) ** 0.5)


@pytest.mark.parametrize("closed", [True, False], ids=["by eos", "by the next [CLS]"])
def test_several_documents_are_continued_never_infilled(closed: bool) -> None:
    """Pieces of one document, without an eos, count as several."""
    rng, tokens = np.random.default_rng(0), text(20, 30)
    if not closed:
        tokens = tokens[tokens != IDS.eos]
    for _ in range(100):
        example = document_span(tokens, rng, IDS, DocumentSettings(infill=1.0))
        assert example is not None and example.targets[-1] == tokens[-1]
        assert example.tokens[example.prefix_len - 1] == IDS.gmask


def test_a_book_in_pieces_has_examples_longer_than_a_piece() -> None:
    """To hold some out, one long document is cut: a text joins pieces of it without an eos between them."""
    book = TokenDocuments(np.append(np.arange(40_000) % 900 + FIRST_WORD, IDS.eos), np.array([0, 40_001]))
    rest = split_token_documents(book).train
    batches = ExampleBatches(documents=rest, ids=IDS, batch_size=8, max_length=2048, objective=document_span)
    for batch in batches.take(4):
        assert batch.num_targets > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"min_ratio": 0.0}, "0 < min_ratio <= max_ratio <= 1, got 0.0 and 1.0"),
        ({"min_ratio": 0.6, "max_ratio": 0.5}, "got 0.6 and 0.5"),
        ({"max_ratio": 1.1}, "got 0.5 and 1.1"),
        ({"infill": -0.1}, "infill: expected a probability"),
    ],
)
def test_document_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DocumentSettings(**settings)


# Sentences.


def test_golden_sentence() -> None:
    golden = (
        *([1, 6, 23, 24, 51, 25, 26, 0, 3, 22, 34], [1, 6, 23, 24, 51, 25, 26, 0, 22, 34, 4]),
        *([0, 1, 2, 3, 4, 5, 6, 7, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]),
        *([0] * 8 + [1] * 3, 8),
    )
    pieces = [b"." if token in (34, 51) else b"x" for token in range(60)]
    tokens = array(1, 22, 34, 23, 24, 51, 25, 26, 0)
    rng = np.random.default_rng(0)
    made = [sentence_spans(tokens, rng, GOLDEN_IDS, pieces=pieces) for _ in range(20)]
    assert golden in [fields(example) for example in made if example is not None]


def sentences(words: list[str], closed: bool = True) -> list[str]:
    """The sentences of a text of one document, whose tokens are these words."""
    first = len(IDS)
    pieces = [b""] * first + [word.encode() for word in words]
    tokens = array(IDS.cls, *range(first, first + len(words)), *([IDS.eos] if closed else []))
    starts, lengths = find_sentences(tokens, IDS, pieces)
    return [
        "".join(words[start - 1 : start - 1 + length]) for start, length in zip(starts, lengths, strict=True)
    ]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["One", " two", ".", " Three", "!"], ["One two.", " Three!"]),
        (["One", " two", ".", " Three"], ["One two.", " Three"]),  # what is left is a sentence
        (["他", "说", "。", "你", "好", "？", "好", "！"], ["他说。", "你好？", "好！"]),
        (["一", "；", "二", "：", "三", "…", "四", "，", "五"], ["一；", "二：", "三…", "四，五"]),
        (["a", ";", "b", ":", "c", "\n", "d", "?"], ["a;", "b:", "c\n", "d?"]),
        (["No", ".", ".", ".", " Yes", "?!", "\n", "\n", "So"], ["No...", " Yes?!\n\n", "So"]),  # one end
        (["“", "Go", ".", "”", " He", "(", "x", ".", ")"], ["“Go.”", " He(x.)"]),  # quotes close with it
        (["「好", "。」", "走"], ["「好。」", "走"]),
        (["end.", " of."], ["end.", " of."]),
        (["none"], ["none"]),
        ([], []),
    ],
)
def test_where_sentences_end(words: list[str], found: list[str]) -> None:
    assert sentences(words) == found


def test_a_sentence_cut_by_the_limit_of_the_text_is_none() -> None:
    assert sentences(["One", ".", " Two", " three"], closed=False) == ["One."]
    assert sentences(["One", ".", " Two", "."], closed=False) == ["One.", " Two."]
    assert sentences(["One", " two"], closed=False) == []


def test_a_mark_split_between_tokens_is_a_mark() -> None:
    first, (a, b, c) = len(IDS), (bytes([byte]) for byte in "。".encode())
    pieces = [b""] * first + [b"A", a, b + c, b"B", c]
    tokens = array(IDS.cls, *range(first, first + 5), IDS.eos)
    assert find_sentences(tokens, IDS, pieces).lengths.tolist() == [3, 2]


def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer: GLMTokenizer) -> None:
    pieces = tokenizer.pieces()
    assert len(pieces) == tokenizer.vocab_size and not any(pieces[token] for token in tokenizer.ids)
    for sample in ("A plain text.", "你好。 “Zitat” – ünï\n\t\0 🙂"):
        assert b"".join(pieces[token] for token in tokenizer.encode(sample)).decode() == sample


def test_sentences_are_found_through_a_tokenizer(tokenizer: GLMTokenizer) -> None:
    """Chinese is bytes to a tokenizer of English text, and its marks are several tokens."""
    tokens = array(tokenizer.cls_id, *tokenizer.encode("你好。再见！ Good. Bye"), tokenizer.eos_id)
    starts, lengths = find_sentences(tokens, tokenizer.ids, tokenizer.pieces())
    found = [tokenizer.decode(tokens[s : s + n].tolist()) for s, n in zip(starts, lengths, strict=True)]
    assert found == ["你好。", "再见！", " Good.", " Bye"]


def test_sentences_are_whole_and_at_least_15_percent() -> None:
    rng, tokens = np.random.default_rng(0), text(400, 110)
    ends = {token for token in range(FIRST_WORD, FIRST_WORD + 510) if b"." in PIECES[token]}
    first_words = {FIRST_WORD, FIRST_WORD + 400} | {token + 1 for token in ends}
    last_words = {FIRST_WORD + 399, FIRST_WORD + 509} | ends
    shares, chosen = [], np.zeros(1000)
    for _ in range(1000):
        example = sentence_spans(tokens, rng, IDS, pieces=PIECES)
        assert example is not None
        answers = example.targets[example.prefix_len :]
        starts = example.tokens[example.prefix_len :] == IDS.sop
        assert set(answers[starts]) <= first_words
        assert set(answers[np.flatnonzero(answers == IDS.eop) - 1]) <= last_words
        words = answers[answers != IDS.eop]
        chosen[words] += 1
        shares.append(len(words) / len(tokens))
    # At least the share asked for, and less than one sentence (of seven words) more.
    assert min(shares) >= int(0.15 * len(tokens)) / len(tokens) and max(shares) < 0.15 + 7 / len(tokens)
    assert np.ptp(chosen[FIRST_WORD : FIRST_WORD + 510]) < 150  # none is preferred: 1000 * .155 each, sd 11


def test_neighbours_may_both_be_blanked() -> None:
    rng = np.random.default_rng(0)
    example = sentence_spans(text(30), rng, IDS, SentenceSettings(ratio=0.99), pieces=PIECES)
    assert example is not None
    masks = int(np.count_nonzero(example.tokens == IDS.smask))
    assert example.tokens[: example.prefix_len].tolist() == [IDS.cls, *[IDS.smask] * masks, IDS.eos]


def test_texts_without_a_sentence_are_dropped() -> None:
    rng = np.random.default_rng(0)
    assert sentence_spans(text(5), rng, IDS, pieces=[b"x"] * 100) is not None  # closed by its eos
    assert sentence_spans(text(30, closed=False), rng, IDS, pieces=[b"x"] * 100) is None
    assert sentence_spans(text(4), rng, IDS, pieces=PIECES) is None  # int(.15 * 6) == 0
    with pytest.raises(ValueError, match="ratio: expected"):
        SentenceSettings(ratio=1.0)
