"""The benchmark's own lines -> the questions that they ask."""

import json
import re

import numpy as np
import pytest
import torch

from glm_ext.tasks import SUPERGLUE, load_task
from glm_ext.tasks.wsc import mark


def ask(tokenizer, write, name, record, seed=None):
    """(text of Part A with its blank, the choices, the right ones) of every question of a line.

    seed: of the questions to learn from; None: those to be judged by.
    """
    path = write(f"{name}.jsonl", json.dumps(record) + "\n")
    task = load_task(name, tokenizer, max_length=512)
    if seed is None:
        questions = task.examples(path)
    else:
        questions = task.training_examples(path, np.random.default_rng(seed))
    asked = []
    for question in questions:
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
            '"he ran" or "the door was open"? The man was late, so ___.',
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
    if name != "copa":  # which learns from more
        assert ask(tokenizer, write, name, record, seed=0) == [expected]


@pytest.mark.parametrize("label", [0, 1])
def test_copa_learns_from_both_orders_of_its_choices(tokenizer, write, label):
    asked, mirrored = ask(tokenizer, write, "copa", CASES["copa"][0] | {"label": label}, seed=0)
    assert asked == (*CASES["copa"][1][:2], {label})
    assert mirrored == (
        '"the door was open" or "he ran"? The man was late, so ___.',
        ["the door was open", "he ran"],
        {1 - label},
    )


def test_copa_is_mirrored_as_csv(tokenizer, write):
    task, rng = load_task("copa", tokenizer), np.random.default_rng(0)
    fields = "premise,choice1,choice2,question"
    path = write("copa.csv", f"{fields},label\nIt was so.,a,b,cause,1\nIt was not.,a,b,effect,0\n")
    assert [set(question.gold) for question in task.training_examples(path, rng)] == [{1}, {0}, {0}, {1}]


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


def many_entities(count, answers):
    """A line of ReCoRD about a passage of so many names, of which some answer its query."""
    names = [f"name{number:02}" for number in range(count)]
    spans = [{"start": 7 * number, "end": 7 * number + 5} for number in range(count)]
    passage = {"text": " ".join(names), "entities": spans}
    answered = [{**spans[number], "text": names[number]} for number in answers]
    return names, {"idx": 0, "passage": passage, "qas": [QUERY | {"answers": answered}]}


def test_record_learns_from_each_answer_beside_nine_wrong_entities(tokenizer, write):
    names, record = many_entities(14, answers=[3, 8])
    wrong = {*names} - {"name03", "name08"}
    first, second = ask(tokenizer, write, "record", record, seed=1)
    for answer, (text, choices, gold) in (("name03", first), ("name08", second)):
        assert gold == {0} and choices[0] == answer
        assert len(choices) == len({*choices}) == 10 and {*choices[1:]} < wrong
        assert text == " ".join(names) + "\nAfter that ___'s house was open"
    assert {*first[1][1:]} != {*second[1][1:]}  # drawn anew
    assert ask(tokenizer, write, "record", record, seed=1) == [first, second]
    assert ask(tokenizer, write, "record", record, seed=2) != [first, second]
    # All of them, in one question, to be judged by.
    [(_, choices, gold)] = ask(tokenizer, write, "record", record)
    assert choices == names and gold == {3, 8}


def test_record_keeps_all_of_few_wrong_entities(tokenizer, write):
    names, record = many_entities(10, answers=[4])
    [(_, choices, gold)] = ask(tokenizer, write, "record", record, seed=1)
    assert gold == {0} and choices[0] == "name04" and sorted(choices) == names


def test_record_learns_from_no_question_without_answers(tokenizer, write):
    with pytest.raises(ValueError, match=r"record.jsonl, line 1: answers: expected at least one to learn"):
        ask(tokenizer, write, "record", many_entities(3, answers=[])[1], seed=1)


@pytest.mark.parametrize(
    ("name", "record"),
    [("multirc", MULTIRC), ("record", RECORD), *((name, case[0]) for name, case in CASES.items())],
)
def test_a_checkpoint_is_kept_by_one_of_the_metrics(glm, tokenizer, write, name, record):
    pytest.importorskip("sklearn")
    task = load_task(name, tokenizer)
    metrics = task.metrics(glm, task.examples(write("a.jsonl", json.dumps(record))))
    assert task.primary in metrics and all(0 <= value <= 100 for value in metrics.values())


@pytest.mark.parametrize(
    ("name", "record", "field"),
    [
        ("record", RECORD | {"qas": [QUERY]}, "answers"),
        ("record", RECORD | {"qas": [QUERY | {"answers": []}]}, "answers"),
        ("rte", {"premise": "a", "hypothesis": "b", "lable": "entailment"}, "label"),
        ("copa", {k: v for k, v in CASES["copa"][0].items() if k != "label"}, "label"),
    ],
)
def test_a_test_set_has_no_labels(glm, tokenizer, write, name, record, field):
    """It can be answered, and neither learned from nor judged by."""
    task, path = load_task(name, tokenizer), write("a.jsonl", json.dumps(record))
    questions = task.examples(path)
    assert [question.gold for question in questions] == [frozenset()] and task.predict(glm, questions)
    with pytest.raises(ValueError, match=f"a.jsonl, line 1: there is no field '{field}'; there are "):
        task.labelled_examples(path)
    with pytest.raises(ValueError, match=f"a.jsonl, line 1: .*{field}"):
        task.training_examples(path, np.random.default_rng(0))


