import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from glm_ext.cli import finetune, main
from glm_ext.train import load_checkpoint, load_model
from glm_ext.train.finetune_config import FinetuneConfig


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Options of a finetuning run of a second or two: say which animal the sentence is about."""
    folder = tmp_path_factory.mktemp("pairs")
    animals = ["cat", "dog", "horse"]
    for name in ("train", "valid"):
        rows = [{"source": f"The {animal} sees another child.", "target": animal} for animal in animals]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *(
            "--task",
            "seq2seq",
            "--train",
            str(folder / "train.jsonl"),
            "--valid",
            str(folder / "valid.jsonl"),
        ),
        *("--options.max_source", "32", "--options.max_target", "6", "--options.num_beams", "2"),
        *(
            "--epochs",
            "20",
            "--eval_every",
            "8",
            "--batch_size",
            "2",
            "--optim.lr",
            "1e-2",
            "--dropout",
            "0.1",
            "--threads",
            "1",
        ),
    ]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, finished, files):
    """A run that went through."""
    run = tmp_path_factory.mktemp("runs") / "tuned"
    assert main(["finetune", str(finished), *files, "--out", str(run)]) == 0
    return run


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


def test_run_folder_holds_everything(tuned, finished, capsys):
    assert {path.name for path in tuned.iterdir()} == {
        *("config.yaml", "tokenizer.json", "data.json", "metrics.jsonl", "tb", "step-32", "step-40", "best")
    }
    config = FinetuneConfig.from_yaml(tuned / "config.yaml")
    assert (config.source, config.task, config.options["num_beams"]) == (str(finished), "seq2seq", 2)
    losses = [row["loss"] for row in rows(tuned) if "loss" in row]
    assert len(losses) == 40 and losses[-1] < losses[0]
    scores = [row for row in rows(tuned) if "valid/rougeL" in row]
    assert [row["step"] for row in scores] == [8, 16, 24, 32, 40]
    best = load_checkpoint(tuned / "best")[0].state["best"]
    assert best["metrics"]["rougeL"] == max(row["valid/rougeL"] for row in scores) > 0


def test_the_best_model_is_ready_for_use(tuned, capsys):
    model, _ = load_model(tuned / "best")
    assert model.config.hidden_dropout == 0.1
    assert main(["fill", str(tuned / "best"), "The cat sees another child. [sMASK]"]) == 0


def test_it_says_what_came_out(tmp_path, finished, files, capsys):
    assert main(["finetune", str(finished), *files, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "task   seq2seq, 3 examples, 3 to validate" in printed
    assert re.search(r"best   step 2: rouge1 \d+\.\d{4}  .*exact_match", printed)
    assert f"model  {tmp_path / 'run' / 'best'}" in printed


def test_a_pattern_may_begin_with_its_blank(tmp_path, finished, files):
    """In YAML it would be a list and then a text, which is none."""
    run, pattern = tmp_path / "run", "[sMASK] Content: {source}"
    options = [*files, "--epochs", "1", "--options.pattern", pattern]
    assert main(["finetune", str(finished), *options, "--out", str(run)]) == 0
    assert FinetuneConfig.from_yaml(run / "config.yaml").options["pattern"] == pattern


def test_the_examples_to_learn_from_follow_from_the_seed(tmp_path, finished):
    """ReCoRD draws wrong entities for training; the validation file is asked as it is."""
    entities = [{"start": number, "end": number} for number in range(20)]
    answers = [entities[7] | {"text": "h"}]
    line = {
        "passage": {"text": "abcdefghijklmnopqrst", "entities": entities},
        "qas": [{"query": "It was @placeholder.", "answers": answers}],
    }
    file = tmp_path / "record.jsonl"
    file.write_text(json.dumps(line))
    options = [str(finished), "--task", "record", "--train", str(file), "--valid", str(file)]
    choices = []
    for number, seed in enumerate((1, 1, 2)):
        run = tmp_path / str(number)
        job = finetune.prepare(*finetune.parse([*options, "--seed", str(seed), "--out", str(run)]))
        choices.append([question.texts for question in job.train])
        assert [question.texts for question in job.valid] == [[*"abcdefghijklmnopqrst"]]
    assert len(choices[0][0]) == 10 and choices[0] == choices[1] != choices[2]


def test_from_scratch_has_the_sizes_and_not_the_weights(tmp_path, finished, files):
    options = [*files, "--epochs", "1", "--optim.lr", "1e-30"]
    models = {}
    for name, extra in (("pretrained", []), ("scratch", ["--from_scratch", "--seed", "7"])):
        assert main(["finetune", str(finished), *options, *extra, "--out", str(tmp_path / name)]) == 0
        models[name] = load_checkpoint(tmp_path / name)[0].model
    source = load_checkpoint(finished)[0].model
    assert models["scratch"].keys() == models["pretrained"].keys() == source.keys()
    table = "word_embeddings.weight"
    torch.testing.assert_close(models["pretrained"][table], source[table])
    assert models["scratch"][table].shape == source[table].shape
    assert (models["scratch"][table] - source[table]).abs().max() > 0.01


def test_killed_and_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, finished, files, tuned):
    """Killed by SIGKILL in the middle of an epoch, with dropout."""
    run = tmp_path / "run"
    code = """
