"""Examples of described tasks, and learning from them."""

import json
import sys

import pytest
import torch

from glm_ext.data import GLMTokenizer
from glm_ext.extras import MissingExtra
from glm_ext.tasks import Cloze, Description, load_task
from glm_ext.tasks.choices import Question
from glm_ext.tasks.metrics import METRICS, accuracy, spans

REVIEWS = """\
name: reviews
pattern: "{text} It was [MASK]."
verbalizer: {0: bad, 1: good}
shorten: [text]
"""


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


# --------------------------------------------------------------------------------------------- examples


def test_a_description_of_ones_own(write, tokenizer):
    task = load_task("cloze", tokenizer, description=write("reviews.yaml", REVIEWS))
    assert (task.name, task.primary, task.module) == ("reviews", "accuracy", None)
    twin = json.dumps({"pattern": "{text} It was [MASK].", "verbalizer": {"0": "bad", "1": "good"}})
    for description in (task.description, Description.load(write("twin.json", twin))):
        assert description.verbalizer == {"0": "bad", "1": "good"}
    csv = write("reviews.csv", 'text,label\n"The cat, sat.",1\n"Two\nlines",0\n')
    lines = write(
        "reviews.jsonl", jsonl({"text": "The cat, sat.", "label": 1}, {"text": "Two\nlines", "label": 0})
    )
    first, second = task.examples(csv)
    assert [first, second] == task.examples(lines)
    assert first.gold == {1} and second.gold == {0}
    assert first.texts == ["bad", "good"] and first.choices == [
        tokenizer.encode(" bad"),
        tokenizer.encode(" good"),
    ]
    assert first.context[first.place] == tokenizer.mask_id


def test_choices_of_each_record(write, tokenizer):
    task = Cloze(tokenizer, Description(name="t", pattern="{q} [MASK]", choices=["*options"], label="right"))
    record = {"q": "the", "options": ["cat", "dog"], "right": 1}
    [question] = task.examples(write("a.jsonl", jsonl(record)))
    assert question.texts == ["cat", "dog"] and question.gold == {1}
    for broken, message in (
        ({"options": []}, "choices: expected at least one and none empty"),
        ({"options": ["cat", " "]}, "choices: expected at least one and none empty"),
        ({"options": "cat"}, "options: expected a list of choices, got 'cat'"),
        ({"right": 2}, "right: expected 0 to 1, the number of a choice, got 2"),
        ({"right": "cat"}, "right: expected a whole number, that of a choice, got 'cat'"),
        ({"right": 0.7}, r"right: expected a whole number, that of a choice, got 0\.7"),
        ({"right": [0, float("inf")]}, r"right: expected a whole number, that of a choice, got \[0, inf\]"),
    ):
        with pytest.raises(ValueError, match=f"b.jsonl, line 2: {message}"):
            task.examples(write("b.jsonl", jsonl(record, record | broken)))