def test_long_fields_are_shortened_as_in_the_public_implementation():
    shortened = {name: list(description.shorten) for name, description in SUPERGLUE.items()}
    assert shortened == {
        "boolq": ["passage"],
        "cb": ["hypothesis", "premise"],
        "copa": ["premise"],
        "multirc": ["passage"],
        "record": ["passage"],
        "rte": ["hypothesis", "premise"],
        "wic": ["sentence1", "sentence2"],
    }


WSC = {
    "text": "The man saw the dog because he was late.",
    "target": {"span1_text": "The man", "span1_index": 0, "span2_text": "he", "span2_index": 6},
    "label": True,
    "idx": 0,
}


def wsc(tokenizer, write, *records):
    task = load_task("wsc", tokenizer)
    return task, task.examples(write("wsc.jsonl", "".join(json.dumps(record) + "\n" for record in records)))


def test_wsc(glm, tokenizer, write):
    task, examples = wsc(tokenizer, write, WSC, WSC | {"label": False})
    context = tokenizer.decode(examples[0].prompt.tokens[1:-1])
    assert context == "The man saw the dog because *he* was late. The pronoun '*he*' refers to."
    targets = examples[0].blocks.targets[examples[0].blocks.prefix_len :].tolist()
    assert targets == [*tokenizer.encode(" The man"), tokenizer.eop_id]
    # The false example teaches nothing; whatever is written, one of the two judgements is right.
    loss = task.loss(glm.eval(), examples[1:])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert task.metrics(glm, examples) == {"accuracy": 50.0}


def test_wsc_has_the_mean_over_examples(glm, tokenizer, write):
    """So parts of a batch weigh what their examples do."""
    longer = {"target": WSC["target"] | {"span1_text": "the dog because"}}
    labels = [WSC, WSC | {"label": False}, WSC | {"label": False}, WSC | longer]
    task, examples = wsc(tokenizer, write, *labels)
    each = [task.loss(glm.eval(), [example]) for example in examples]
    for size in (2, 3, 4):
        torch.testing.assert_close(task.loss(glm, examples[:size]), sum(each[:size]) / size)


@pytest.mark.parametrize("label", ["false", "False", False])
def test_wsc_labels_by_name(tokenizer, write, label):
    [example] = wsc(tokenizer, write, WSC | {"label": label})[1]
    assert example.label is False


def test_wsc_without_labels_neither_teaches_nor_judges(glm, tokenizer, write, tmp_path):
    task, examples = wsc(tokenizer, write, {k: v for k, v in WSC.items() if k != "label"})
    for use in (task.loss, task.metrics):
        with pytest.raises(ValueError, match="expected a label in every example, found one without"):
            use(glm, examples)
    with pytest.raises(ValueError, match="line 1: there is no field 'label'; there are text, target"):
        task.labelled_examples(tmp_path / "wsc.jsonl")


@pytest.mark.parametrize(
    ("text", "pronoun", "index", "expected"),
    [
        ("The man saw it.", "it", 3, "The man saw *it*."),
        ("It is him, they say", "him", 2, "It is *him*, they say"),
        ("It is  him they\nsay", "they", 3, "It is him *they* say"),
        ("He said so", "he", 1, "*He* said so"),
        ("This is his", "his", 1, "This is *his*"),
        ("history of his", "his", 1, "history of *his*"),
    ],
)
def test_wsc_finds_the_pronoun(text, pronoun, index, expected):
    assert mark(text, pronoun, index)[0] == expected


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
        (
            "multirc",
            {"passage": {"questions": ["Who?"]}},
            "questions: expected a list of objects, got 'Who?'",
        ),
        (
            "multirc",
            {"passage": {"questions": [{"question": "Who?", "answers": [{"text": "a", "label": "false"}]}]}},
            "label: expected 0 or 1, got 'false'",
        ),
        ("record", {"passage": {"text": None, "entities": []}}, "text: expected a text, got None"),
        (
            "record",
            {"passage": {"text": "a", "entities": [{"start": "0", "end": 1}]}},
            "start: expected a place in the text, got '0'",
        ),
        ("wsc", {"text": "a b", "target": {}}, "expected a field 'span1_text'"),
        ("wsc", WSC | {"target": WSC["target"] | {"span2_text": 3}}, "span2_text: expected a text, got 3"),
        (
            "wsc",
            WSC | {"target": WSC["target"] | {"span2_index": None}},
            "span2_index: expected the place of a word, got None",
        ),
        (
            "wsc",
            WSC | {"target": WSC["target"] | {"span2_index": 0}},
            "span2_index: expected the place of 'he', got ['The']",
        ),
        ("wsc", WSC | {"label": "maybe"}, "label: expected true or false, got 'maybe'"),
        ("wsc", WSC | {"label": None}, "label: expected true or false, got None"),
    ],
)
def test_nested_lines_that_are_broken(tokenizer, write, name, record, message):
    path = write("a.jsonl", json.dumps(record))
    with pytest.raises(ValueError, match=f"a.jsonl, line 1: {re.escape(message)}"):
        load_task(name, tokenizer).examples(path)
