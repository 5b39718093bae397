"""Likelihoods against their definitions, one token at a time."""

import json
import math

import pytest
import torch

from glm_ext import GLM, GLMConfig
from glm_ext.data.tokenizer import GLMTokenizer
from glm_ext.tasks import load_task
from glm_ext.tasks.likelihood import continuation

from ..generate.models import logits_by_definition

TEXT = "the cat sat on the mat and the dog ran to the house because it was late"


def cost(glm, part_a, place, written, scored):
    """-log p of the last `scored` tokens written into a blank, one prediction at a time."""
    total = 0.0
    for i in range(len(written) - scored, len(written)):
        logits = logits_by_definition(glm, part_a, [(place, written[:i])])
        total -= float(logits.log_softmax(0)[written[i]])
    return total


def expected_nll(glm, ids, context, answer, mask, unidirectional):
    part_a = [ids.cls, *([] if unidirectional else context), mask]
    place = len(part_a) - 1
    if mask != ids.gmask and not unidirectional:
        part_a.append(ids.eos)
    written = [ids.sop, *(context if unidirectional else []), *answer]
    return cost(glm, part_a, place, written, len(answer))


@pytest.mark.parametrize("mask", ["mask", "gmask"])
@pytest.mark.parametrize("unidirectional", [False, True])
def test_a_continuation_costs_what_its_tokens_cost(glm, tokenizer, mask, unidirectional):
    context, answer = tokenizer.encode("the cat sat"), tokenizer.encode(" on the mat")
    example = continuation(tokenizer, context, answer, mask=mask, unidirectional=unidirectional)

    class Holder:
        blocks = example

    task = load_task("last_word", tokenizer)
    [found] = task.nll(glm, [Holder])
    truth = expected_nll(glm, tokenizer.ids, context, answer, getattr(tokenizer.ids, mask), unidirectional)
    assert found == pytest.approx(truth, rel=1e-4)
    loss = float(task.loss(glm.eval(), [Holder]).detach())
    assert loss == pytest.approx(truth / len(answer), rel=1e-4)


@pytest.mark.parametrize("unidirectional", [False, True])
def test_last_words(glm, tokenizer, write, unidirectional):
    path = write("a.jsonl", json.dumps({"text": TEXT}) + "\n" + json.dumps({"text": "it was not  late."}))
    task = load_task("last_word", tokenizer, unidirectional=unidirectional, eval_batch_size=1)
    examples = task.examples(path)
    right, total = [], 0.0
    for context, word in ((TEXT.rpartition(" ")[0], " late"), ("it was not", " late.")):
        context, answer = tokenizer.encode(context), tokenizer.encode(word)
        total += expected_nll(glm, tokenizer.ids, context, answer, tokenizer.mask_id, unidirectional)
        part_a = [tokenizer.cls_id, *([] if unidirectional else context), tokenizer.mask_id]
        place = len(part_a) - 1
        part_a += [] if unidirectional else [tokenizer.eos_id]
        fed, guess = [tokenizer.sop_id, *(context if unidirectional else [])], []
        for token in answer:
            guess.append(int(logits_by_definition(glm, part_a, [(place, fed)]).argmax()))
            fed.append(token)
        right.append(guess == answer)
    metrics = task.metrics(glm, examples)
    assert task.primary in metrics and task.module is None
    assert metrics["log_likelihood"] == pytest.approx(-total / 2, rel=1e-4)
    assert metrics["accuracy"] == 100 * sum(right) / 2


def test_last_words_are_judged_in_one_pass(glm, tokenizer, write, monkeypatch):
    task, passes = load_task("last_word", tokenizer), []
    examples = task.examples(write("a.jsonl", json.dumps({"text": TEXT})))
    run = GLM.hidden_and_head
    monkeypatch.setattr(GLM, "hidden_and_head", lambda *a, **k: passes.append(1) or run(*a, **k))
    task.metrics(glm, examples)
    assert passes == [1]


def test_a_model_learns_last_words(glm, tokenizer, write):
    texts = [f"the {animal} sat on the {place}" for animal, place in (("cat", "mat"), ("dog", "house")) * 2]
    task = load_task("last_word", tokenizer)
    examples = task.examples(write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts)))
    optimizer = torch.optim.AdamW(glm.parameters(), lr=3e-3)
    for _ in range(50):
        optimizer.zero_grad()
        task.loss(glm, examples).backward()
        optimizer.step()
    assert task.metrics(glm, examples)["accuracy"] == 100.0


