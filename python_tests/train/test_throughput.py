import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from glm_ext import GLM, Batch, GLMConfig
from glm_ext.train.throughput import peak_flops, peak_memory, useful_flops


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


def test_peak_of_a_gpu_is_not_known():
    assert peak_flops(torch.device("cuda")) is None
    assert peak_flops(torch.device("cpu")) > 1e9


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(64 << 20, dtype=torch.uint8)
    for _ in range(3):  # whatever was free before is not enough for all of these
        held = torch.cat([held, held])
    assert peak_memory(torch.device("cpu")) - before > 128 << 20


@pytest.mark.parametrize("field", ["tokens", "targets"])
def test_no_tokens_no_work(field):
    counts = {"tokens": 5, "targets": 0, field: 0} if field == "tokens" else {"tokens": 0, "targets": 0}
    assert useful_flops(GLMConfig.preset("tiny"), **counts) == 0
