"""Model, trainer and generation on a GPU, with no code of their own for it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from glm_ext import GLM, Batch, GLMConfig, fill_tokens
from glm_ext.train import OptimConfig, RunLog, TrainConfig, Trainer
from glm_ext.train.log import read_metrics

from ..test_model import golden_batch, golden_model

pytestmark = pytest.mark.gpu


def test_golden_loss_and_gradients() -> None:
    model, twin = golden_model(), golden_model().cuda()
    loss, on_gpu = model.loss(golden_batch()), twin.loss(golden_batch().to("cuda"))
    torch.testing.assert_close(on_gpu.cpu(), loss, rtol=1e-5, atol=1e-5)
    loss.backward()
    on_gpu.backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        torch.testing.assert_close(b.grad.cpu(), a.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model = golden_model().cuda()
    expected = model.loss(golden_batch().to("cuda"))
    with torch.autocast("cuda", dtype):
        loss = model.loss(golden_batch().to("cuda"))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def toy_batch(step: int, micro_step: int = 0) -> Batch:
    """Part A of 12 tokens, and Part B that repeats four of them."""
    rng = torch.Generator().manual_seed(1000 * step + micro_step)
    tokens = torch.randint(5, 20, (8, 16), generator=rng)
    tokens[:, 12:] = tokens[:, :4]
    places = torch.cat([torch.arange(12), torch.zeros(4, dtype=torch.int64)])
    blocks = torch.cat([torch.zeros(12, dtype=torch.int64), torch.arange(1, 5)])
    return Batch(
        tokens=tokens,
        positions=torch.stack([places, blocks]).repeat(8, 1, 1),
        targets=tokens.roll(-1, 1),
        loss_mask=(torch.arange(16) >= 12).float().repeat(8, 1) * (torch.arange(16) < 15),
        prefix_len=torch.full((8,), 12),
    )


def test_trainer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "num_layers": 2, "hidden_size": 64, "num_heads": 2, "max_positions": 16}
    model = GLM(GLMConfig(**sizes)).cuda()  # type: ignore[arg-type]
    config = TrainConfig(steps=40, save_every=100, eval_every=20, optim=OptimConfig(lr=3e-3))
    with RunLog(tmp_path, steps=40, start=0, every=1, stream=io.StringIO()) as log:
        trainer = Trainer(
            model,
            config,
            batch_at=toy_batch,
            held_out=[toy_batch(999)],
            run=tmp_path,
            log=log,
            tokenizer="{}",
        )
        trainer.train(None)
    steps = [row for row in read_metrics(tmp_path) if "loss" in row]
    losses = [row["loss"] for row in steps]
    assert all(0 < row["mfu"] < 1 for row in steps)
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


def test_generation_is_the_cpus() -> None:
    torch.manual_seed(0)
    config = GLMConfig(
        vocab_size=12, num_layers=2, hidden_size=64, num_heads=2, max_positions=16, init_std=0.3
    )
    model = GLM(config).eval()
    call = {"start_id": 2, "end_ids": [3], "max_length": 5}
    expected = fill_tokens(model, [5, 1, 6, 7, 1, 8], [1, 4], **call)  # type: ignore[arg-type]
    assert fill_tokens(model.cuda(), [5, 1, 6, 7, 1, 8], [1, 4], **call) == expected  # type: ignore[arg-type]
