"""The training loop: explicit state, and every step a function of that state and the step's number.

    for step in ...:
        batches -> loss over all targets of the step -> gradients -> clip -> AdamW

A run resumed from its checkpoint at step N goes on with the very bits it would have had without the stop: the
examples and the learning rate follow from the step, and the parameters, AdamW's moments and the generator
that dropout draws its seeds from are in the checkpoint.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch

from glm_ext.train.checkpoint import Checkpoint, save_checkpoint
from glm_ext.train.config import TrainConfig
from glm_ext.train.log import RunLog
from glm_ext.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from glm_ext.train.schedule import learning_rate

if TYPE_CHECKING:
    from glm_ext.batch import Batch
    from glm_ext.model import GLM


class Diverged(RuntimeError):
    """The loss or its gradient was not finite for config.max_skipped steps in a row."""


@dataclass
class Progress:
    """What a run has to remember besides tensors."""

    step: int = 0  # optimizer steps taken or skipped
    tokens: int = 0  # tokens seen, padding left out
    skipped_in_a_row: int = 0


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
        self.model, self.config, self.batch_at, self.held_out = model, config, batch_at, held_out
        self.held_out_by_objective = held_out_by_objective or {}
        self.run, self.log, self.tokenizer = run, log, tokenizer
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, config.optim)
        self.progress = Progress()
        if resume:
            model.load_state_dict(resume.model)
            load_optimizer_tensors(model, self.optimizer, resume.optimizer)
            torch.set_rng_state(resume.rng)
            self.progress = Progress(**resume.state)

    def train(self, until: int | None = None) -> signal.Signals | None:
        """Trains to step `until` (None: config.steps) and saves; returns the signal that stopped it."""
        config, progress = self.config, self.progress
        last = config.steps if until is None else min(until, config.steps)
        saved_at = progress.step
        self.model.train()
        with _caught_signals() as caught:
            while progress.step < last and not caught:
                self.step()
                if progress.step % config.eval_every == 0 or progress.step == config.steps:
                    self.log.evaluation(progress.step, self.evaluate(), self.evaluate_objectives())
                if progress.step % config.save_every == 0:
                    self.save()
                    saved_at = progress.step
            if saved_at != progress.step:
                self.save()
        return caught[0] if caught else None

    def step(self) -> None:
        """One optimizer step: the gradient of the mean over all targets of all its micro batches, clipped."""
        config, progress, began = self.config, self.progress, time.perf_counter()
        batches = [self.batch_at(progress.step, micro_step) for micro_step in range(config.accumulation)]
        weights = [float(batch.loss_mask.sum()) for batch in batches]
        lr = learning_rate(
            progress.step,
            peak=config.optim.lr,
            steps=config.steps,
            warmup=config.optim.warmup,
            min_ratio=config.optim.min_lr_ratio,
        )

        # The mean over the step's targets, not of the micro batches' means: each counts by its targets.
        loss = 0.0
        for batch, weight in zip(batches, weights, strict=True):
            if weight > 0:
                part = self.model.loss(batch.to(self.device)) * (weight / sum(weights))
                torch.autograd.backward(part)
                loss += part.item()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip).item()

        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        tokens = sum(batch.num_tokens for batch in batches)
        progress.step += 1
        progress.tokens += tokens
        progress.skipped_in_a_row = 0 if finite else progress.skipped_in_a_row + 1
        if finite:
            rate = tokens / (time.perf_counter() - began)
            self.log.step(
                progress.step,
                loss=loss,
                lr=lr,
                grad_norm=grad_norm,
                tokens_per_second=rate,
                tokens=progress.tokens,
            )
        else:
            self.log.skipped(progress.step, f"loss {loss}, gradient norm {grad_norm}")
        if progress.skipped_in_a_row >= config.max_skipped:
            raise Diverged(
                f"step {progress.step}: {config.max_skipped} steps in a row had no finite loss and gradient; "
                f"try a smaller optim.lr (now {config.optim.lr:g}) or a longer optim.warmup"
            )

    def evaluate(self) -> float:
        """The loss over all targets of the held-out batches, without dropout."""
        return self._loss(self.held_out)

    def evaluate_objectives(self) -> dict[str, float]:
        """The same for each objective of held_out_by_objective."""
        return {name: self._loss(batches) for name, batches in self.held_out_by_objective.items()}

    @torch.no_grad()
    def _loss(self, batches: Sequence[Batch]) -> float:
        self.model.eval()
        total = weights = 0.0
        for batch in batches:
            weight = float(batch.loss_mask.sum())
            total += self.model.loss(batch.to(self.device)).item() * weight
            weights += weight
        self.model.train()
        return total / weights

    def save(self) -> Path:
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            config=self.model.config.to_dict(),
            tokenizer=self.tokenizer,
            optimizer=optimizer_tensors(self.model, self.optimizer),
            rng=torch.get_rng_state(),
            state=asdict(self.progress),
        )
        return save_checkpoint(self.run, self.progress.step, checkpoint, keep_last=self.config.keep_last)


@contextmanager
def _caught_signals() -> Iterator[list[signal.Signals]]:
    """Yields a list that receives SIGINT or SIGTERM. A second one acts as if nobody had caught the first."""
    caught: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield caught
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))
        restore()

    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        restore()
