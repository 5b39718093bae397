import dataclasses
import json
import time

import pytest
import torch
from torch import nn

from glm_ext import GLM, GLMConfig
from glm_ext.train import Diverged, OptimConfig, TrainConfig, load_checkpoint
from glm_ext.train.config import PRECISIONS
from glm_ext.train.log import read_metrics

CONFIG = TrainConfig(steps=20, save_every=100, eval_every=5, accumulation=2, optim=OptimConfig(lr=0.05))


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def losses(run):
    return [(row["step"], row["loss"]) for row in read_metrics(run) if "loss" in row]


@pytest.mark.parametrize(
    ("stop", "settings"),
    [
        (1, {}),
        (10, {}),
        (13, {}),
        (10, {"precision": "bf16"}),
        (10, {"precision": "fp16"}),
        (7, {"precision": "fp16", "accumulation": 8, "workers": 1}),
        (7, {"step_tokens": 100, "workers": 2}),
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, trained, stop, settings):
    config = dataclasses.replace(CONFIG, **settings)
    alone = dataclasses.replace(config, workers=0)  # workers change nothing, also when they come and go
    trained(tmp_path / "whole", alone)
    trained(tmp_path / "parts", config, until=stop)
    torch.rand(7)  # whatever else happens to the generator in between
    trained(tmp_path / "parts", config, resume=load_checkpoint(tmp_path / "parts")[0])
    whole, parts = load_checkpoint(tmp_path / "whole")[0], load_checkpoint(tmp_path / "parts")[0]
    assert whole.state == parts.state and whole.state["step"] == 20
    assert_same_bits(whole.model, parts.model)
    assert_same_bits(whole.optimizer, parts.optimizer)
    assert torch.equal(whole.rng, parts.rng)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_dropout_makes_the_generator_matter(tmp_path, trained):
    """The test above would pass without a saved generator if the toy drew nothing from it."""
    trained(tmp_path, CONFIG, until=10)
    checkpoint = load_checkpoint(tmp_path)[0]
    trained(tmp_path / "same", CONFIG, resume=checkpoint)
    other_rng = dataclasses.replace(checkpoint, rng=torch.Generator().manual_seed(99).get_state())
    trained(tmp_path / "other", CONFIG, resume=other_rng)
    assert losses(tmp_path / "same") != losses(tmp_path / "other")


def test_rows_past_the_checkpoint_are_dropped_on_resume(tmp_path, trained):
    """As after a kill: metrics reach step 13, the last checkpoint step 10."""
    trained(tmp_path, CONFIG, until=10)
    checkpoint = load_checkpoint(tmp_path)[0]
    trained(tmp_path, CONFIG, resume=checkpoint, until=13)
    trained(tmp_path, CONFIG, resume=checkpoint)
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 21))


def one_step(trained, run, model, accumulation, batch_at):
    """The gradient of one step, left in place by a learning rate that moves nothing."""
    config = TrainConfig(steps=1, accumulation=accumulation, optim=OptimConfig(lr=1e-30, clip=float("inf")))
    gradients = {}
    handles = [
        parameter.register_post_accumulate_grad_hook(
            lambda p, n=name: gradients.__setitem__(n, p.grad.clone())
        )
        for name, parameter in model.named_parameters()
    ]
    trained(run, config, model=model, batch_at=batch_at)
    for handle in handles:
        handle.remove()
    return gradients, losses(run)[0][1]


def test_accumulation_equals_one_big_batch(tmp_path, trained, toy, batch_at):
    """The micro batches have different numbers of targets, so a mean of their means would differ."""
    small = [batch_at(0, micro_step) for micro_step in range(4)]
    assert len({batch.num_targets for batch in small}) > 1
    joined = type(small[0])(
        **{
            name: torch.cat([getattr(batch, name) for batch in small])
            for name in ("tokens", "positions", "targets", "loss_mask", "prefix_len")
        }
    )
    model = toy(dropout=0.0)
    by_parts, loss_by_parts = one_step(
        trained, tmp_path / "parts", model, 4, lambda step, micro: small[micro]
    )
    at_once, loss_at_once = one_step(trained, tmp_path / "once", model, 1, lambda step, micro: joined)
    assert loss_by_parts == pytest.approx(loss_at_once, rel=1e-6)
    for name in at_once:
        torch.testing.assert_close(by_parts[name], at_once[name], rtol=1e-5, atol=1e-7)


