"""Sentence ends by Punkt and by Chinese marks, and how they become flags on tokens."""

import numpy as np
import pytest

from glm_ext.data.punkt import SentenceSplitter
from glm_ext.data.shards import end_flags

from .sentence_texts import random_sentences


@pytest.fixture(scope="module")
def splitter() -> SentenceSplitter:
    pytest.importorskip("nltk")
    return SentenceSplitter.train([" ".join(random_sentences(400))])


def sentences(splitter: SentenceSplitter, text: str) -> list[str]:
    ends = splitter.ends(text)
    return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def test_a_learned_abbreviation_ends_no_sentence(splitter: SentenceSplitter) -> None:
    assert "dr" in splitter.parameters
    text = random_sentences(60, seed=1)
    assert any("Dr. " in sentence for sentence in text)
    assert [sentence.strip() for sentence in sentences(splitter, " ".join(text))] == text


def test_blank_lines_and_chinese_marks_end_sentences(splitter: SentenceSplitter) -> None:
    assert sentences(splitter, "A title\n\nThe text. More") == ["A title\n\n", "The text.", " More"]
    assert sentences(splitter, "他说：“好。”我走了！真的？") == ["他说：“好。”", "我走了！", "真的？"]
    assert sentences(splitter, "A line that\ngoes on.\nNext.") == ["A line that\ngoes on.\n", "Next."]
    assert splitter.ends("") == [] and splitter.ends("\n\n") == []


def test_what_was_learned_travels_as_json(splitter: SentenceSplitter) -> None:
    again = SentenceSplitter(splitter.parameters)
    text = " ".join(random_sentences(20, seed=2))
    assert again.ends(text) == splitter.ends(text) and again.parameters == splitter.parameters


@pytest.mark.parametrize(
    ("ends", "reach", "flagged"),
    [
        ([5], [1, 5, 9], [1]),
        ([4], [1, 5, 9], [1]),  # inside a token
        ([4], [1, 4, 4, 9], [2]),  # the last of the tokens that share a character
        ([1, 9], [2, 9], [0, 1]),
        ([12], [2, 9], [1]),
        ([3], [], []),
    ],
)
def test_the_token_that_ends_a_sentence(ends: list[int], reach: list[int], flagged: list[int]) -> None:
    flags = end_flags(ends, np.array(reach, dtype=np.int64))
    assert np.flatnonzero(flags).tolist() == flagged
