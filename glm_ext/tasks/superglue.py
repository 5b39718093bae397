"""The eight SuperGLUE tasks as descriptions, reading the benchmark's own JSON lines.

Patterns follow the first of each task in the public implementation, but for white space and marks beside the
quotes and fields. So do the examples to learn from where they are not those to be judged by: each question of
COPA is there twice, one of ReCoRD has one answer and a few wrong entities.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .description import Description
from .records import Fields

_YES_NO = {"false": "No", "true": "Yes"}

# Of a ReCoRD question to learn from, the right one among them, as in the public implementation.
_TRAINING_CHOICES = 10


def _copa(record: Fields) -> Iterator[Fields]:
    joint = {"cause": " because", "effect": ", so"}
    if record.get("question") not in joint:
        raise ValueError(f"question: expected cause or effect, got {record.get('question')!r}")
    yield record | {"joint": joint[record["question"]]}


def _copa_training(record: Fields, rng: np.random.Generator) -> Iterator[Fields]:
    """The question, and once more with its choices swapped: neither place is the right one more often."""
    for asked in _copa(record):
        yield asked
        label = int(not _truth(asked, "label"))
        yield asked | {"choice1": asked["choice2"], "choice2": asked["choice1"], "label": label}


def _multirc(record: Fields) -> Iterator[Fields]:
    passage = _dict(record, "passage")
    for question in _list(passage, "questions"):
        for answer in _list(question, "answers"):
            label = {"label": _truth(answer, "label")} if "label" in answer else {}
            yield {
                "passage": passage.get("text", ""),
                "question": question.get("question", ""),
                "answer": answer.get("text", ""),
                "group": f"{record.get('idx')}-{question.get('idx')}",
                **label,
            }


def _record(record: Fields) -> Iterator[Fields]:
    for asked, entities, answers in _queries(record):
        gold = [number for number, entity in enumerate(entities) if entity in answers]
        yield asked | {"entities": entities} | ({"answers": gold} if answers else {})


def _record_training(record: Fields, rng: np.random.Generator) -> Iterator[Fields]:
    """One question for each right answer, beside wrong entities alone, of which a few are drawn."""
    for asked, entities, answers in _queries(record):
        if not answers:
            raise ValueError("answers: expected at least one to learn from, got none")
        wrong = [entity for entity in entities if entity not in answers]
        for answer in sorted(answers):
            drawn = rng.permutation(len(wrong))[: _TRAINING_CHOICES - 1]
            yield asked | {"entities": [answer, *(wrong[number] for number in drawn)], "answers": 0}


def _queries(record: Fields) -> Iterator[tuple[Fields, list[str], set[str]]]:
    """The fields of each query's text, the entities, and which texts answer it: none in a test set."""
    passage = _dict(record, "passage")
    text = _text(passage, "text")
    entities = sorted(
        {text[_place(span, "start") : _place(span, "end") + 1] for span in _list(passage, "entities")}
    )
    for question in _list(record, "qas"):
        query = _text(question, "query")
        if "@placeholder" not in query:
            raise ValueError(f"query: expected @placeholder in it, got {query!r}")
        before, after = query.split("@placeholder", 1)
        asked = {
            "passage": text.replace("\n@highlight\n", "\n- "),
            "before": before.strip(),
            # A word that follows the blank at once, as in @placeholder's, stays attached.
            "after": after.rstrip(),
        }
        answered = _list(question, "answers") if question.get("answers") else []
        yield asked, entities, {_text(answer, "text") for answer in answered}


def _dict(record: Fields, name: str) -> Fields:
    value = record.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object, got {value!r}")
    return value


def _list(record: Fields, name: str) -> list[Fields]:
    value = record.get(name)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: expected a list that is not empty, got {value!r}")
    for entry in value:
        if not isinstance(entry, dict):
            raise ValueError(f"{name}: expected a list of objects, got {entry!r} in it")
    return value


def _text(record: Fields, name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a text, got {value!r}")
    return value


def _truth(record: Fields, name: str) -> bool:
    value = record[name]
    if value not in (0, 1, "0", "1"):  # CSV holds texts
        raise ValueError(f"{name}: expected 0 or 1, got {value!r}")
    return bool(int(value))


def _place(record: Fields, name: str) -> int:
    value = record[name]
    if not isinstance(value, int):
        raise ValueError(f"{name}: expected a place in the text, got {value!r}")
    return value


SUPERGLUE = {
    description.name: description
    for description in (
        Description(
            name="boolq",
            pattern="{passage} Question: {question:bare}? Answer: [MASK].",
            verbalizer=_YES_NO,
            shorten=["passage"],
        ),
        Description(
            name="cb",
            pattern='"{hypothesis:bare}"? [MASK], "{premise}"',
            verbalizer={"contradiction": "No", "entailment": "Yes", "neutral": "Maybe"},
            shorten=["hypothesis", "premise"],
            metrics=["accuracy", "f1_macro"],
        ),
        Description(
            name="copa",
            pattern='"{choice1:clause}" or "{choice2:clause}"? {premise:bare}{joint:raw} [MASK].',
            choices=["{choice1:clause}", "{choice2:clause}"],
            shorten=["premise"],
            expand=_copa,
            expand_training=_copa_training,
        ),
        Description(
            name="multirc",
            pattern="{passage} Question: {question:bare}? Is it {answer:bare}? [MASK].",
            verbalizer=_YES_NO,
            shorten=["passage"],
            metrics=["answer_sets"],
            group="group",
            expand=_multirc,
        ),
        Description(
            name="record",
            pattern="{passage}\n{before} [MASK]{after:raw}",
            choices=["*entities"],
            label="answers",
            shorten=["passage"],
            metrics=["spans"],
            expand=_record,
            expand_training=_record_training,
        ),
        Description(
            name="rte",
            pattern='"{hypothesis:bare}"? [MASK], "{premise}"',
            verbalizer={"not_entailment": "No", "entailment": "Yes"},
            shorten=["hypothesis", "premise"],
        ),
        Description(
            name="wic",
            pattern='"{sentence1}" / "{sentence2}" Similar sense of "{word}"? [MASK].',
            verbalizer=_YES_NO,
            shorten=["sentence1", "sentence2"],
        ),
    )
}
