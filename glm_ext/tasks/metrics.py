"""Metrics over the questions of a file, in percent, by scikit-learn where it has them."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from glm_ext.extras import require

from .choices import Question


class Metric(NamedTuple):
    """What judges predictions, and what is to be known of it before there are any."""

    score: Callable[[Sequence[Question], Sequence[int]], dict[str, float]]
    values: tuple[str, ...]  # names of what it gives, the one that decides first
    package: str = ""  # of the extra "eval", that it needs
    of_two: bool = False  # choices 0 and 1, and no other
    one_right: bool = False  # choice of every question, and no more


def accuracy(questions: Sequence[Question], predictions: Sequence[int]) -> dict[str, float]:
    """Share of questions whose predicted choice is a right one."""
    right = [p in question.gold for question, p in zip(questions, predictions, strict=True)]
    return {"accuracy": 100 * sum(right) / len(right)}


def f1(questions: Sequence[Question], predictions: Sequence[int]) -> dict[str, float]:
    """F1 of choice 1 against choice 0."""
    return {"f1": 100 * float(_sklearn().f1_score(_gold(questions), predictions, zero_division=0.0))}


def f1_macro(questions: Sequence[Question], predictions: Sequence[int]) -> dict[str, float]:
    """Mean F1 over the classes that occur."""
    score = _sklearn().f1_score(_gold(questions), predictions, average="macro", zero_division=0.0)
    return {"f1_macro": 100 * float(score)}


def matthews(questions: Sequence[Question], predictions: Sequence[int]) -> dict[str, float]:
    """Matthews' correlation coefficient."""
    return {"matthews": 100 * float(_sklearn().matthews_corrcoef(_gold(questions), predictions))}


def answer_sets(questions: Sequence[Question], predictions: Sequence[int]) -> dict[str, float]:
    """MultiRC: F1 over all answers, and the share of questions (groups) with every answer judged right."""
    whole: dict[str, bool] = defaultdict(lambda: True)
    for question, prediction in zip(questions, predictions, strict=True):
        whole[question.group] &= prediction in question.gold
    exact = 100 * sum(whole.values()) / len(whole)
    return {"f1a": f1(questions, predictions)["f1"], "em": exact}


def spans(questions: Sequence[Question], predictions: Sequence[int]) -> dict[str, float]:
    """ReCoRD: best exact match and best F1 over words with any right answer, as in SQuAD."""
    exact, overlap = [], []
    for question, prediction in zip(questions, predictions, strict=True):
        found = _words(question.texts[prediction])
        answers = [_words(question.texts[choice]) for choice in question.gold]
        exact.append(found in answers)
        overlap.append(max(_overlap(found, answer) for answer in answers))
    return {"f1": 100 * sum(overlap) / len(overlap), "em": 100 * sum(exact) / len(exact)}


_SKLEARN = "sklearn.metrics"
METRICS = {
    "accuracy": Metric(accuracy, ("accuracy",)),
    "f1": Metric(f1, ("f1",), _SKLEARN, of_two=True, one_right=True),
    "f1_macro": Metric(f1_macro, ("f1_macro",), _SKLEARN, one_right=True),
    "matthews": Metric(matthews, ("matthews",), _SKLEARN, one_right=True),
    "answer_sets": Metric(answer_sets, ("f1a", "em"), _SKLEARN, of_two=True, one_right=True),
    "spans": Metric(spans, ("f1", "em")),
}


def _gold(questions: Sequence[Question]) -> list[int]:
    labels: list[int] = []
    for question in questions:
        if len(question.gold) != 1:
            raise ValueError(f"expected one right choice in every example, got {sorted(question.gold)}")
        labels.extend(question.gold)
    return labels


def _sklearn() -> Any:
    return require(_SKLEARN, extra="eval")


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _overlap(found: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of the words as multisets."""
    common = (Counter(found) & Counter(answer)).total()
    return 2 * common / (len(found) + len(answer)) if common else float(found == answer)
