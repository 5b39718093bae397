"""The eight SuperGLUE tasks as descriptions, reading the benchmark's own JSON lines.

Patterns are the first of each task in the public implementation.
"""

from __future__ import annotations

from collections.abc import Iterator

from .cloze import Description
from .records import Fields

_YES_NO = {"false": "No", "true": "Yes"}


def _copa(record: Fields) -> Iterator[Fields]:
    joint = {"cause": "because", "effect": "so"}
    if record.get("question") not in joint:
        raise ValueError(f"question: expected cause or effect, got {record.get('question')!r}")
    yield record | {"joint": joint[record["question"]]}


def _multirc(record: Fields) -> Iterator[Fields]:
    passage = _dict(record, "passage")
    for question in _list(passage, "questions"):
        for answer in _list(question, "answers"):
            label = {"label": bool(answer["label"])} if "label" in answer else {}
            yield {
                "passage": passage.get("text", ""),
                "question": question.get("question", ""),
                "answer": answer.get("text", ""),
                "group": f"{record.get('idx')}-{question.get('idx')}",
                **label,
            }


def _record(record: Fields) -> Iterator[Fields]:
    passage = _dict(record, "passage")
    text = passage.get("text", "")
    entities = sorted({text[span["start"] : span["end"] + 1] for span in _list(passage, "entities")})
    for question in _list(record, "qas"):
        if "@placeholder" not in question.get("query", ""):
            raise ValueError(f"query: expected @placeholder in it, got {question.get('query')!r}")
        before, after = question["query"].split("@placeholder", 1)
        answers = {answer["text"] for answer in question.get("answers", [])}
        gold = [number for number, entity in enumerate(entities) if entity in answers]
        yield {
            "passage": text.replace("\n@highlight\n", "\n- "),
            "before": before.strip(),
            # A word that follows the blank at once, as in @placeholder's, stays attached.
            "after": after.rstrip(),
            "entities": entities,
            **({"label": gold} if "answers" in question else {}),
        }


def _dict(record: Fields, name: str) -> Fields:
    value = record.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object, got {value!r}")
    return value


def _list(record: Fields, name: str) -> list[Fields]:
    value = record.get(name)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: expected a list that is not empty, got {value!r}")
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
            shorten=["premise"],
            metrics=["accuracy", "f1_macro"],
        ),
        Description(
            name="copa",
            pattern='"{choice1:clause}" or "{choice2:clause}"? {premise:bare} {joint} [MASK].',
            choices=["{choice1:clause}", "{choice2:clause}"],
            expand=_copa,
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
            shorten=["passage"],
            metrics=["spans"],
            expand=_record,
        ),
        Description(
            name="rte",
            pattern='"{hypothesis:bare}"? [MASK], "{premise}"',
            verbalizer={"not_entailment": "No", "entailment": "Yes"},
            shorten=["premise"],
        ),
        Description(
            name="wic",
            pattern='"{sentence1}" / "{sentence2}" Similar sense of "{word}"? [MASK].',
            verbalizer=_YES_NO,
        ),
    )
}