def test_a_last_word_that_the_vocabulary_lacks_is_never_right(write):
    """However sure the model is that some unknown word comes."""
    words = GLMTokenizer.train(["the cat sat"] * 3, 40, "wordpiece")
    task = load_task("last_word", words)
    examples = task.examples(write("a.jsonl", json.dumps({"text": "the cat zzz"})))
    assert words.ids.unk in examples[0].blocks.targets
    model = GLM(GLMConfig.preset("tiny", vocab_size=words.vocab_size))
    sure = torch.eye(words.vocab_size)[words.ids.unk]
    model.logits = lambda hidden: sure.expand(len(hidden), -1)
    assert task.metrics(model, examples)["accuracy"] == 0.0


@pytest.mark.parametrize("unidirectional", [False, True])
def test_perplexity_scores_every_token_but_the_first_once(glm, tokenizer, write, unidirectional):
    task = load_task("perplexity", tokenizer, window=8, stride=3, unidirectional=unidirectional)
    tokens = tokenizer.encode(TEXT)
    examples = task.examples(write("a.txt", TEXT + "\n"))
    scored = [e.blocks.targets[e.blocks.loss_mask > 0].tolist() for e in examples]
    assert [token for part in scored for token in part] == tokens[1:]
    assert [len(part) for part in scored][:2] == [7, 3]
    total, begin = 0.0, 1
    for part in scored:
        end = begin + len(part)
        context = tokens[max(0, end - 8) : begin]
        assert len(context) == (1 if begin == 1 else 8 - len(part))
        total += expected_nll(glm, tokenizer.ids, context, part, tokenizer.gmask_id, unidirectional)
        begin = end
    metrics = task.metrics(glm, examples)
    assert task.primary in metrics
    assert metrics["perplexity"] == pytest.approx(math.exp(total / (len(tokens) - 1)), rel=1e-4)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(total / len(TEXT.split())), rel=1e-4)
    assert metrics["log_likelihood"] == pytest.approx(-total / (len(tokens) - 1), rel=1e-4)


def test_a_perplexity_beyond_all_floats_is_infinite(glm, tokenizer, write):
    task = load_task("perplexity", tokenizer, model_config=glm.config)
    path = write("a.txt", "x" * 200)
    metrics = task.metrics(glm, task.examples(path))
    assert metrics["word_perplexity"] == math.inf > metrics["perplexity"]
    for name in ("perplexity", "infill"):
        task = load_task(name, tokenizer)
        examples = task.examples(write("a.jsonl", json.dumps({"text": TEXT})))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task, "nll", lambda model, examples: [1e6])
            assert task.metrics(glm, examples)["perplexity"] == math.inf


def test_a_character_of_chinese_counts_as_a_word(glm, tokenizer, write):
    task, text = load_task("perplexity", tokenizer, model_config=glm.config), "猫は庭にいる" * 20
    examples = task.examples(write("a.txt", text))
    metrics = task.metrics(glm, examples)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(sum(task.nll(glm, examples)) / len(text)))


@pytest.mark.parametrize("name", ["a.txt", "A.TXT"])
def test_a_text_file_is_read_as_other_files_are(tokenizer, tmp_path, name):
    """Without its byte order mark, and by name where it cannot be read."""
    task, path = load_task("perplexity", tokenizer), tmp_path / name
    path.write_bytes(b"\xef\xbb\xbfthe cat sat")
    [marked] = task.examples(path)
    path.write_bytes(b"the cat sat")
    [plain] = task.examples(path)
    assert marked.blocks.targets.tolist() == plain.blocks.targets.tolist()
    path.write_bytes(b"the cat\n\xff sat")
    with pytest.raises(ValueError, match=f"{name}, line 2: not UTF-8"):
        task.examples(path)


