import dataclasses
import io
from itertools import chain

import pytest
import torch
from torch import nn

from glm_ext.train import load_checkpoint
from glm_ext.train.config import PRECISIONS, OptimConfig
from glm_ext.train.finetune import Finetuner, num_steps
from glm_ext.train.finetune_config import FinetuneConfig
from glm_ext.train.log import RunLog, read_metrics
from glm_ext.train.settings import ConfigError
from glm_ext.train.update import Diverged

CONFIG = FinetuneConfig(
    source="run", task="toy", train="t", valid="v", epochs=4, batch_size=3, optim=OptimConfig(lr=0.05)
)
EXAMPLES = list(range(10))  # four steps an epoch, the last one of a single example


class ToyTask:
    """An example is the number of a toy batch; its loss is that of the batch, scaled by a head."""

    name, primary = "toy", "accuracy"

    def __init__(self, batch_at, scores=(), head=True):
        self.batch_at, self.scores, self.seen = batch_at, iter(scores), []
        self.module = nn.Linear(1, 1) if head else None

    def examples(self, path):
        return EXAMPLES

    def loss(self, model, examples):
        self.seen.append(examples)
        losses = torch.stack([model.loss(self.batch_at(example)) for example in examples])
        scale = 1.0 if self.module is None else self.module(losses.new_ones(1)).exp()
        return (losses * scale).mean()

    def metrics(self, model, examples):
        assert not model.training and not torch.is_grad_enabled()
        loss = sum(model.loss(self.batch_at(example)).item() for example in examples)
        return {"accuracy": next(self.scores, -loss), "loss": loss}


@pytest.fixture
def finetuned(toy, batch_at):
    """finetuned(run, config, ...): returns the finetuner and what the log printed."""

    def finetune(run, config=CONFIG, *, until=None, resume=None, task=None, model=None):
        torch.manual_seed(config.seed)
        task, model, printed = task or ToyTask(batch_at), model or toy(), io.StringIO()
        start = resume.state["step"] if resume else 0
        with RunLog(run, steps=num_steps(len(EXAMPLES), config), start=start, stream=printed) as log:
            finetuner = Finetuner(
                model,
                task,
                config,
                train=EXAMPLES,
                valid=[90, 91],
                run=run,
                log=log,
                tokenizer="{}",
                resume=resume,
            )
            finetuner.train(until)
        return finetuner, printed.getvalue()

    return finetune


def test_every_epoch_sees_all_examples_in_its_own_order(tmp_path, finetuned, batch_at):
    task = ToyTask(batch_at)
    finetuned(tmp_path, task=task)
    assert [len(examples) for examples in task.seen] == [3, 3, 3, 1] * 4
    epochs = [[*chain(*task.seen[4 * epoch : 4 * epoch + 4])] for epoch in range(4)]
    assert all(sorted(epoch) == EXAMPLES for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = ToyTask(batch_at)
    finetuned(tmp_path / "other", dataclasses.replace(CONFIG, seed=5), task=other)
    assert other.seen != task.seen


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.5, 0.7, 0.7, 0.6], 8),
        ([0.9, 0.7, 0.7, 0.6], 4),
        ([NAN, NAN, 0.1, NAN], 12),
        ([0.1, 0.2, 0.3, 0.4], 16),
    ],
)
def test_the_first_of_the_best_is_kept(tmp_path, finetuned, batch_at, scores, best):
    finetuner, printed = finetuned(tmp_path, task=ToyTask(batch_at, scores))
    assert finetuner.best.step == best
    assert load_checkpoint(tmp_path / "best")[1].name == f"step-{best}"
    assert load_checkpoint(tmp_path)[1].name == "step-16"
    last_best = [line for line in printed.splitlines() if line.endswith("(best so far)")][-1]
    assert last_best.startswith(f"step {best}/16  accuracy {scores[best // 4 - 1]:.4f}")


def test_the_kept_model_is_the_one_that_was_scored(tmp_path, finetuned, batch_at, toy):
    task = ToyTask(batch_at, [0.5, 0.9, 0.1, 0.1])
    finetuned(tmp_path, task=task)
    kept = load_checkpoint(tmp_path / "best")[0]
    model = toy()
    model.load_state_dict(kept.model)
    with torch.no_grad():
        scored = ToyTask(batch_at).metrics(model.eval(), [90, 91])["loss"]
    rows = [row for row in read_metrics(tmp_path) if "valid/loss" in row]
    assert [row["step"] for row in rows] == [4, 8, 12, 16]
    assert rows[1]["valid/loss"] == scored != rows[3]["valid/loss"]
    task.module.load_state_dict(kept.head)  # the head is kept too
    assert kept.optimizer == {}


@pytest.mark.parametrize("stop", [2, 8, 13])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, finetuned, stop, precision):
    config = dataclasses.replace(CONFIG, precision=precision)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetuned(whole, config)
    finetuned(parts, config, until=stop)
    finetuned(parts, config, resume=load_checkpoint(parts)[0])
    for folder in ("", "best"):
        one, other = (load_checkpoint(run / folder)[0] for run in (whole, parts))
        assert one.state == other.state and torch.equal(one.rng, other.rng)
        for a, b in ((one.model, other.model), (one.head, other.head), (one.optimizer, other.optimizer)):
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    losses = [
        [(row["step"], row["loss"]) for row in read_metrics(run) if "loss" in row] for run in (whole, parts)
    ]
    assert losses[0] == losses[1] and len(losses[0]) >= 13  # fp16 skips its first


