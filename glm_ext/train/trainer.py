"""The training loop: explicit state, and every step a function of that state and the step's number.

    for step in ...:
        batches -> loss over all targets of the step -> gradients -> clip -> AdamW

A run resumed from its checkpoint at step N goes on with the very bits it would have had without the stop: the
examples and the learning rate follow from the step, and the parameters, AdamW's moments, the loss scale and
the generator that dropout draws its seeds from are in the checkpoint.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from glm_ext.train.activations import checkpoint_blocks
from glm_ext.train.checkpoint import Checkpoint, save_checkpoint
from glm_ext.train.config import TrainConfig
from glm_ext.train.loader import StepBatches
from glm_ext.train.log import RunLog, StepRecord
from glm_ext.train.signals import caught_signals
from glm_ext.train.throughput import peak_flops, peak_memory, useful_flops
from glm_ext.train.update import Diverged, Updater

if TYPE_CHECKING:
    from glm_ext.batch import Batch
    from glm_ext.model import GLM

__all__ = ["Diverged", "Evaluation", "Trainer"]


class Evaluation(NamedTuple):
    """The losses over all targets of the held-out batches, without dropout."""

    step: int
    held_out_loss: float
    by_objective: dict[str, float]  # empty where there is only one


class Trainer:
    """Trains a GLM.

    Args:
        model: on the device to train on; its loss(batch) is the mean over the batch's targets, by loss_mask.
        batch_at: (step, micro step) -> Batch, a pure function: there is no position in the data to remember.
        held_out: the batches that every evaluation looks at.
        held_out_by_objective: of each objective by name, where the loss of each is wanted too.
        run: folder of the run; checkpoints go into it as step-N.
        log: an entered RunLog.
        tokenizer: its JSON, to be kept beside the parameters.
        resume: the checkpoint to go on from; the parameters in it are loaded into the model.
    """

    def __init__(
        self,
        model: GLM,
        config: TrainConfig,
        *,
        batch_at: Callable[[int, int], Batch],
        held_out: Sequence[Batch],
        run: Path,
        log: RunLog,
        tokenizer: str | None = None,
        resume: Checkpoint | None = None,
        held_out_by_objective: Mapping[str, Sequence[Batch]] | None = None,
    ) -> None:
        self.model, self.config, self.held_out = model, config, held_out
        self.held_out_by_objective = held_out_by_objective or {}
        self.run, self.log, self.tokenizer = run, log, tokenizer
        self.device = next(model.parameters()).device
        self.batches = StepBatches(
            batch_at=batch_at, accumulation=config.accumulation, step_tokens=config.step_tokens
        )
        self.updater = Updater(
            model,
            config.optim,
            steps=config.steps,
            precision=config.precision,
            max_skipped=config.max_skipped,
        )
        if config.checkpoint_activations:
            checkpoint_blocks(model)
        # Batches differ in length; one graph for all of them also gives a resumed run the same kernels.
        self.loss = torch.compile(model.loss, dynamic=True) if config.compile else model.loss
        self.peak_flops = peak_flops(self.device, self.updater.dtype or torch.float32)
        self._evaluation: Evaluation | None = None  # the last one
        self.steps_taken = self.tokens_seen = 0  # steps taken or skipped; tokens without padding
        if resume:
            model.load_state_dict(resume.model)
            self.updater.load(resume.optimizer, resume.state)
            torch.set_rng_state(resume.rng)
            self.steps_taken, self.tokens_seen = resume.state["step"], resume.state["tokens"]

    def train(self, until: int | None = None) -> signal.Signals | None:
        """Trains to step `until` (None: config.steps) and saves; returns the signal that stopped it."""
        config = self.config
        last = config.steps if until is None else min(until, config.steps)
        saved_at = self.steps_taken
        self.model.train()
        with caught_signals() as caught:
            loaded = self.batches.load(range(self.steps_taken, last), workers=config.workers)
            while self.steps_taken < last and not caught:
                began = time.perf_counter()
                batches = next(loaded)
                self.step(batches, began=began, data_wait=time.perf_counter() - began)
                step = self.steps_taken
                if step % config.eval_every == 0 or step == config.steps:
                    self.log.evaluation(*self.evaluation())
                if step % config.save_every == 0:
                    self.save()
                    saved_at = step
            if saved_at != self.steps_taken:
                self.save()
        return caught[0] if caught else None

    def step(self, batches: Sequence[Batch], *, began: float, data_wait: float) -> None:
        """One optimizer step: the gradient of the mean over all targets of all its micro batches, clipped.

        began: when the step began to wait for its batches, by time.perf_counter.
        """
        weights = [float(batch.loss_mask.sum()) for batch in batches]
        if not any(weights):
            raise ValueError(f"step {self.steps_taken + 1}: expected targets in its batches, got none")
        # The mean over the step's targets, not of the micro batches' means: each counts by its targets.
        loss = 0.0
        for batch, weight in zip(batches, weights, strict=True):
            if weight > 0:
                with self.updater.autocast():
                    part = self.loss(batch.to(self.device)) * (weight / sum(weights))
                loss += self.updater.backward(part)
        done = self.updater.update(self.steps_taken, loss)

        tokens = sum(batch.num_tokens for batch in batches)
        self.steps_taken += 1
        self.tokens_seen += tokens
        if done.skipped:
            self.log.skipped(self.steps_taken, done.skipped)
            self.updater.check_progress(self.steps_taken)
            return
        seconds = time.perf_counter() - began
        flops = useful_flops(
            self.model.config,
            tokens=tokens,
            targets=sum(batch.num_targets for batch in batches),
            pairs=sum(batch.visible_pairs for batch in batches),
        )
        record = StepRecord(
            loss=loss,
            lr=done.lr,
            grad_norm=done.grad_norm,
            tokens_per_second=round(tokens / seconds),
            tokens=self.tokens_seen,
            data_wait=data_wait,
            peak_memory=peak_memory(self.device),
            mfu=flops / seconds / self.peak_flops,
        )
        self.log.step(self.steps_taken, record)

    def evaluation(self) -> Evaluation:
        """Of the model as it is; computed once a step."""
        if self._evaluation is None or self._evaluation.step != self.steps_taken:
            each = {name: self._loss(batches) for name, batches in self.held_out_by_objective.items()}
            self._evaluation = Evaluation(self.steps_taken, self._loss(self.held_out), each)
        return self._evaluation

    @torch.no_grad()
    def _loss(self, batches: Sequence[Batch]) -> float:
        self.model.eval()
        total = weights = 0.0
        for batch in batches:
            weight = float(batch.loss_mask.sum())
            with self.updater.autocast():
                total += self.model.loss(batch.to(self.device)).item() * weight
            weights += weight
        self.model.train()
        return total / weights

    def save(self) -> Path:
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            config=self.model.config.to_dict(),
            tokenizer=self.tokenizer,
            optimizer=self.updater.tensors(),
            rng=torch.get_rng_state(),
            state={"step": self.steps_taken, "tokens": self.tokens_seen, **self.updater.state()},
        )
        return save_checkpoint(self.run, self.steps_taken, checkpoint, keep_last=self.config.keep_last)
