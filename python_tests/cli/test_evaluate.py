"""glm-ext evaluate, on a model of a few steps."""

import json

import pytest
from safetensors.torch import save_file

from glm_ext.cli import main
from glm_ext.tasks import load_task
from glm_ext.train import checkpoint as checkpoint_module
from glm_ext.train.load import load_model


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    assert main(["pretrain", *small_run, "--run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rte.jsonl"
    record = {"premise": "The cat sees a dog.", "hypothesis": "The dog is seen.", "label": "entailment"}
    path.write_text("".join(json.dumps(record | {"premise": f"The {n} cats."}) + "\n" for n in range(3)))
    return path


def test_it_prints_and_writes_the_metrics(run, data, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["evaluate", str(run), "--task", "rte", "--data", str(data), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    model, tokenizer = load_model(run)
    task = load_task("rte", tokenizer)
    expected = task.metrics(model, task.examples(data))
    assert printed.startswith("rte: 3 examples") and f"accuracy  {expected['accuracy']:.4f}" in printed
    assert json.loads(out.read_text())["metrics"] == expected


def test_options_of_a_task(run, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The cat sees another dog near the old house every single day. " * 5)
    options = ["--options.window", "32", "--options.stride", "8", "--options.unidirectional", "true"]
    assert main(["evaluate", str(run), "--task", "perplexity", "--data", str(text), *options]) == 0
    printed = capsys.readouterr().out
    model, tokenizer = load_model(run)
    task = load_task("perplexity", tokenizer, window=32, stride=8, unidirectional=True)
    expected = task.metrics(model, task.examples(text))
    assert f"\nperplexity       {expected['perplexity']:.4f}" in printed


def test_a_report_is_json_that_others_read(run, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "report.json"
    text.write_text("x" * 400)
    assert main(["evaluate", str(run), "--task", "perplexity", "--data", str(text), "--out", str(out)]) == 0
    assert json.loads(out.read_text(), parse_constant=pytest.fail)["metrics"]["word_perplexity"] is None


def test_a_head_comes_from_the_checkpoint(run, data, monkeypatch, capsys):
    arguments = ["--task", "head", "--data", str(data), "--options.description", "rte"]
    assert main(["evaluate", str(run), *arguments]) == 2
    assert "holds no head for rte-head; train one" in capsys.readouterr().err
    model, tokenizer = load_model(run)
    task = load_task("head", tokenizer, description="rte", hidden_size=model.config.hidden_size)
    [checkpoint] = run.glob("step-*")
    save_file(task.module.state_dict(), checkpoint / "head.safetensors")
    reads = []
    monkeypatch.setattr(checkpoint_module, "find_damage", lambda path: reads.append(path))
    assert main(["evaluate", str(run), *arguments]) == 0
    assert reads == [checkpoint]  # hashed and read once
    expected = task.metrics(model, task.examples(data))
    assert f"accuracy  {expected['accuracy']:.4f}" in capsys.readouterr().out
    (checkpoint / "head.safetensors").unlink()


@pytest.mark.parametrize("options", [["--task", "rte"], ["--task", "head", "--options.description", "rte"]])
def test_what_was_finetuned_can_be_evaluated(run, data, tmp_path, capsys, options):
    out = tmp_path / "tuned"
    files = ["--train", str(data), "--valid", str(data), "--out", str(out)]
    arguments = [*options, *files, "--epochs", "2", "--batch_size", "2", "--threads", "1"]
    assert main(["finetune", str(run), *arguments]) == 0
    capsys.readouterr()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    best = max(row["valid/accuracy"] for row in rows if "valid/accuracy" in row)
    assert main(["evaluate", str(out / "best"), *options, "--data", str(data)]) == 0
    assert f"accuracy  {best:.4f}" in capsys.readouterr().out


def test_without_labels_there_is_nothing_to_judge(run, tmp_path, capsys):
    path = tmp_path / "test.jsonl"
    path.write_text('{"premise": "The cat.", "hypothesis": "A cat."}\n')
    assert main(["evaluate", str(run), "--task", "rte", "--data", str(path)]) == 2
    assert "test.jsonl, line 1: there is no field 'label'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "DATA"], "--task is missing"),
        (["--task", "rte"], "--data is missing"),
        (["--task", "rtee", "--data", "DATA"], "there is no 'rtee'; did you mean 'rte'"),
        (["--task", "rte", "--data", "/no/such.jsonl"], "/no/such.jsonl"),
        (["--task", "boolq", "--data", "DATA"], "line 1: there is no field 'passage'"),
        (["--task", "rte", "--data", "DATA", "--options.max_lenght", "9"], "did you mean 'max_length'"),
        (["--task", "rte", "--data", "DATA", "--options.max_length", "300"], "max_length: expected 8 to 256"),
        (["--task", "rte", "--date", "DATA"], "date"),
    ],
)
def test_mistakes_are_one_line(run, data, capsys, options, message):
    assert main(["evaluate", str(run), *(str(data) if o == "DATA" else o for o in options)]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint and complaint.count("\n") == 1
