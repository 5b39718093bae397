import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glm_ext.train.loader import StepBatches

ROOT = Path(__file__).resolve().parents[2]


def tokens(steps):
    return [[batch.tokens.tolist() for batch in batches] for batches in steps]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_neither_the_batches_nor_the_generator(batch_at, workers):
    batches = StepBatches(batch_at=batch_at, accumulation=2)
    before = torch.get_rng_state()
    made_here = list(batches.load(range(3, 8)))
    made_ahead = list(batches.load(range(3, 8), workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert tokens(made_ahead) == tokens(made_here) == tokens([batches[step] for step in range(3, 8)])
    assert all(len(step) == 2 for step in made_ahead)


def test_a_step_holds_its_budget_and_no_more(batch_at):
    """Batches of 24, 24, 24 .. tokens for a budget of 49; the third one crosses it."""
    assert [len(StepBatches(batch_at=batch_at, step_tokens=n)[5]) for n in (1, 24, 25, 48, 49)] == [
        1,
        1,
        2,
        2,
        3,
    ]


def test_a_step_of_many_micro_batches_needs_few_open_files():
    """300 micro batches of 5 tensors, two steps ahead, where a process may have 1024 files open."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
import torch
from glm_ext.train.loader import StepBatches
from python_tests.train.conftest import toy_batch
batches = StepBatches(batch_at=toy_batch, accumulation=300)
loaded = list(batches.load(range(3), workers=1))
for step, made in enumerate(loaded):
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(made, batches[step], strict=True))
print(*map(len, loaded))
"""
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert child.stdout == "300 300 300\n", child.stderr[-1000:]


def test_an_error_in_a_worker_is_raised_where_the_batch_is_wanted():
    def broken(step, micro_step):
        raise ValueError(f"no room for blanks in step {step}")

    with pytest.raises(ValueError, match="no room for blanks in step 2"):
        next(StepBatches(batch_at=broken).load(range(2, 4), workers=1))


def test_an_interrupt_of_the_group_leaves_workers_alone(batch_at):
    def interrupted(step, micro_step):
        os.kill(os.getpid(), signal.SIGINT)  # in the worker
        return batch_at(step, micro_step)

    assert len(list(StepBatches(batch_at=interrupted).load(range(3), workers=1))) == 3
