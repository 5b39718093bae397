import sys

import pytest
import torch
import torch.nn.functional as F

from glm_ext import GLM, GLMConfig
from glm_ext.data import GLMTokenizer
from glm_ext.extras import MissingExtra
from glm_ext.tasks import load_task

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def tokenizer():
    return GLMTokenizer.train([" ".join(WORDS) + " " + " ".join(WORDS[::-1])] * 4, vocab_size=320)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    config = GLMConfig(
        vocab_size=tokenizer.padded_vocab_size(), num_layers=2, hidden_size=32, num_heads=2, max_positions=64
    )
    return GLM(config).eval()


def make(tokenizer, **options):
    return load_task("seq2seq", tokenizer, **options)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("{source} [sMASK]", "[CLS]one two[sMASK]"),
        ("[sMASK] Content: {source}", "[CLS][sMASK] Content: one two"),
        ("{source} Question: [MASK].", "[CLS]one two Question:[MASK]."),
    ],
)
def test_the_source_is_part_a(tokenizer, pattern, text):
    pair = make(tokenizer, pattern=pattern).pair("one two", "three")
    assert pair.context[-1] == tokenizer.eos_id
    assert tokenizer.decode(pair.context[:-1], skip_special=False) == text
    assert tokenizer.decode([pair.context[pair.place]], skip_special=False) in ("[MASK]", "[sMASK]")
    assert pair.answer == [*tokenizer.encode(" three"), tokenizer.eop_id]


def test_an_example_by_hand(tokenizer):
    task = make(tokenizer)
    pair = task.pair("one two", "three four")
    one, two, three, four = (tokenizer.encode(word)[0] for word in ("one", " two", " three", " four"))
    ids = tokenizer.ids
    example = task._example(pair)
    assert example.tokens.tolist() == [ids.cls, one, two, ids.smask, ids.eos, ids.sop, three, four]
    assert example.targets.tolist()[5:] == [three, four, ids.eop]
    assert example.positions.tolist() == [[0, 1, 2, 3, 4, 3, 3, 3], [0, 0, 0, 0, 0, 1, 2, 3]]
    assert example.loss_mask.tolist() == pytest.approx([0] * 5 + [1 / 3] * 3)
    assert example.prefix_len == 5


def test_long_texts_are_cut_at_their_ends(tokenizer):
    task = make(tokenizer, max_source=8, max_target=4)
    pair = task.pair(" ".join(WORDS), " ".join(WORDS))
    assert len(pair.context) == 8
    assert tokenizer.decode(pair.context) == "one two three four five"
    assert pair.context[pair.place] == tokenizer.smask_id
    assert tokenizer.decode(pair.answer) == " one two three four"
    assert tokenizer.eop_id not in pair.answer  # it does not end there


def test_special_tokens_in_the_data_are_plain_text(tokenizer):
    pair = make(tokenizer).pair("one [sMASK] two", "three [MASK]")
    assert pair.context.count(tokenizer.smask_id) == 1 and pair.place == len(pair.context) - 2
    assert tokenizer.mask_id not in pair.answer
    assert tokenizer.decode(pair.answer) == " three [MASK]"


def test_loss_written_out(tokenizer, model):
    """Label smoothing over the whole vocabulary; the mean over tokens, then over examples."""
    task = make(tokenizer, label_smoothing=0.1)
    pairs = [task.pair("one two three", "four five six"), task.pair("one", "two")]
    losses = []
    for pair in pairs:
        example = task._example(pair)
        tokens, positions = torch.from_numpy(example.tokens)[None], torch.from_numpy(example.positions)[None]
        logits = model(tokens, positions, example.prefix_len)[0, example.prefix_len :]
        losses.append(F.cross_entropy(logits, torch.tensor(pair.answer), label_smoothing=0.1))
    torch.testing.assert_close(task.loss(model, pairs), sum(losses) / 2)


def test_padding_is_never_attended(tokenizer, model):
    """The reference counts it to Part A; here a longer neighbour changes nothing."""
    task = make(tokenizer)
    short, long = task.pair("one", "two"), task.pair(" ".join(WORDS * 3), " ".join(WORDS))
    alone = task.loss(model, [short]), task.loss(model, [long])
    torch.testing.assert_close(task.loss(model, [short, long]), sum(alone) / 2)


def test_what_it_learns_it_writes(tokenizer, model):
    torch.manual_seed(1)
    task = make(tokenizer, num_beams=2, no_repeat_ngram=0, max_target=8, label_smoothing=0.0)
    pairs = [task.pair(WORDS[i], f"{WORDS[i + 1]} {WORDS[i + 2]}") for i in range(8)]
    before = task.metrics(model, pairs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        task.loss(model, pairs).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = task.metrics(model, pairs)
    assert before["rougeL"] < 50 < 90 < after["rougeL"] <= 100
    assert after["exact_match"] > 80
    assert after.keys() == {"rouge1", "rouge2", "rougeL", "exact_match"}
    bleu = make(tokenizer, metric="bleu", no_repeat_ngram=0, max_target=8)
    assert bleu.metrics(model, pairs)["chrf"] > 80 and bleu.primary == "bleu"


def test_files(tokenizer, tmp_path):
    task, path = make(tokenizer), tmp_path / "pairs.jsonl"
    path.write_text('{"source": "one", "target": "two", "id": 3}\n\n{"source": "three", "target": "four"}\n')
    assert [(pair.source, pair.target) for pair in task.examples(path)] == [("one", "two"), ("three", "four")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"source": "one"', "pairs.jsonl, line 2: not JSON"),
        (b'{"source": "\xff"}', "pairs.jsonl, line 2: not UTF-8"),
        (b'{"source": "one"}', "line 2: target: expected a text, got None"),
        (b'{"source": "one", "target": 3}', "line 2: target: expected a text, got 3"),
        (b'["one", "two"]', "line 2: expected an object"),
        (b'{"source": "one", "target": " "}', "line 2: target: expected a text, got ' '"),
    ],
)
def test_bad_lines_are_named(tokenizer, tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"source": "a", "target": "b"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=message):
        make(tokenizer).examples(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "{source}"}, "pattern: expected {source} and one of"),
        ({"pattern": "[sMASK]"}, "pattern: expected {source} and one of"),
        ({"pattern": "[sMASK] {source} [MASK]"}, "pattern"),
        ({"metric": "meteor"}, "metric: expected rouge or bleu, got 'meteor'"),
        ({"max_source": 3}, "max_source: expected 8 or more, got 3"),
        ({"max_source": 8, "pattern": "a b c d e f g h {source} [sMASK]"}, "max_source: expected room"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"num_beam": 3}, "there is no option 'num_beam'; did you mean 'num_beams'"),
        ({"min_length": 100}, r"min_length: expected 0 to 64 \(max_target\), got 100"),
        ({"no_repeat_ngram": -1}, r"no_repeat_ngram: expected 0 \(off\) or more, got -1"),
        ({"num_beams": 0}, "num_beams: expected 1 or more"),
    ],
)
def test_impossible_options_are_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=f"seq2seq: {message}"):
        make(tokenizer, **options)


def test_a_missing_package_is_named(tokenizer, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    task = make(tokenizer, max_target=2)
    with pytest.raises(MissingExtra, match=r'pip install "glm_ext\[eval\]"'):
        task.metrics(model, [task.pair("one", "two")])
    with pytest.raises(MissingExtra, match=r'pip install "glm_ext\[eval\]"'):
        make(tokenizer, max_target=2, model_config=model.config)
