import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch._dynamo.utils import counters

from glm_ext.cli import main, pretrain
from glm_ext.nn import Layer
from glm_ext.train import OptimConfig, TrainConfig, load_checkpoint, load_model
from glm_ext.train.trainer import Trainer


def test_run_folder_holds_everything(finished):
    assert {path.name for path in finished.iterdir()} == {
        *("config.yaml", "tokenizer.json", "data.json", "metrics.jsonl", "tb", "step-12", "loss.png")
    }
    assert {path.name for path in (finished / "step-12").iterdir()} == {
        *("model.safetensors", "config.json", "tokenizer.json", "manifest.json"),
        *("optimizer.safetensors", "rng.safetensors", "state.json"),
    }
    assert TrainConfig.from_yaml(finished / "config.yaml").steps == 12
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert [row["step"] for row in rows if "held_out_loss" in row] == [4, 8, 12]
    assert list((finished / "tb").glob("events.*"))


def test_report_has_the_losses_and_three_blanks(tmp_path, small_run, capsys):
    assert main(["pretrain", *small_run, "--steps", "2", "--run", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"held-out loss  \d\.\d{3} nats", printed)
    assert re.search(r"unigram loss   \d\.\d{3} ", printed)
    assert printed.count("[MASK]") == 4  # three blanks and the command to try
    assert len(re.findall(r"\n    model .*\n    truth  \w+", printed)) == 3
    assert f"loss curve  {tmp_path / 'run' / 'loss.png'}" in printed


@pytest.mark.parametrize(("positions", "too_long"), [(32, {0, 1, 2}), (12, {3})])
def test_a_model_of_few_positions_comes_to_its_end(tmp_path, small_run, capsys, positions, too_long):
    """A blank of the usual length does not fit into 32 positions, no sentence of 8 words into 12."""
    run = tmp_path / "run"
    overrides = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "max_positions": positions}
    options = ["--data.seq_length", str(positions), "--model.overrides", json.dumps(overrides)]
    assert main(["pretrain", *small_run, *options, "--steps", "2", "--run", str(run)]) == 0
    printed = capsys.readouterr().out
    assert (run / "loss.png").is_file() and f"loss curve  {run / 'loss.png'}" in printed
    assert printed.count("shorten it") in too_long


def test_the_last_step_is_evaluated_once(tmp_path, small_run, monkeypatch):
    looks = []
    loss = Trainer._loss
    monkeypatch.setattr(Trainer, "_loss", lambda self, batches: looks.append(batches) or loss(self, batches))
    assert main(["pretrain", *small_run, "--steps", "2", "--run", str(tmp_path / "run")]) == 0
    assert len(looks) == 1
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0  # nothing is left to do but to report
    assert len(looks) == 2


