"""The finetuning loop: epochs over the examples of a task, the best checkpoint kept by its primary metric.

    RUN/step-N        the state to go on from, as it was before the evaluation of that step
    RUN/best/step-M   the best model so far

Step t takes its examples from a permutation that follows from (seed, epoch), so a resumed run goes on with
the bits it would have had without the stop, as pretraining does.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from glm_ext.train.activations import checkpoint_blocks
from glm_ext.train.checkpoint import Checkpoint, save_checkpoint
from glm_ext.train.finetune_config import FinetuneConfig
from glm_ext.train.log import ExamplesRecord, RunLog
from glm_ext.train.signals import caught_signals
from glm_ext.train.throughput import peak_memory
from glm_ext.train.update import Updater

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glm_ext.model import GLM
    from glm_ext.tasks.task import Task


@dataclass(frozen=True)
class Best:
    """The best look at the validation file so far, the first of equals."""

    step: int
    metrics: Mapping[str, float]

    def is_beaten_by(self, metrics: Mapping[str, float], primary: str) -> bool:
        """By a larger primary metric; one that is not a number beats nothing."""
        old, new = self.metrics[primary], metrics[primary]
        return not math.isnan(new) and (math.isnan(old) or new > old)


class Finetuner:
    """Trains a model on the examples of a task.

    Args:
        model: on the device to train on.
        task: its `module`, where it has one, learns too.
        train, valid: what task.examples gave for the two files.
        run: folder of the run.
        log: an entered RunLog of `num_steps` steps.
        tokenizer: its JSON, to be kept beside the parameters.
        resume: the checkpoint to go on from; the parameters in it are loaded into model and task.
    """

    def __init__(
        self,
        model: GLM,
        task: Task,
        config: FinetuneConfig,
        *,
        train: Sequence[Any],
        valid: Sequence[Any],
        run: Path,
        log: RunLog,
        tokenizer: str | None = None,
        resume: Checkpoint | None = None,
    ) -> None:
        self.model, self.task, self.config, self.train_set, self.valid = model, task, config, train, valid
        self.run, self.log, self.tokenizer = run, log, tokenizer
        self.device = next(model.parameters()).device
        head = self.head = None if task.module is None else task.module.to(self.device)
        self.parts = nn.ModuleDict({"model": model} if head is None else {"model": model, "head": head})
        self.steps = num_steps(len(train), config)
        self.updater = Updater(
            self.parts,
            config.optim,
            steps=self.steps,
            precision=config.precision,
            max_skipped=config.max_skipped,
        )
        if config.checkpoint_activations:
            checkpoint_blocks(model)
        self.every = config.eval_every or steps_per_epoch(len(train), config)
        self.steps_taken = 0
        self.scored_at = 0
        self.best: Best | None = None
        if resume:
            model.load_state_dict(resume.model)
            if self.head is not None:
                self.head.load_state_dict(resume.head or {})
            self.updater.load(resume.optimizer, resume.state)
            torch.set_rng_state(resume.rng)
            self.steps_taken, best = resume.state["step"], resume.state["best"]
            self.best = Best(**best) if best else None

    def train(self, until: int | None = None) -> signal.Signals | None:
        """Trains to step `until` (None: all epochs) and saves; returns the signal that stopped it."""
        last = self.steps if until is None else min(until, self.steps)
        saved_at = self.steps_taken
        self.parts.train()
        with caught_signals() as caught:
            if self.is_due():  # the step that it goes on from was saved before it was evaluated
                self.evaluate()
            while self.steps_taken < last and not caught:
                self.step()
                if self.is_due():
                    self.save()  # first, so that an evaluation that fails loses no step
                    saved_at = self.steps_taken
                    self.evaluate()
            if saved_at != self.steps_taken:
                self.save()
        return caught[0] if caught else None

    def step(self) -> None:
        """One optimizer step: the gradient of the mean loss over its examples."""
        began = time.perf_counter()
        examples = self.examples_of(self.steps_taken)
        at_once = self.config.micro_batch_size or len(examples)
        loss = 0.0
        for first in range(0, len(examples), at_once):
            part = examples[first : first + at_once]
            with self.updater.autocast():
                share = self.task.loss(self.model, part) * (len(part) / len(examples))
            loss += self.updater.backward(share)
        done = self.updater.update(self.steps_taken, loss)
        self.steps_taken += 1
        if done.skipped:
            self.log.skipped(self.steps_taken, done.skipped)
            self.updater.check_progress(self.steps_taken)
            return
        record = ExamplesRecord(
            loss=loss,
            lr=done.lr,
            grad_norm=done.grad_norm,
            epoch=self.steps_taken / steps_per_epoch(len(self.train_set), self.config),
            examples_per_second=len(examples) / (time.perf_counter() - began),
            peak_memory=peak_memory(self.device),
        )
        self.log.step(self.steps_taken, record)

    def examples_of(self, step: int) -> list[Any]:
        """The examples of a step; those of an epoch are all of them, in an order of its own."""
        epoch, place = divmod(step, steps_per_epoch(len(self.train_set), self.config))
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.train_set))
        size = self.config.batch_size
        return [self.train_set[index] for index in order[place * size : (place + 1) * size]]

    def is_due(self) -> bool:
        """Whether this step is to be evaluated and was not yet."""
        due = self.steps_taken % self.every == 0 or self.steps_taken == self.steps
        return due and self.steps_taken != self.scored_at

    def evaluate(self) -> dict[str, float]:
        """The task's metrics on the validation file; the best model by its primary one is saved."""
        with self._evaluation():
            metrics = self.task.metrics(self.model, self.valid)
        self.scored_at = self.steps_taken
        better = self.best is None or self.best.is_beaten_by(metrics, self.task.primary)
        self.log.scores(self.steps_taken, metrics, best=better)
        if better:
            self.best = Best(self.steps_taken, metrics)
            self.save(best=True)
        return metrics

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        self.parts.eval()
        try:
            with torch.no_grad(), self.updater.autocast():
                yield
        finally:
            self.parts.train()

    def save(self, *, best: bool = False) -> Path:
        """Writes the state to go on from, or the best model, which needs no optimizer."""
        found = {"step": self.best.step, "metrics": dict(self.best.metrics)} if self.best else None
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            config=self.model.config.to_dict(),
            tokenizer=self.tokenizer,
            optimizer={} if best else self.updater.tensors(),
            rng=torch.get_rng_state(),
            state={"step": self.steps_taken, "best": found, **self.updater.state()},
            head=None if self.head is None else self.head.state_dict(),
        )
        if best:
            return save_checkpoint(self.run / "best", self.steps_taken, checkpoint, keep_last=1)
        return save_checkpoint(self.run, self.steps_taken, checkpoint, keep_last=self.config.keep_last)


def steps_per_epoch(examples: int, config: FinetuneConfig) -> int:
    """The last step of an epoch may have fewer examples than batch_size."""
    return -(-examples // config.batch_size)


def num_steps(examples: int, config: FinetuneConfig) -> int:
    """Optimizer steps of the whole run."""
    return config.epochs * steps_per_epoch(examples, config)