import os, signal, sys
from glm_ext.cli import main
from glm_ext.train.finetune import Finetuner
step = Finetuner.step
def last(self):
    step(self)
    if self.steps_taken == 19:
        os.kill(os.getpid(), signal.SIGKILL)
Finetuner.step = last
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", code, "finetune", str(finished), *files, "--out", str(run)]
    child = subprocess.run(command, timeout=120, check=False, stdout=subprocess.DEVNULL)
    assert child.returncode == -signal.SIGKILL
    assert load_checkpoint(run)[1].name == "step-16"
    assert main(["finetune", "--resume", str(run)]) == 0
    for folder in ("", "best"):
        one, other = load_checkpoint(tuned / folder)[0], load_checkpoint(run / folder)[0]
        assert one.state == other.state and torch.equal(one.rng, other.rng)
        assert all(torch.equal(one.model[name], other.model[name]) for name in one.model)
    times = {"examples_per_second", "peak_memory"}
    timeless = [[{k: v for k, v in row.items() if k not in times} for row in rows(r)] for r in (tuned, run)]
    assert timeless[0] == timeless[1]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(tmp_path, tuned, capsys):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    weights = run / "step-40" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["finetune", "--resume", str(run)]) == 0
    said = capsys.readouterr().err
    assert re.search("step-40: model.safetensors has .* an older checkpoint is used", said)
    one, other = load_checkpoint(tuned)[0], load_checkpoint(run)[0]
    assert one.state == other.state
    assert all(torch.equal(one.model[name], other.model[name]) for name in one.model)


def test_a_run_stopped_before_its_first_checkpoint_begins_again(tmp_path, tuned, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tuned / "config.yaml", run)
    assert main(["finetune", "--resume", str(run)]) == 0
    assert "begins at step 0 again" in capsys.readouterr().err
    one, other = load_checkpoint(tuned)[0], load_checkpoint(run)[0]
    assert one.state == other.state and torch.equal(one.rng, other.rng)


def refused(capsys, arguments):
    """The one line that the command says, and that its exit code is 2."""
    capsys.readouterr()
    assert main(["finetune", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("glm-ext: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epoch", "3"], r"no setting 'epoch'; did you mean 'epochs'\?"),
        (["--task", "seq3seq"], "seq3seq"),
        (["--options.num_beam", "3"], r"no option 'num_beam'; did you mean 'num_beams'\?"),
        (["--options.max_target", "5000"], r"max_target: expected 1 to \d+ for this model"),
        (["--options.max_source", "257"], r"max_source: expected 8 to 256 for this model"),
        (["--options.max_source", "abc"], "max_source: expected a whole number, got 'abc'"),
        (["--options.pattern", "3"], "pattern: expected a text, got 3"),
        (["--train", ""], "train: expected a file of examples"),
        (["--train", "/no/such/file.jsonl"], "/no/such/file.jsonl"),
        (["--epochs", "0"], "epochs: expected at least 1, got 0"),
        (["--source", "/no/such/run"], "/no/such/run: there is no such folder"),
    ],
)
def test_wrong_option_is_one_line(tmp_path, finished, files, capsys, options, message):
    error = refused(capsys, ["--source", str(finished), *files, "--out", str(tmp_path / "run"), *options])
    assert re.search(message, error)
    assert not (tmp_path / "run").exists()


def test_a_file_without_examples_is_refused(tmp_path, finished, files, capsys):
    (tmp_path / "empty.jsonl").write_text("\n")
    arguments = [str(finished), *files, "--valid", str(tmp_path / "empty.jsonl")]
    assert "empty.jsonl: expected at least one example" in refused(capsys, arguments)


