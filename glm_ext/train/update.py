"""From losses to better parameters: autocast, loss scale, clipping, learning rate, AdamW.

Pretraining and finetuning both train through an Updater:

    with updater.autocast():
        part = loss of a micro batch * its weight
    loss += updater.backward(part)
    done = updater.update(step, loss)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glm_ext.train.config import OptimConfig
from glm_ext.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from glm_ext.train.schedule import learning_rate

# Parameters, gradients and moments are float32 in each: autocast rounds inside the operations alone.
AUTOCAST = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(RuntimeError):
    """The loss or its gradient was not finite for too many steps in a row."""


class Update(NamedTuple):
    """What became of a step."""

    lr: float
    grad_norm: float  # of the whole gradient, before clipping
    skipped: str | None  # why the parameters were left as they were, or None


class Updater:
    """Takes optimizer steps, and refuses those whose loss or gradient is not finite.

    Args:
        model: whose parameters learn; they are on the device to train on.
        steps: length of the run, by which the schedule goes.
        precision: "float32", "bf16" or "fp16". fp16 scales the loss so that small gradients do not vanish; a
            step that overflows is skipped and halves the scale (Micikevicius et al., "Mixed Precision
            Training", section 3.2).
        max_skipped: steps skipped in a row after which update raises Diverged.
    """

    def __init__(
        self, model: nn.Module, config: OptimConfig, *, steps: int, precision: str, max_skipped: int
    ) -> None:
        self.model, self.config, self.steps, self.max_skipped = model, config, steps, max_skipped
        self.device = next(model.parameters()).device
        self.dtype = AUTOCAST[precision]
        self.optimizer = build_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.skipped_in_a_row = 0

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> float:
        """Adds the gradient of the loss to that of the step; returns the loss."""
        torch.autograd.backward(self.scaler.scale(loss))
        return loss.item()

    def update(self, step: int, loss: float) -> Update:
        """Moves the parameters by the gradient gathered so far, unless that or the loss is not finite.

        step: number of steps already taken, which decides the learning rate.
        """
        config = self.config
        lr = learning_rate(
            step,
            peak=config.lr,
            steps=self.steps,
            warmup=config.warmup,
            min_ratio=config.min_lr_ratio,
            schedule=config.schedule,
            decay=config.decay,
        )
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip).item()
        skipped = None
        if math.isfinite(loss) and math.isfinite(grad_norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.scaler.step(self.optimizer)
        else:
            at_scale = f", loss scale {scale:g}" if self.scaler.is_enabled() else ""
            skipped = f"loss {loss}, gradient norm {grad_norm}{at_scale}"
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        return Update(lr, grad_norm, skipped)

    def check_progress(self, step: int) -> None:
        """Raises Diverged if the last max_skipped steps were all skipped."""
        if self.skipped_in_a_row >= self.max_skipped:
            lr = self.config.lr
            raise Diverged(
                f"step {step}: {self.max_skipped} steps in a row had no finite loss and gradient; go on with "
                f"a smaller optim.lr (now {lr:g}), as by --resume RUN --optim.lr {lr / 10:g}, or begin anew "
                "with a longer optim.warmup"
            )

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by the parameters' names."""
        return optimizer_tensors(self.model, self.optimizer)

    def state(self) -> dict[str, Any]:
        """The rest of the state, ready for JSON."""
        scaler = self.scaler.state_dict()
        return {"skipped_in_a_row": self.skipped_in_a_row} | ({"scaler": scaler} if scaler else {})

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The inverse of tensors() and state()."""
        load_optimizer_tensors(self.model, self.optimizer, tensors)
        self.skipped_in_a_row = state["skipped_in_a_row"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
