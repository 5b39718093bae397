"""A toy with what the trainer needs of a GLM, small enough to train hundreds of steps in a second."""

import dataclasses
import io
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from glm_ext.batch import Batch
from glm_ext.train import RunLog, TrainConfig, Trainer

VOCAB = 17


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = VOCAB
    num_layers: int = 0
    hidden_size: int = 8
    ffn_hidden_size: int = 0

    def to_dict(self):
        return dataclasses.asdict(self)


class Toy(nn.Module):
    def __init__(self, dropout=0.1):
        super().__init__()
        self.config = ToyConfig()
        self.embedding = nn.Embedding(VOCAB, 8)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, VOCAB)
        self.dropout = dropout

    def loss(self, batch):
        hidden = F.dropout(self.norm(self.embedding(batch.tokens)), self.dropout, self.training)
        losses = F.cross_entropy(self.linear(hidden).flatten(0, 1), batch.targets.flatten(), reduction="none")
        weights = batch.loss_mask.flatten()
        return (losses * weights).sum() / weights.sum()


def toy_batch(step, micro_step=0, *, sequences=4, length=6):
    """Targets are the next id; every sequence has a different number of them."""
    rng = torch.Generator().manual_seed(1000 * step + micro_step)
    tokens = torch.randint(VOCAB, (sequences, length), generator=rng)
    targets_of = torch.randint(1, length + 1, (sequences, 1), generator=rng)
    return Batch(
        tokens=tokens,
        positions=torch.zeros(sequences, 2, length, dtype=torch.int64),
        targets=(tokens + 1) % VOCAB,
        loss_mask=(torch.arange(length) < targets_of).float(),
        prefix_len=torch.zeros(sequences, dtype=torch.int64),
    )


@pytest.fixture
def toy():
    return Toy


@pytest.fixture
def batch_at():
    return toy_batch


@pytest.fixture
def trained():
    """train(run, config, ...): a toy trained in a folder; returns its trainer and what the log printed."""

    def train(run: Path, config: TrainConfig, *, until=None, resume=None, model=None, batch_at=toy_batch):
        torch.manual_seed(config.seed)
        model = model or Toy()
        printed = io.StringIO()
        start = resume.state["step"] if resume else 0
        with RunLog(run, steps=config.steps, start=start, every=config.log_every, stream=printed) as log:
            held_out = [toy_batch(10_000 + i) for i in range(2)]
            trainer = Trainer(
                model,
                config,
                batch_at=batch_at,
                held_out=held_out,
                run=run,
                log=log,
                tokenizer="{}",
                resume=resume,
            )
            trainer.train(until)
        return trainer, printed.getvalue()

    return train
