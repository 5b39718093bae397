"""What every task makes of a model that takes less than a text has."""

import json

import pytest
import torch

from glm_ext import GLM, GLMConfig
from glm_ext.tasks import Description, load_task

LIMIT = 64
LONG = "the cat sat on the mat and the dog ran to the house " * 10 + "because"
LABELS = Description(
    name="t", pattern="{text} It was [MASK].", verbalizer={"0": "bad", "1": "good"}, shorten=["text"]
)
CHOICES = Description(name="t", pattern="{text} [MASK].", choices=["*options"], shorten=["text"])
TEXT = {"text": LONG, "label": 1, "options": ["the cat", "the mat"]}
PAIR = {"source": LONG, "target": LONG}
TARGET = {"span1_text": "the cat", "span2_text": "it", "span2_index": 0}
PRONOUN = {"text": f"it {LONG}", "target": TARGET, "label": True}
# Name, options, a record, a length option, and how many tokens the task adds to that many.
CASES = [
    ("cloze", {"description": LABELS}, TEXT, "max_length", 0),
    ("cloze", {"description": CHOICES}, TEXT, "max_length", 0),
    ("head", {"description": LABELS}, TEXT, "max_length", 0),
    ("wsc", {}, PRONOUN, "max_length", 0),
    ("seq2seq", {"num_beams": 1}, PAIR, "max_source", 0),
    ("seq2seq", {"num_beams": 1}, PAIR, "max_target", 1),
    ("last_word", {}, TEXT, "max_length", 3),
    ("last_word", {"mask": "[gMASK]"}, TEXT, "max_length", 2),
    ("last_word", {"unidirectional": True}, TEXT, "max_length", 1),
    ("perplexity", {}, TEXT, "window", 1),
    ("perplexity", {"mask": "[MASK]"}, TEXT, "window", 2),
    ("perplexity", {"unidirectional": True}, TEXT, "window", 0),
    ("infill", {}, TEXT, "max_length", 0),
]


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return GLM(
        GLMConfig(vocab_size=384, num_layers=1, hidden_size=16, num_heads=2, max_positions=LIMIT)
    ).eval()


@pytest.mark.parametrize(("name", "options", "record", "option", "besides"), CASES)
def test_the_longest_text_fits(small, tokenizer, write, name, options, record, option, besides):
    """By default and with the largest value; of Part A, whose places run from 0, the last row stays free."""
    path = write("a.jsonl", json.dumps(record))
    for length in ({}, {option: LIMIT - besides}):
        task = load_task(name, tokenizer, model_config=small.config, **options, **length)
        examples = task.examples(path)
        task.loss(small, examples).backward()
        assert task.primary in task.metrics(small, examples)
        for example in examples:
            prefix = len(example.context) if hasattr(example, "context") else example.blocks.prefix_len
            assert prefix <= LIMIT


@pytest.mark.parametrize(("name", "options", "record", "option", "besides"), CASES)
def test_a_length_that_cannot_fit_is_refused(small, tokenizer, name, options, record, option, besides):
    most = LIMIT - besides
    message = rf"{option}: expected \d to {most} for this model \(max_positions = 64\), got {most + 1}"
    with pytest.raises(ValueError, match=message):
        load_task(name, tokenizer, model_config=small.config, **options, **{option: most + 1})


@pytest.mark.parametrize(
    ("name", "options", "record", "message"),
    [
        (
            "last_word",
            {},
            {"text": f"the {'x' * 70}"},
            "text: the last word has 7. tokens and the model takes 63",
        ),
        ("wsc", {}, PRONOUN | {"target": TARGET | {"span1_text": LONG}}, "span1_text: it has .* takes 62"),
        (
            "cloze",
            {"description": CHOICES},
            TEXT | {"options": ["a", LONG]},
            "choices: the longest answer has",
        ),
    ],
)
def test_data_that_cannot_fit_is_refused(small, tokenizer, write, name, options, record, message):
    task = load_task(name, tokenizer, model_config=small.config, **options)
    with pytest.raises(ValueError, match=f"a.jsonl, line 1: {message}"):
        task.examples(write("a.jsonl", json.dumps(record)))


def test_one_way_the_context_leaves_room_for_the_word(small, tokenizer):
    task = load_task("last_word", tokenizer, model_config=small.config, unidirectional=True)
    [passage] = task._example({"text": f"{LONG} {'x' * 20}"})
    assert int(passage.blocks.positions[1].max()) == LIMIT


def test_what_is_of_the_model_is_no_option(small, tokenizer):
    with pytest.raises(ValueError, match="rte: max_positions is the model's, and no option"):
        load_task("rte", tokenizer, model_config=small.config, max_positions=512)