def test_gaps_restore_to_their_text(tokenizer, write):
    texts = [TEXT, "cat", "it  was\nlate [MASK] yes", TEXT * 3]
    task = load_task("infill", tokenizer, ratio=0.4, max_length=80)
    examples = task.examples(write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts)))
    ids = tokenizer.ids
    for text, example in zip(texts, examples, strict=True):
        blocks, prompt = example.blocks, example.prompt
        targets = blocks.targets[blocks.prefix_len :].tolist()
        spans, span = [], []
        for token in targets:
            if token == ids.eop:
                spans.append(span)
                span = []
            else:
                span.append(token)
        assert [tokenizer.decode(s).strip() for s in spans] == example.answers and spans
        assert prompt.tokens == blocks.tokens[: blocks.prefix_len].tolist()
        filling, whole = iter(spans), []
        for token in prompt.tokens:
            whole += next(filling) if token == ids.mask else [token]
        restored = tokenizer.decode(whole)
        assert restored == text or (len(whole) <= 80 and text.startswith(restored) and len(text) > 150)
    again = load_task("infill", tokenizer, ratio=0.4, max_length=80).examples(
        write("b.jsonl", json.dumps({"text": TEXT}))
    )
    other = load_task("infill", tokenizer, ratio=0.4, seed=1).examples(
        write("b.jsonl", json.dumps({"text": TEXT}))
    )
    assert again[0].answers == examples[0].answers != other[0].answers


def whole_length(gaps):
    """Tokens of the text with its gaps filled: each blank has one in Part A, and one that ends it."""
    return gaps.blocks.prefix_len + int(gaps.blocks.loss_mask.sum()) - 2 * len(gaps.answers)


def test_a_text_without_white_space_has_gaps_too(glm, tokenizer, write):
    """In Chinese and Japanese every character is a word; elsewhere a word that is too long is cut."""
    task = load_task("infill", tokenizer, model_config=glm.config, ratio=0.4)
    texts = ["猫は庭にいる。" * 100, "x" * 601]
    cut, long = task.examples(write("a.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in texts)))
    assert len(cut.answers) > 5 and all(answer in texts[0] for answer in cut.answers)
    assert len(long.answers) == 1 and 20 < len(long.answers[0]) < 200
    assert whole_length(cut) <= 128 and whole_length(long) <= 128
    assert task.metrics(glm, [cut, long])["exact"] < 100


def test_max_length_holds_where_words_have_more_tokens_together(tokenizer, monkeypatch):
    task, apart = load_task("infill", tokenizer, ratio=0.3, max_length=40), tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: apart(text) * (1 + (" " in text.strip())))
    [gaps] = task._example({"text": TEXT})
    assert 30 < whole_length(gaps) <= 40


def test_gaps_are_as_many_as_asked_for(tokenizer):
    task = load_task("infill", tokenizer, ratio=0.3)
    total = missing = 0
    for number in range(200):
        [gaps] = task._example({"text": f"{number} {TEXT}"})
        total += len(TEXT.split()) + 1
        missing += sum(len(answer.split()) for answer in gaps.answers)
    deviation = (0.3 * 0.7 / total) ** 0.5
    assert abs(missing / total - 0.3) < 5 * deviation


def test_infilling_is_judged_by_what_is_written(glm, tokenizer, write):
    texts = [f"the {animal} sat on the mat" for animal in ("cat", "dog")]
    task = load_task("infill", tokenizer, ratio=0.3, eval_batch_size=1)
    examples = task.examples(write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts)))
    before = task.metrics(glm, examples)
    optimizer = torch.optim.AdamW(glm.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(glm, examples).backward()
        optimizer.step()
    after = task.metrics(glm, examples)
    assert task.primary in after
    assert before["exact"] < 100.0 == after["exact"] and after["perplexity"] < 2 < before["perplexity"]
    targets = sum(int(example.blocks.loss_mask.sum()) for example in examples)
    assert after["log_likelihood"] == pytest.approx(-sum(task.nll(glm, examples)) / targets)


@pytest.mark.parametrize(
    ("name", "options", "text", "message"),
    [
        ("last_word", {}, {"text": "word"}, "a.jsonl, line 1: text: expected two words or more, got 'word'"),
        ("last_word", {}, {"txt": "a b"}, 'a.jsonl, line 1: expected a text in the field "text", got None'),
        (
            "last_word",
            {"mask": "MASK"},
            {},
            r"mask: expected one of \[MASK\], .* got 'MASK'",
        ),
        ("perplexity", {}, {"text": "."}, "a.jsonl, line 1: text: expected two tokens or more, got '.'"),
        ("perplexity", {"stride": 256}, {}, "stride: expected 1 to 255, less than window, got 256"),
        ("infill", {"ratio": 0.0}, {}, "ratio: expected 0 < ratio <= 1, got 0.0"),
        ("infill", {"eval_batch_size": 0}, {}, "eval_batch_size: expected 1 or more, got 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(tokenizer, write, name, options, text, message):
    path = write("a.jsonl", json.dumps(text))
    with pytest.raises(ValueError, match=message):
        load_task(name, tokenizer, **options).examples(path)