@pytest.mark.parametrize("unlabelled", ["train", "valid"])
@pytest.mark.parametrize("task", ["cloze", "head"])
def test_examples_without_labels_are_refused(tmp_path, finished, capsys, task, unlabelled):
    (tmp_path / "t.yaml").write_text('pattern: "{text} [MASK]"\nverbalizer: {a: cat, b: dog}\n')
    for name in ("train", "valid"):
        field = "lable" if name == unlabelled else "label"
        (tmp_path / f"{name}.csv").write_text(f"text,{field}\nThe cat,a\n")
    files = [option for n in ("train", "valid") for option in (f"--{n}", str(tmp_path / f"{n}.csv"))]
    options = ["--task", task, "--options.description", str(tmp_path / "t.yaml"), *files]
    error = refused(capsys, [str(finished), *options, "--out", str(tmp_path / "run")])
    assert f"{unlabelled}.csv, line 2: there is no field 'label'; there are text, lable" in error
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_may_have_another_rate(tmp_path, tuned):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    assert main(["finetune", "--resume", str(run), "--optim.lr", "1e-7"]) == 0
    before, config = (FinetuneConfig.from_yaml(folder / "config.yaml") for folder in (tuned, run))
    assert config == dataclasses.replace(before, optim=dataclasses.replace(before.optim, lr=1e-7))


def test_existing_folder_and_other_settings_are_refused(tuned, finished, files, capsys):
    assert "--resume" in refused(capsys, [str(finished), *files, "--out", str(tuned)])
    assert "leave out --epochs" in refused(capsys, ["--resume", str(tuned), "--epochs", "7"])


def test_a_run_of_the_other_command_is_told_apart(tuned, finished, capsys):
    assert f"glm-ext pretrain --resume {finished}" in refused(capsys, ["--resume", str(finished)])
    assert main(["pretrain", "--resume", str(tuned)]) == 2
    assert f"glm-ext finetune --resume {tuned}" in capsys.readouterr().err


def test_resume_on_other_examples_is_refused(tmp_path, finished, files, capsys):
    options = list(files)
    train = tmp_path / "train.jsonl"
    train.write_text('{"source": "The cat sees", "target": "cat"}\n')
    options[options.index("--train") + 1] = str(train)
    assert main(["finetune", str(finished), *options, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    train.write_text('{"source": "The dog sees", "target": "dog"}\n')
    assert "train.jsonl changed since the run began" in refused(capsys, ["--resume", str(tmp_path / "run")])


def test_resume_with_another_description_is_refused(tmp_path, finished, capsys):
    description, data, run = tmp_path / "t.yaml", tmp_path / "a.csv", tmp_path / "run"
    description.write_text('pattern: "{text} [MASK]"\nverbalizer: {a: cat, b: dog}\n')
    data.write_text("text,label\nThe cat,a\n")
    files = ["--train", str(data), "--valid", str(data), "--epochs", "1", "--out", str(run)]
    options = ["--task", "cloze", "--options.description", str(description), *files]
    assert main(["finetune", str(finished), *options]) == 0
    assert main(["finetune", "--resume", str(run)]) == 0
    description.write_text(description.read_text().replace("[MASK]", "or [MASK]"))
    assert "t.yaml changed since the run began" in refused(capsys, ["--resume", str(run)])
    recorded = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({name: recorded[name] for name in ("train", "valid")}))
    assert main(["finetune", "--resume", str(run)]) == 0  # of an earlier version
    (run / "data.json").write_text("{}")
    assert "data.json: broken; expected train, valid" in refused(capsys, ["--resume", str(run)])


@pytest.mark.parametrize("task", ["cloze", "head"])
def test_what_was_learned_is_what_is_evaluated(tmp_path, finished, capsys, task):
    """From the command line to the last metric; a head's own layers go the same way as the model's."""
    description, data, report = tmp_path / "animals.yaml", tmp_path / "data.jsonl", tmp_path / "report.json"
    description.write_text(
        'pattern: "{text} It is a [MASK]."\nverbalizer: {"0": cat, "1": dog}\nshorten: [text]\n'
    )
    rows = [
        {"text": f"The {animal} sees another {other}.", "label": label}
        for label, animal in enumerate(["cat", "dog"])
        for other in ("child", "sailor", "baker", "farmer")
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--task", task, "--options.description", str(description)]
    training = ["--train", str(data), "--valid", str(data), "--epochs", "40", "--eval_every", "20"]
    recipe = ["--batch_size", "4", "--optim.lr", "1e-2", "--threads", "1", "--dropout", "0"]
    run = tmp_path / "run"
    assert main(["finetune", str(finished), *options, *training, *recipe, "--out", str(run)]) == 0
    kept = load_checkpoint(run / "best")[0]
    assert (kept.head is not None) == (task == "head")
    assert kept.state["best"]["metrics"]["accuracy"] > 60
    assert main(["evaluate", str(run / "best"), *options, "--data", str(data), "--out", str(report)]) == 0
    assert json.loads(report.read_text())["metrics"] == pytest.approx(kept.state["best"]["metrics"])
    if task == "head":
        description.write_text(
            description.read_text().replace('{"0": cat, "1": dog}', '{"1": dog, "0": cat}')
        )
        assert main(["evaluate", str(run / "best"), *options, "--data", str(data)]) == 2
        error = capsys.readouterr().err
        assert "labels of the head are 0, 1, in this order; those of the task are 1, 0" in error