@pytest.mark.parametrize("stop", [4, 8])
def test_an_evaluation_that_fails_loses_no_step(tmp_path, finetuned, monkeypatch, stop):
    """The run goes on from the step that was to be evaluated, and evaluates it once."""
    metrics = ToyTask.metrics

    def failing(task, model, examples):
        if len(task.seen) == stop:
            raise RuntimeError("no scores")
        return metrics(task, model, examples)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetuned(whole)
    monkeypatch.setattr(ToyTask, "metrics", failing)
    with pytest.raises(RuntimeError, match="no scores"):
        finetuned(parts)
    monkeypatch.undo()
    assert load_checkpoint(parts)[0].state["step"] == stop
    finetuned(parts, resume=load_checkpoint(parts)[0])
    for folder in ("", "best"):
        one, other = (load_checkpoint(run / folder)[0] for run in (whole, parts))
        assert one.state == other.state and all(torch.equal(one.model[n], other.model[n]) for n in one.model)
    scores = [[row for row in read_metrics(run) if "valid/loss" in row] for run in (whole, parts)]
    assert scores[0] == scores[1] and [row["step"] for row in scores[0]] == [4, 8, 12, 16]


def gradients(run, finetuned, model, task, config):
    found = {}
    handles = [
        p.register_post_accumulate_grad_hook(lambda p, n=n: found.__setitem__(n, p.grad.clone()))
        for n, p in model.named_parameters()
    ]
    finetuned(run, config, model=model, task=task, until=1)
    for handle in handles:
        handle.remove()
    return found


def test_examples_computed_in_parts_have_the_same_mean(tmp_path, finetuned, batch_at, toy):
    """Five examples at once, or two, two and one."""
    model, task = toy(dropout=0.0), ToyTask(batch_at, head=False)
    config = dataclasses.replace(CONFIG, batch_size=5, optim=OptimConfig(lr=1e-30, clip=float("inf")))
    at_once = gradients(tmp_path / "once", finetuned, model, task, config)
    in_parts = gradients(
        tmp_path / "parts", finetuned, model, task, dataclasses.replace(config, micro_batch_size=2)
    )
    assert [len(examples) for examples in task.seen] == [5, 2, 2, 1]
    for name in at_once:
        torch.testing.assert_close(in_parts[name], at_once[name], rtol=1e-5, atol=1e-7)


def test_evaluation_at_its_times_and_at_the_end(tmp_path, finetuned):
    finetuned(tmp_path, dataclasses.replace(CONFIG, eval_every=6))
    assert [row["step"] for row in read_metrics(tmp_path) if "valid/loss" in row] == [6, 12, 16]


def test_steps_that_are_not_finite_are_skipped_then_refused(tmp_path, finetuned, toy):
    model = toy()
    model.linear.bias.register_hook(lambda grad: grad * float("inf"))
    before = model.linear.weight.detach().clone()
    with pytest.raises(Diverged, match="step 3: 3 steps in a row"):
        finetuned(tmp_path, dataclasses.replace(CONFIG, max_skipped=3), model=model)
    assert torch.equal(model.linear.weight, before)
    assert [row["step"] for row in read_metrics(tmp_path) if "skipped" in row] == [1, 2, 3]


def test_records_of_a_step(tmp_path, finetuned):
    finetuned(tmp_path)
    row = [row for row in read_metrics(tmp_path) if "loss" in row][5]
    assert row.keys() == {"step", "loss", "lr", "grad_norm", "epoch", "examples_per_second", "peak_memory"}
    assert row["epoch"] == 1.5 and row["examples_per_second"] > 0


def test_a_yaml_file_has_the_recipe_of_its_own_defaults(tmp_path):
    """The optimizer's defaults differ from those of pretraining, also for a parser."""
    (tmp_path / "c.yaml").write_text("source: r\ntask: t\ntrain: a\nvalid: b\noptim: {lr: 0.5}\n")
    config = FinetuneConfig.from_yaml(tmp_path / "c.yaml")
    recipe = FinetuneConfig(source="r", task="t", train="a", valid="b").optim
    assert config.optim == dataclasses.replace(recipe, lr=0.5)
    assert (config.optim.schedule, config.optim.betas) == ("linear", (0.9, 0.999))
    config.to_yaml(tmp_path / "d.yaml")
    assert FinetuneConfig.from_yaml(tmp_path / "d.yaml") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": ""}, "source: expected a run folder or a checkpoint"),
        ({"task": ""}, "task: expected the name of a task"),
        ({"epochs": 0}, "epochs: expected at least 1"),
        ({"micro_batch_size": 0}, "micro_batch_size: expected at least 1, or null"),
        ({"dropout": 1.0}, "dropout: expected a probability below 1"),
        ({"precision": "int8"}, "precision: expected float32"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_before_the_first_evaluation_nothing_is_best(tmp_path, finetuned):
    finetuned(tmp_path, until=3)
    assert load_checkpoint(tmp_path)[0].state["best"] is None