def test_micro_batch_without_targets_changes_nothing(tmp_path, trained, toy, batch_at):
    full = batch_at(0)
    empty = dataclasses.replace(full, loss_mask=torch.zeros_like(full.loss_mask))
    model = toy(dropout=0.0)
    with_empty, loss = one_step(trained, tmp_path / "a", model, 2, lambda step, micro: (full, empty)[micro])
    alone, loss_alone = one_step(trained, tmp_path / "b", model, 1, lambda step, micro: full)
    assert loss == loss_alone
    assert_same_bits(with_empty, alone)


def test_gradient_is_clipped_as_a_whole(tmp_path, trained, toy):
    """With its moments off (betas 0) and lr = eps, both large, AdamW moves each parameter by its gradient."""
    config = TrainConfig(
        steps=1,
        optim=OptimConfig(lr=10.0, betas=(0.0, 0.0), eps=10.0, weight_decay=0.0, warmup=0.0, clip=1e-3),
    )
    model = toy()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(tmp_path, config, model=model)
    assert read_metrics(tmp_path)[0]["grad_norm"] > 1e-2
    moved = torch.cat([(p - before[name]).flatten() for name, p in model.named_parameters()])
    assert moved.norm().item() == pytest.approx(1e-3, rel=0.01)


class SometimesNaN(nn.Module):
    """Wraps a toy; the loss of the given steps is nan."""

    def __init__(self, inner, bad):
        super().__init__()
        self.inner, self.bad, self.calls, self.config = inner, bad, 0, inner.config

    def loss(self, batch):
        self.calls += self.training
        return self.inner.loss(batch) * (float("nan") if self.training and self.calls in self.bad else 1.0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_non_finite_step_is_skipped_and_recorded(tmp_path, trained, toy, precision):
    config = TrainConfig(steps=5, max_skipped=2, optim=OptimConfig(lr=0.05), precision=precision)
    trainer, printed = trained(tmp_path, config, model=SometimesNaN(toy(), bad={2, 4}))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if "skipped" in row] == [2, 4]
    assert [row["step"] for row in rows if "loss" in row] == [1, 3, 5]
    assert "step 2/5  skipped: loss nan" in printed
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert trainer.updater.optimizer.state[trainer.model.inner.linear.bias]["step"] == 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_non_finite_gradient_of_a_finite_loss_is_skipped(tmp_path, trained, toy, precision):
    model = toy()
    model.linear.bias.register_hook(lambda grad: grad * float("inf"))
    before = model.linear.weight.detach().clone()
    with pytest.raises(Diverged, match="step 3: 3 steps in a row"):
        trained(tmp_path, TrainConfig(steps=9, max_skipped=3, precision=precision), model=model)
    assert torch.equal(model.linear.weight, before)


def test_skips_in_a_row_are_counted_across_a_resume(tmp_path, trained, toy):
    config = TrainConfig(steps=9, max_skipped=3)
    trained(tmp_path, config, model=SometimesNaN(toy(), bad={1, 2}), until=2)
    saved = load_checkpoint(tmp_path)[0]
    assert saved.state["skipped_in_a_row"] == 2
    with pytest.raises(Diverged, match="step 3"):
        trained(tmp_path, config, model=SometimesNaN(toy(), bad={1}), resume=saved)


def test_evaluation_weighs_by_targets_and_uses_no_dropout(tmp_path, trained, toy):
    trainer, _ = trained(tmp_path, TrainConfig(steps=1, eval_every=1), model=toy(dropout=0.9))
    model = trainer.model.eval()
    pieces = [(model.loss(batch).item(), batch.loss_mask.sum().item()) for batch in trainer.held_out]
    expected = sum(loss * weight for loss, weight in pieces) / sum(weight for _, weight in pieces)
    assert trainer.evaluation() == (1, pytest.approx(expected, rel=1e-6), {})
    assert trainer.model.eval() and trainer._loss(trainer.held_out) and model.training  # as the loop needs it
    assert [row["held_out_loss"] for row in read_metrics(tmp_path) if "held_out_loss" in row] == [
        pytest.approx(expected, rel=1e-6)
    ]