def test_trained_model_fills_blanks(finished, capsys):
    assert main(["fill", str(finished), "The [MASK] sees another [MASK].", "--max_length", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("The") and "[MASK]" not in printed
    model, tokenizer = load_model(finished)
    assert not model.training and model.config.vocab_size >= tokenizer.vocab_size


def test_config_file_and_overrides(tmp_path, small_run, capsys):
    (tmp_path / "c.yaml").write_text("steps: 7\noptim:\n  lr: 1e-4\n")
    arguments = ["pretrain", "--config", str(tmp_path / "c.yaml"), *small_run, "--steps", "1"]
    assert main([*arguments, "--run", str(tmp_path / "run")]) == 0
    config = TrainConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert (config.steps, config.optim.lr) == (1, 1e-4)


def test_several_objectives_are_mixed_and_evaluated_one_by_one(tmp_path, small_run, capsys):
    run = tmp_path / "run"
    options = ["--data.objectives.document", "1", "--data.objectives.sentence", "0.5", "--steps", "8"]
    assert main(["pretrain", *small_run, *options, "--run", str(run)]) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    evaluated = [row for row in rows if "held_out_loss" in row]
    assert [row["step"] for row in evaluated] == [4, 8]
    names = ("token", "document", "sentence")
    for row in evaluated:
        assert row.keys() == {"step", "held_out_loss", *(f"held_out_loss/{name}" for name in names)}
        assert len(set(row.values())) == 5  # different examples have different losses
    for name in names:
        assert f"{name} {evaluated[-1][f'held_out_loss/{name}']:.4f}" in printed
        assert re.search(rf"^  {name} +{evaluated[-1][f'held_out_loss/{name}']:.3f}$", printed, re.MULTILINE)


def test_packed_batches_train_and_resume(tmp_path, small_run, capsys):
    run = tmp_path / "run"
    options = ["--data.packing", "true", "--data.token_budget", "200", "--save_every", "2"]
    assert main(["pretrain", *small_run, *options, "--steps", "4", "--run", str(run)]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    tokens = [row["tokens"] for row in rows if "loss" in row]
    assert all(0.9 * 200 < after - before <= 200 for before, after in pairwise([0, *tokens]))
    assert main(["pretrain", "--resume", str(run), "--steps", "5"]) == 0
    assert TrainConfig.from_yaml(run / "config.yaml").data.token_budget == 200


@pytest.mark.parametrize("packing", ["true", "false"])
def test_an_objective_that_the_text_cannot_serve_is_named(tmp_path, small_run, capsys, packing):
    """Words and no end marks: a run would have stopped at the first step that draws a sentence in vain."""
    words = ["the", "cat", "sees", "another", "dog", "near", "old", "house", "every", "single", "day"]
    (tmp_path / "text").mkdir()
    for number in range(30):
        text = " ".join(words[number * step % len(words)] for step in range(1, 900))
        (tmp_path / "text" / f"{number}.txt").write_text(text)
    options = [*small_run, "--data.path", str(tmp_path / "text"), "--run", str(tmp_path / "run")]
    mixed = ["--data.objectives.sentence", "1", "--data.packing", packing]
    message = refused(capsys, ["pretrain", *options, *mixed])
    assert "data.objectives.sentence: expected a text that it finds blanks in, but only" in message
    assert not (tmp_path / "run").exists()


def test_a_run_on_plain_torch_has_the_losses_of_the_kernels(tmp_path, small_run):
    """Same weights, batches and dropout bits: other bits would move a loss in its second digit."""
    losses = {}
    for backend in ("fused", "eager"):
        run = tmp_path / backend
        job = pretrain.prepare(*pretrain.parse([*small_run, "--backend", backend, "--run", str(run)]))
        assert {layer.backend for layer in job.model.modules() if isinstance(layer, Layer)} == {backend}
        assert pretrain.train(job) == 0
        rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
        losses[backend] = [row["loss"] for row in rows if "loss" in row]
    assert len(losses["eager"]) == 12
    assert losses["eager"] == pytest.approx(losses["fused"], rel=1e-5)


def test_no_document_of_a_packed_batch_sees_another(tmp_path, small_run):
    options = [*small_run, "--data.packing", "true", "--run", str(tmp_path / "run")]
    job = pretrain.prepare(*pretrain.parse(options))
    for batch in [*job.train.take(3), *job.held_out]:
        assert (batch.tokens == job.tokenizer.cls_id).sum() == len(batch.prefix_len) > 1
        assert batch.num_tokens <= 4 * 32


def start(arguments):
    """The command as a child process; what the machine's own threads do stays out of the way."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "glm_ext.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # a process group of its own, as in a terminal
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_says_how_to_go_on(tmp_path, small_run, finished, number):
    """Stopped somewhere after step 3, and resumed. Ctrl-C reaches the worker too, SIGTERM does not."""
    run = tmp_path / "a run"  # the space must survive in the printed command
    child = start(["pretrain", *small_run, "--workers", "1", "--steps", "100000", "--run", str(run)])
    for line in child.stdout:
        if line.startswith("step 3/"):
            (os.killpg if number == signal.SIGINT else os.kill)(child.pid, number)
            break
    printed = child.communicate(timeout=60)[0]
    assert child.returncode == 128 + number
    stopped_at = int(re.search(rf"stopped by {number.name}, saved at step (\d+); go on with:", printed)[1])
    assert printed.splitlines()[-1] == f"  glm-ext pretrain --resume '{run}'"
    assert load_checkpoint(run)[1].name == f"step-{stopped_at}"

    assert main(["pretrain", "--resume", str(run), "--steps", str(stopped_at + 2)]) == 0
    assert load_checkpoint(run)[0].state["step"] == stopped_at + 2


KILLED = """
import os, signal, sys
from glm_ext.cli import main
from glm_ext.train import checkpoint, trainer

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

place, *arguments = sys.argv[1:]
Trainer = trainer.Trainer
if place == "micro batch":  # the second one of step 8
    backward, calls = trainer.Updater.backward, []
    def counted(updater, loss):
        calls.append(updater)
        return die() if len(calls) == 7 * 3 + 2 else backward(updater, loss)
    trainer.Updater.backward = counted
elif place == "step":  # between steps 7 and 8
    step = Trainer.step
    def last(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if self.steps_taken == 7:
            die()
    Trainer.step = last
else:  # while step 10 is saved: some files are written
    save = Trainer.save
    def half(self):
        if self.steps_taken == 10:
            checkpoint.file_sha256 = die
        return save(self)
    Trainer.save = half
main(arguments)
"""


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("step", []),
        pytest.param("step", ["--compile", "true"], marks=pytest.mark.slow),
        ("save", ["--precision", "bf16", "--workers", "1", "--step_tokens", "300"]),
        (
            "micro batch",
            [
                "--precision",
                "fp16",
                "--workers",
                "2",
                "--accumulation",
                "3",
                "--checkpoint_activations",
                "true",
            ],
        ),
    ],
)
def test_killed_and_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, small_run, place, options):
    """Killed by SIGKILL after its checkpoint at step 5; twelve steps are the same, with dropout."""
    arguments = ["pretrain", *small_run, *options, "--save_every", "5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    graphs = counters["stats"]["unique_graphs"]
    assert main([*arguments, "--run", str(whole)]) == 0
    assert (counters["stats"]["unique_graphs"] > graphs) == ("--compile" in options)
    command = [sys.executable, "-c", KILLED, place, *arguments, "--run", str(killed)]
    child = subprocess.run(command, timeout=300, check=False, stdout=subprocess.DEVNULL)
    assert child.returncode == -signal.SIGKILL
    assert load_checkpoint(killed)[1].name == "step-5"
    assert main(["pretrain", "--resume", str(killed)]) == 0

    assert_same_run(whole, killed)


def assert_same_run(whole, resumed):
    """The same bits in the last checkpoint, the same losses, no row twice."""
    expected, found = load_checkpoint(whole)[0], load_checkpoint(resumed)[0]
    assert expected.state == found.state and torch.equal(expected.rng, found.rng)
    for one, other in ((expected.model, found.model), (expected.optimizer, found.optimizer)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (whole, resumed)]
    losses = [[(row["step"], row["loss"]) for row in one if "loss" in row] for one in rows]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == list(range(1, 13))
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]


@pytest.mark.parametrize("lost", [[], ["tokenizer.json", "data.json"]])
def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path, small_run, finished, capsys, lost):
    """lost: what is not there yet where it is killed while the folder is filled."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, "step", "pretrain", *small_run, "--run", str(run)]
    child = subprocess.run(command, timeout=300, check=False, stdout=subprocess.DEVNULL)
    assert child.returncode == -signal.SIGKILL and not list(run.glob("step-*"))
    for name in lost:
        (run / name).unlink()
    message = refused(capsys, ["pretrain", *small_run, "--run", str(run)])
    assert f"go on with it by --resume {run}" in message
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert "begins at step 0 again" in capsys.readouterr().err
    assert_same_run(finished, run)


@pytest.mark.parametrize("broken", ["{", "{}", "[1]", '{"documents": "x", "tokens": 1, "sha256": ""}'])
def test_a_broken_record_of_the_text_is_named(tmp_path, finished, capsys, broken):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "data.json").write_text(broken)
    message = refused(capsys, ["pretrain", "--resume", str(run), "--steps", "13"])
    assert f"{run / 'data.json'}: broken; expected documents, tokens, sha256" in message
    assert TrainConfig.from_yaml(run / "config.yaml").steps == 12  # nothing was changed


def test_diverged_run_says_what_to_change(tmp_path, small_run, capsys):
    """The first step, at a rate beyond all measure, leaves weights whose loss is not finite."""
    run = str(tmp_path / "run")
    assert main(["pretrain", *small_run, "--optim.lr", "1e30", "--max_skipped", "3", "--run", run]) == 1
    complaint = capsys.readouterr().err
    assert re.search(r"3 steps in a row .* smaller optim.lr \(now 1e\+30\)", complaint)
    assert "--resume RUN --optim.lr 1e+29" in complaint
    assert main(["pretrain", "--resume", run, "--optim.lr", "1e-3"]) == 0


def test_a_resumed_run_may_have_another_rate(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = TrainConfig.from_yaml(run / "config.yaml")
    assert main(["pretrain", "--resume", str(run), "--steps", "14", "--optim.lr", "1e-7"]) == 0
    config = dataclasses.replace(before, steps=14, optim=dataclasses.replace(before.optim, lr=1e-7))
    assert TrainConfig.from_yaml(run / "config.yaml") == config
    rates = [json.loads(line).get("lr") for line in (run / "metrics.jsonl").open()]
    assert [rate <= 1e-7 for rate in rates if rate is not None] == [False] * 12 + [True] * 2


def refused(capsys, arguments):
    """The one line that the command says, and that its exit code is 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("glm-ext: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stepz", "3"], r"no setting 'stepz'; did you mean 'steps'\?"),
        (["--lr", "3"], r"no setting 'lr'; did you mean 'optim.lr'\?"),
        (["--step", "3"], r"no setting 'step'; did you mean 'steps'\?"),
        (["--steps", "many"], "steps: expected int, got many"),
        (["--compile", "maybe"], "compile: expected bool, got maybe"),
        (["--steps", "0"], "steps: expected at least 1, got 0"),
        (["--precison", "bf16"], r"no setting 'precison'; did you mean 'precision'\?"),
        (["--precision", "bf61"], "precision: expected float32, bf16 or fp16, got 'bf61'"),
        (["--model.preset", "tony"], "model.preset: expected one of tiny"),
        (["--model.overrides.hidden_dropuot", "0.1"], "did you mean 'hidden_dropout'"),
        (["--data.seq_length", "500"], "data.seq_length: expected at most 256"),
        (["--data.vocab_size", "100"], "vocab_size: expected at least 267"),
        (["--data.objectives.tokens", "1"], "did you mean 'data.objectives.token'"),
        (["--data.objectives.token", "0"], "data.objectives: expected a weight above 0"),
        (["--data.path", "/no/such/text"], "/no/such/text"),
        (["--data.token_budget", "4096"], "data.token_budget: expected null without data.packing"),
        (["--data.packing", "true", "--data.token_budget", "9"], "at least data.seq_length, 128, got 9"),
        (["--config", "/no/such/config.yaml"], "/no/such/config.yaml"),
    ],
)
def test_wrong_option_is_one_line(tmp_path, text_folder, capsys, options, message):
    error = refused(
        capsys, ["pretrain", "--data.path", str(text_folder), "--run", str(tmp_path / "run"), *options]
    )
    assert re.search(message, error)
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_a_file_is_named_with_the_file(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    for text in ("optim: 3", "compile: maybe"):
        file.write_text(text)
        key = text.split(":")[0]
        assert f"{file}: {key}: expected" in refused(capsys, ["pretrain", "--config", str(file)])
    file.write_text("steps: 3\noptim:\n  # lr: 1\n")
    config, *_ = pretrain.parse(["--config", str(file), "--optim.lr", "0.5"])
    assert (config.steps, config.optim) == (3, TrainConfig(optim=OptimConfig(lr=0.5)).optim)


@pytest.mark.parametrize("given", [["--config", "FILE"], ["--config=FILE"]])
def test_an_option_wins_over_a_file_wherever_they_stand(tmp_path, given):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("steps: 3\nbatch_size: 5\nseed: 6\nmodel:\n  overrides: {num_layers: 3, num_heads: 8}\n")
    second.write_text("seed: 7\n")
    files = [part.replace("FILE", str(file)) for file in (first, second) for part in given]
    options = ["--steps", "2", "--model.overrides.num_layers", "4"]
    for arguments in ([*files, *options], [*options, *files], [*options[:2], *files, *options[2:]]):
        config, *_ = pretrain.parse(arguments)
        assert (config.steps, config.batch_size, config.seed) == (2, 5, 7)
        assert config.model.overrides == {"num_layers": 4, "num_heads": 8}


def test_existing_folder_is_not_written_over(tmp_path, finished, small_run, capsys):
    assert "--resume" in refused(capsys, ["pretrain", *small_run, "--run", str(finished)])
    pretrain.parse([*small_run, "--run", str(tmp_path)])  # an empty one is as good as none
    (tmp_path / "letter.txt").touch()
    assert "no run; choose another" in refused(capsys, ["pretrain", *small_run, "--run", str(tmp_path)])


def test_resume_takes_no_other_settings(finished, capsys):
    arguments = ["pretrain", "--resume", str(finished), "--optim.eps", "0.1", "--batch_size", "2"]
    assert "leave out --batch_size, --optim.eps" in refused(capsys, arguments)


def test_resume_cannot_go_back(finished, capsys):
    assert "at least 12" in refused(capsys, ["pretrain", "--resume", str(finished), "--steps", "3"])


def test_resume_wants_the_run_folder(finished, capsys):
    assert "there is no such folder" in refused(capsys, ["pretrain", "--resume", "/no/such/run"])
    assert "expected the run folder" in refused(capsys, ["pretrain", "--resume", str(finished / "step-12")])


def test_resume_on_another_text_is_refused(tmp_path, small_run, capsys):
    text = tmp_path / "text"
    shutil.copytree(small_run[1], text)
    options = [*small_run, "--data.path", str(text), "--steps", "1", "--run", str(tmp_path / "run")]
    assert main(["pretrain", *options]) == 0
    (text / "new.txt").write_text("A new document that was not there before.")
    error = refused(capsys, ["pretrain", "--resume", str(tmp_path / "run"), "--steps", "2"])
    assert "the text has changed" in error


def test_fill_refuses_a_text_without_a_blank(finished, capsys):
    assert "[MASK]" in refused(capsys, ["fill", str(finished), "no blank"])
    assert "positions" in refused(capsys, ["fill", str(finished), "[MASK] " + "long " * 300])
    assert "did you mean 'top_k'" in refused(capsys, ["fill", str(finished), "[MASK]", "--topk", "3"])


def test_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert 'pip install "glm_ext[train]"' in refused(capsys, ["pretrain"])
    assert 'pip install "glm_ext[train]"' in refused(capsys, ["fill", "run", "[MASK]"])


def test_commands_are_listed_and_corrected(capsys):
    assert main([]) == 0
    assert "pretrain" in capsys.readouterr().out
    assert "did you mean 'pretrain'" in refused(capsys, ["pretrian"])


@pytest.mark.slow
def test_main_job_beats_word_frequencies(tmp_path, capsys):
    """The main job, shortened: the default text and model."""
    assert main(["pretrain", "--steps", "60", "--run", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    held_out, unigram = (
        float(re.search(rf"{kind} loss +([\d.]+)", printed)[1]) for kind in ("held-out", "unigram")
    )
    assert held_out < unigram
