import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from glm_ext import GLM, Batch, GLMConfig
from glm_ext.train import throughput
from glm_ext.train.throughput import peak_flops, useful_flops


def test_useful_work_is_what_torch_counts():
    """Plain torch executes exactly it where every token sees every other.

    But for one product of attention: it keeps the scores for backward, and has six where a kernel has seven.
    """
    config = GLMConfig(
        vocab_size=48, num_layers=3, hidden_size=32, num_heads=4, ffn_hidden_size=80, max_positions=16
    )
    S, targets = 7, 3
    batch = Batch(
        tokens=torch.arange(2 * S).view(2, S),
        positions=torch.zeros(2, 2, S, dtype=torch.int64),
        targets=torch.zeros(2, S, dtype=torch.int64),
        loss_mask=(torch.arange(2 * S) < targets).float().view(2, S),
        prefix_len=torch.full((2,), S),
    )
    model = GLM(config, backend="eager")
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in counted.items() if "bmm" not in str(op))
    attention = sum(counted.values()) - products
    work = {"tokens": 2 * S, "targets": targets}
    assert products == useful_flops(config, **work, pairs=0)
    assert products + attention * 7 / 6 == useful_flops(config, **work, pairs=batch.visible_pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_peak_is_measured_in_every_precision(dtype):
    assert peak_flops(torch.device("cpu"), dtype) > 1e9


def test_the_peak_of_16_bits_is_that_of_products_where_they_are_faster(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(throughput._C, "fma_peak", lambda threads: 100.0)
    for product, expected in ((3e11, 3e11), (5e10, 1e11)):
        monkeypatch.setattr(throughput, "_product_flops", lambda *_, rate=product: rate)
        assert peak_flops(cpu, torch.bfloat16) == expected
        assert peak_flops(cpu) == 1e11


def test_a_peak_draws_no_random_numbers():
    before = torch.get_rng_state()
    peak_flops(torch.device("cpu"), torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)


def test_peak_memory_is_the_most_that_was_held():
    """In a process of its own; its peak begins with that of the process that started it."""
    code = """
import torch
from glm_ext.train.throughput import peak_memory
cpu = torch.device("cpu")
before = peak_memory(cpu)
held = torch.ones(before + (128 << 20), dtype=torch.uint8)
with_it = peak_memory(cpu)
del held
print(before, with_it, peak_memory(cpu))
"""
    child = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, timeout=60)
    before, with_it, after = map(int, child.stdout.split())
    assert with_it - before >= 128 << 20
    assert after >= with_it