def test_toy_learns(tmp_path, trained):
    config = TrainConfig(steps=150, optim=OptimConfig(lr=0.05))
    trained(tmp_path, config)
    found = losses(tmp_path)
    assert found[0][1] > 2.5 and found[-1][1] < 0.7


def test_checkpoints_come_at_their_times(tmp_path, trained):
    trained(tmp_path, dataclasses.replace(CONFIG, steps=11, save_every=4, keep_last=2))
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-11", "step-8"]
    state = json.loads((tmp_path / "step-11" / "state.json").read_text())
    assert state["tokens"] == 11 * 2 * 4 * 6


def test_a_step_of_a_token_budget_is_that_of_as_many_micro_batches(tmp_path, trained):
    """24 tokens a micro batch: a budget of 50 takes three."""
    trained(tmp_path / "budget", dataclasses.replace(CONFIG, steps=3, accumulation=1, step_tokens=50))
    trained(tmp_path / "count", dataclasses.replace(CONFIG, steps=3, accumulation=3))
    assert losses(tmp_path / "budget") == losses(tmp_path / "count")
    assert [row["tokens"] for row in read_metrics(tmp_path / "budget") if "loss" in row] == [72, 144, 216]


def test_a_step_without_targets_is_refused(tmp_path, trained, batch_at):
    batch = batch_at(0)
    empty = dataclasses.replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    with pytest.raises(ValueError, match="step 1: expected targets"):
        trained(tmp_path, CONFIG, batch_at=lambda step, micro: empty)


def test_a_step_records_what_it_took(tmp_path, trained, batch_at):
    def slow(step, micro_step):
        time.sleep(0.02)
        return batch_at(step, micro_step)

    trained(tmp_path, dataclasses.replace(CONFIG, steps=2), batch_at=slow)
    for row in read_metrics(tmp_path):
        if "loss" in row:
            assert row["data_wait"] >= 0.04  # of two micro batches
            assert row["tokens_per_second"] < 48 / 0.04
            assert row["mfu"] > 0 and row["peak_memory"] > 1 << 20 and row["grad_norm"] > 0


GLM_CONFIG = GLMConfig(vocab_size=17, num_layers=2, hidden_size=32, num_heads=2, max_positions=8)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_checkpointed_activations_train_to_the_same_bits(tmp_path, trained, precision):
    for checkpointed in (False, True):
        config = dataclasses.replace(
            CONFIG, steps=3, precision=precision, checkpoint_activations=checkpointed
        )
        torch.manual_seed(5)
        trained(tmp_path / str(checkpointed), config, model=GLM(GLM_CONFIG))
    assert_same_bits(*(load_checkpoint(tmp_path / str(c))[0].model for c in (False, True)))
    assert len(losses(tmp_path / "True")) == 3


def test_checkpointed_activations_and_a_loss_scale_skip_what_is_not_finite(tmp_path, trained):
    model = GLM(GLM_CONFIG)
    model.transformer.layers[0].mlp.dense_h_to_4h.bias.register_hook(lambda grad: grad * float("nan"))
    before = model.word_embeddings.weight.detach().clone()
    config = dataclasses.replace(CONFIG, precision="fp16", checkpoint_activations=True, max_skipped=2)
    with pytest.raises(Diverged, match="step 2: 2 steps in a row"):
        trained(tmp_path, config, model=model)
    assert torch.equal(model.word_embeddings.weight, before)
    assert [row["skipped"].split()[-1] for row in read_metrics(tmp_path)] == ["65536", "32768"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"precision": "bf16", "checkpoint_activations": True}])
def test_compiled_model_trains_alike(tmp_path, trained, settings):
    """Without dropout: a compiled graph draws other seeds."""
    model_config = dataclasses.replace(GLM_CONFIG, hidden_dropout=0.0, attention_dropout=0.0)
    for compiled in (False, True):
        torch.manual_seed(5)
        config = dataclasses.replace(CONFIG, steps=3, compile=compiled, **settings)
        trained(tmp_path / str(compiled), config, model=GLM(model_config))
    eager, compiled = (losses(tmp_path / str(c)) for c in (False, True))
    assert [loss for _, loss in compiled] == pytest.approx(
        [loss for _, loss in eager], rel=1e-2 if settings else 1e-5
    )
