"""The benchmark's own lines -> the questions that they ask."""

import json
import re

import pytest

from glm_ext.tasks import SUPERGLUE, load_task


def ask(tokenizer, write, name, record):
    """(text of Part A with its blank, the choices, the right ones) of every question of a line."""
    path = write(f"{name}.jsonl", json.dumps(record) + "\n")
    asked = []
    for question in load_task(name, tokenizer, max_length=512).examples(path):
        context = [*question.context[:-1]]
        before, after = context[1 : question.place], context[question.place + 1 :]
        text = tokenizer.decode(before) + " ___" + tokenizer.decode(after)
        assert [tokenizer.decode(choice).strip() for choice in question.choices] == question.texts
        asked.append((text, question.texts, set(question.gold)))
    return asked


CASES = {
    "boolq": (
        {"question": "is the cat on the mat", "passage": "The cat sat.", "idx": 0, "label": True},
        ("The cat sat. Question: is the cat on the mat? Answer: ___.", ["No", "Yes"], {1}),
    ),
    "cb": (
        {"premise": "It was so.", "hypothesis": "it was", "label": "neutral", "idx": 3},
        ('"it was"? ___, "It was so."', ["No", "Yes", "Maybe"], {2}),
    ),
    "copa": (
        {
            "premise": "The man was late.",
            "choice1": "He ran.",
            "choice2": "The door was open.",
            "question": "effect",
            "label": 1,
            "idx": 0,
        },
        (
            '"he ran" or "the door was open"? The man was late so ___.',
            ["he ran", "the door was open"],
            {1},
        ),
    ),
    "rte": (
        {"premise": "The dog ran.", "hypothesis": "A dog ran.", "label": "not_entailment", "idx": 1},
        ('"A dog ran"? ___, "The dog ran."', ["No", "Yes"], {0}),
    ),
    "wic": (
        {"word": "open", "sentence1": "Open it.", "sentence2": "An open door.", "label": False, "idx": 0},
        ('"Open it." / "An open door." Similar sense of "open"? ___.', ["No", "Yes"], {0}),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_questions(tokenizer, write, name):
    record, expected = CASES[name]
    assert ask(tokenizer, write, name, record) == [expected]


MULTIRC_ANSWERS = [{"text": "a cat.", "idx": 0, "label": 1}, {"text": "a dog", "idx": 1, "label": 0}]
MULTIRC = {
    "idx": 2,
    "passage": {
        "text": "The cat sat.",
        "questions": [
            {"question": "Who sat?", "idx": 5, "answers": MULTIRC_ANSWERS},
            {"question": "Who ran?", "idx": 6, "answers": MULTIRC_ANSWERS[1:]},
        ],
    },
}
SPANS = [{"start": 4, "end": 6}, {"start": 16, "end": 18}]
QUERY = {"query": "After that @placeholder's house was open", "idx": 0}
RECORD = {
    "idx": 0,
    "passage": {"text": "The cat saw the dog.\n@highlight\nThe dog ran", "entities": [*SPANS, SPANS[0]]},
    "qas": [QUERY | {"answers": [{**SPANS[1], "text": "dog"}]}],
}


def test_multirc(tokenizer, write):
    assert ask(tokenizer, write, "multirc", MULTIRC) == [
        ("The cat sat. Question: Who sat? Is it a cat? ___.", ["No", "Yes"], {1}),
        ("The cat sat. Question: Who sat? Is it a dog? ___.", ["No", "Yes"], {0}),
        ("The cat sat. Question: Who ran? Is it a dog? ___.", ["No", "Yes"], {0}),
    ]
    task = load_task("multirc", tokenizer)
    assert task.primary == "f1a"
    groups = [q.group for q in task.examples(write("m.jsonl", json.dumps(MULTIRC)))]
    assert groups == ["2-5", "2-5", "2-6"]


def test_record(tokenizer, write):
    text = RECORD["passage"]["text"]
    assert [text[span["start"] : span["end"] + 1] for span in SPANS] == ["cat", "dog"]
    [asked] = ask(tokenizer, write, "record", RECORD)
    assert asked == (
        "The cat saw the dog.\n- The dog ran\nAfter that ___'s house was open",
        ["cat", "dog"],
        {1},
    )


@pytest.mark.parametrize(
    ("name", "record"),
    [("multirc", MULTIRC), ("record", RECORD), *((name, case[0]) for name, case in CASES.items())],
)
def test_a_checkpoint_is_kept_by_one_of_the_metrics(glm, tokenizer, write, name, record):
    pytest.importorskip("sklearn")
    task = load_task(name, tokenizer)
    metrics = task.metrics(glm, task.examples(write("a.jsonl", json.dumps(record))))
    assert task.primary in metrics and all(0 <= value <= 100 for value in metrics.values())


def test_a_test_set_has_no_labels(tokenizer, write):
    for name, record in (("record", RECORD | {"qas": [QUERY]}), ("rte", {"premise": "a", "hypothesis": "b"})):
        [question] = load_task(name, tokenizer).examples(write("a.jsonl", json.dumps(record)))
        assert question.gold == frozenset()


def test_wsc(glm, tokenizer, write):
    record = {
        "text": "The man saw the dog because he was late.",
        "target": {"span1_text": "The man", "span1_index": 0, "span2_text": "he", "span2_index": 6},
        "label": True,
        "idx": 0,
    }
    task = load_task("wsc", tokenizer)
    lines = [record, record | {"label": False}]
    examples = task.examples(write("wsc.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    context = tokenizer.decode(examples[0].prompt.tokens[1:-1])
    assert context == "The man saw the dog because *he* was late. The pronoun '*he*' refers to."
    targets = examples[0].blocks.targets[examples[0].blocks.prefix_len :].tolist()
    assert targets == [*tokenizer.encode(" The man"), tokenizer.eop_id]
    # The false example teaches nothing; whatever is written, one of the two judgements is right.
    assert float(task.loss(glm.eval(), examples).detach()) == float(task.loss(glm, examples[:1]).detach())
    loss = task.loss(glm, examples[1:])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert task.metrics(glm, examples) == {"accuracy": 50.0}


def test_all_eight_are_there(tokenizer):
    names = {"boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"}
    assert names == {*SUPERGLUE, "wsc"}
    for name in names:
        assert load_task(name, tokenizer).name == name


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("copa", {"question": "why"}, "question: expected cause or effect, got 'why'"),
        ("cb", {"label": "yes"}, "label: expected one of contradiction, entailment, neutral, got 'yes'"),
        ("rte", {"premise": None}, "premise: expected a text, got None"),
        ("boolq", {"label": "maybe"}, "label: expected one of false, true, got 'maybe'"),
    ],
)
def test_lines_that_are_not_the_benchmarks(tokenizer, write, name, changes, message):
    path = write("a.jsonl", json.dumps(CASES[name][0] | changes))
    with pytest.raises(ValueError, match=f"a.jsonl, line 1: {re.escape(message)}"):
        load_task(name, tokenizer).examples(path)


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("multirc", {"passage": "text"}, "passage: expected an object, got 'text'"),
        ("multirc", {"passage": {"questions": []}}, "questions: expected a list that is not empty"),
        ("record", {"passage": {"text": "a", "entities": [{"end": 1}]}}, "expected a field 'start'"),
        ("wsc", {"text": "a b", "target": {"span2_text": "b"}}, "expected a field 'span2_index'"),
        (
            "wsc",
            {"text": "a b", "target": {"span2_text": "b", "span2_index": 0}},
            "span2_index: expected the place of 'b', got ['a']",
        ),
    ],
)
def test_nested_lines_that_are_broken(tokenizer, write, name, record, message):
    path = write("a.jsonl", json.dumps(record))
    with pytest.raises(ValueError, match=f"a.jsonl, line 1: {re.escape(message)}"):
        load_task(name, tokenizer).examples(path)
