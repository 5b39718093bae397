import subprocess
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from glm_ext import GLM, Batch, GLMConfig
from glm_ext.train.throughput import peak_flops, useful_flops


def test_useful_work_is_what_torch_counts_in_the_matrix_products():
    """Plain torch executes exactly it, beside attention's batched products, which are counted apart."""
    config = GLMConfig(
        vocab_size=48, num_layers=3, hidden_size=32, num_heads=4, ffn_hidden_size=80, max_positions=16
    )
    S, targets = 7, 3
    batch = Batch(
        tokens=torch.arange(2 * S).view(2, S),
        positions=torch.zeros(2, 2, S, dtype=torch.int64),
        targets=torch.zeros(2, S, dtype=torch.int64),
        loss_mask=(torch.arange(2 * S) < targets).float().view(2, S),
        prefix_len=torch.zeros(2, dtype=torch.int64),
    )
    model = GLM(config, backend="eager")
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in counted.items() if "bmm" not in str(op))
    assert products == useful_flops(config, tokens=2 * S, targets=targets)


def test_only_the_float32_peak_of_the_cpu_is_known():
    assert peak_flops(torch.device("cuda")) is None
    assert peak_flops(torch.device("cpu"), "bf16") is None
    assert peak_flops(torch.device("cpu")) > 1e9


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