def test_answers_that_the_vocabulary_cannot_tell_apart(tokenizer):
    words = GLMTokenizer.train(["the cat sat"] * 3, 40, "wordpiece")
    for verbalizer, message in (
        ({"x": "zzz", "y": "cat"}, "t: verbalizer: 'zzz' is not in the vocabulary"),
        ({"x": "cat", "y": "cat"}, r"t: verbalizer: expected different answers, got \['cat', 'cat'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            Cloze(words, Description(name="t", pattern="[MASK]", verbalizer=verbalizer))
    task = Cloze(tokenizer, Description(name="t", pattern="[MASK]", choices=["*options"]))
    with pytest.raises(ValueError, match="choices: expected different ones"):
        task.question({"options": ["cat", "cat"]})

    # Of a record's own choices, one that is lacking may be told from the others.
    task = Cloze(words, Description(name="t", pattern="[MASK]", choices=["*options"]))
    assert task.question({"options": ["zzz", "cat"], "label": 0}).gold == {0}
    with pytest.raises(ValueError, match="choices: 'zzz' and 'yyy' are the same tokens in this vocabulary"):
        task.question({"options": ["yyy", "zzz"], "label": 1})


def test_two_spellings_of_a_word_are_one_answer_to_an_uncased_vocabulary(tokenizer):
    class Uncased(Cloze):
        def _encode(self, texts):
            return super()._encode([text.lower() for text in texts])

    task = Uncased(tokenizer, Description(name="t", pattern="[MASK]", choices=["*options"]))
    question = task.question({"options": ["cat", "CAT"], "label": 0})
    assert question.choices[0] == question.choices[1]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.jsonl", '{"text": "x", "label": 2}', "line 1: label: expected one of 0, 1, got '2'"),
        ("a.jsonl", '\n{"label": 1}', "line 2: there is no field 'text'; there are label"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text', "line 2: not JSON"),
        ("a.jsonl", "\n" + "[" * 100_000, "line 2: JSON that nests too deep"),
        ("a.jsonl", r'{"text": "x \ud800", "label": 1}', "line 1: half a surrogate pair at character 2"),
        ("a.jsonl", r'{"a": [{"\udfff": 1}]}', "line 1: half a surrogate pair at character 0"),
        ("a.jsonl", "[1]", r"line 1: expected an object \{...\}, got \[1\]"),
        ("a.jsonl", "\n", "expected at least one example, found none"),
        ("a.jsonl", '{"text": [1], "label": 1}', r"line 1: text: expected a text, got \[1\]"),
        ("a.csv", "text,label\nx,1\ny\n", "line 3: expected 2 columns as in the header"),
        ("a.csv", "text,label\nx,1,2\n", "line 2: expected 2 columns"),
    ],
)
def test_bad_data_is_named(write, tokenizer, file, text, message):
    task = Cloze(tokenizer, Description.load(write("reviews.yaml", REVIEWS)))
    path = write(file, text)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        task.examples(path)


def test_metrics_name_what_they_give():
    """The table is what descriptions are checked by."""
    pytest.importorskip("sklearn")
    for metric in METRICS.values():
        assert tuple(metric.score(asked({0}, {1}, texts=["a", "b"]), [0, 1])) == metric.values


def test_what_metrics_need_is_asked_for_before_training(glm, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r'f1_macro needs sklearn; .* "glm_ext\[eval\]"'):
        load_task("cb", tokenizer, model_config=glm.config)
    load_task("rte", tokenizer, model_config=glm.config)
    load_task("cb", tokenizer)  # it may be asked for predictions


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rte", {"max_length": "abc"}, "rte: max_length: expected a whole number, got 'abc'"),
        ("rte", {"max_length": True}, "rte: max_length: expected a whole number, got True"),
        ("rte", {"length_penalty": None}, "rte: length_penalty: expected a number, got None"),
        ("perplexity", {"unidirectional": 1}, "perplexity: unidirectional: expected true or false, got 1"),
        ("seq2seq", {"pattern": 3}, "seq2seq: pattern: expected a text, got 3"),
        ("cloze", {"description": 3}, "cloze: description: expected Description or a text or Path, got 3"),
        ("last_word", {"max_length": 0}, "max_length: expected 1 or more, got 0"),
        ("infill", {"max_length": 0}, "max_length: expected 8 or more, got 0"),
        ("wsc", {"num_beams": 0}, "num_beams: expected 1"),
    ],
)
def test_options_have_types(tokenizer, name, options, message):
    with pytest.raises(ValueError, match=message):
        load_task(name, tokenizer, **options)


def test_whole_numbers_are_numbers(tokenizer):
    assert load_task("rte", tokenizer, length_penalty=1).length_penalty == 1


def test_names_and_options_are_checked(tokenizer):
    with pytest.raises(ValueError, match="task: there is no 'rtee'; did you mean 'rte'"):
        load_task("rtee", tokenizer)
    with pytest.raises(ValueError, match="rte: there is no option 'max_lenght'; did you mean 'max_length'"):
        load_task("rte", tokenizer, max_lenght=5)
    with pytest.raises(ValueError, match="cloze: expected the option description"):
        load_task("cloze", tokenizer)
    with pytest.raises(ValueError, match="max_length: expected 8 or more, got 5"):
        load_task("rte", tokenizer, max_length=5)


# --------------------------------------------------------------------------------------------- learning


def test_a_model_learns_it(glm, tokenizer, write):
    """One field decides; multi-token answers. The loss falls and the metric becomes right."""
    task = load_task("cloze", tokenizer, description=write("t.yaml", REVIEWS.replace("good", "good not bad")))
    records = [{"text": f"{word} the house", "label": int(word == "cat")} for word in ("cat", "dog") * 4]
    examples = task.examples(write("train.jsonl", jsonl(*records)))
    assert len(examples[0].choices[1]) > 1
    optimizer = torch.optim.AdamW(glm.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = task.loss(glm, examples)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 < 0.3 < losses[0]
    assert task.metrics(glm, examples) == {"accuracy": 100.0}
    assert glm.training


def test_evaluation_in_batches_is_that_of_each_alone(glm, tokenizer):
    description = Description(name="t", pattern="{q} [MASK]", choices=["*options"])
    task = Cloze(tokenizer, description, eval_batch_size=2)
    records = [
        {"q": "the cat " * n, "options": ["dog", "the man", "house because"][: 1 + n % 3], "label": 0}
        for n in range(1, 6)
    ]
    questions = [task.question(record) for record in records]
    alone = [task.predict(glm, [question])[0] for question in questions]
    assert task.predict(glm, questions) == alone


def test_without_labels_there_is_nothing_to_judge(glm, tokenizer):
    task = load_task("rte", tokenizer)
    question = task.question({"premise": "the cat", "hypothesis": "the dog"})
    assert task.predict(glm, [question])[0] in (0, 1)
    with pytest.raises(ValueError, match="expected a label in every example to judge by"):
        task.metrics(glm, [question])


@pytest.mark.parametrize(
    ("metrics", "label", "message"),
    [
        (["accuracy"], [], r"label: expected at least one right choice, got \[\]"),
        (["accuracy", "f1"], [0, 1], r"label: expected one right choice, got \[0, 1\]"),
    ],
)
def test_what_metrics_cannot_judge_is_refused_with_its_line(tokenizer, write, metrics, label, message):
    description = Description(name="t", pattern="{q} [MASK]", choices=["{a}", "{b}"], metrics=metrics)
    path = write("a.jsonl", jsonl({"q": "the", "a": "cat", "b": "dog", "label": label}))
    with pytest.raises(ValueError, match=f"a.jsonl, line 1: {message}"):
        Cloze(tokenizer, description).labelled_examples(path)


# --------------------------------------------------------------------------------------------- metrics


def asked(*gold, groups=None, texts=()):
    groups = groups or [""] * len(gold)
    return [
        Question(context=[], place=0, choices=[[1]] * 4, gold=frozenset(g), group=group, texts=list(texts))
        for g, group in zip(gold, groups, strict=True)
    ]


def test_accuracy_counts_any_right_choice():
    assert accuracy(asked({0}, {1, 2}, {1}), [0, 2, 0]) == {"accuracy": pytest.approx(200 / 3)}


def test_scores_of_classes():
    pytest.importorskip("sklearn")
    questions, predictions = asked({1}, {1}, {0}, {0}, {2}), [1, 0, 0, 0, 1]
    # Class 0: 2 of 2 found, 1 too many; class 1: 1 of 2, 1 too many; class 2: none.
    assert METRICS["f1_macro"].score(questions, predictions) == {
        "f1_macro": pytest.approx(100 * (0.8 + 0.5) / 3)
    }
    assert METRICS["f1"].score(questions[:4], predictions[:4]) == {"f1": pytest.approx(100 * 2 / 3)}
    assert METRICS["matthews"].score(questions[:4], [1, 1, 0, 0]) == {"matthews": pytest.approx(100)}


def test_answers_to_one_question_are_judged_together():
    pytest.importorskip("sklearn")
    questions = asked({1}, {0}, {1}, {1}, groups=["a", "a", "b", "b"])
    assert METRICS["answer_sets"].score(questions, [1, 0, 1, 0]) == {"f1a": pytest.approx(80.0), "em": 50.0}


def test_spans_are_compared_word_by_word():
    questions = asked({0}, {2, 3}, texts=["The Cat.", "a cat", "big red dog", "a red"])
    assert spans(questions, [1, 3]) == {"f1": 100.0, "em": 100.0}
    assert spans(questions[1:], [1]) == {"f1": 0.0, "em": 0.0}
    questions = asked({2}, texts=["x", "the red dog", "big red dog", "y"])
    assert spans(questions, [1]) == {"f1": pytest.approx(80.0), "em": 0.0}
