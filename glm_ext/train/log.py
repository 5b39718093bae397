"""What a run records: metrics.jsonl and TensorBoard always, and a progress bar or plain lines to read."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from glm_ext.extras import require

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What is recorded of a step."""

    loss: float
    lr: float
    grad_norm: float  # before clipping
    tokens_per_second: int  # waiting for data included
    tokens: int  # seen since the run began, padding left out
    data_wait: float  # seconds that the step waited for its batches
    peak_memory: int  # bytes, the most since the process began
    mfu: float  # useful operations a second over the measured peak, see throughput.py

    def speed(self) -> str:
        return f"{self.tokens_per_second:,} tokens/s ({self.mfu:.0%} of peak)"


@dataclass(frozen=True, kw_only=True)
class ExamplesRecord:
    """What is recorded of a step of finetuning."""

    loss: float
    lr: float
    grad_norm: float  # before clipping
    epoch: float  # epochs done
    examples_per_second: float
    peak_memory: int  # bytes, the most since the process began

    def speed(self) -> str:
        return f"{self.examples_per_second:,.1f} examples/s"


class RunLog:
    """The record of a run, from `start` to `steps`.

    RUN/metrics.jsonl has one JSON object a line, told apart by their keys:

        {"step", "loss", ...}        a step: the fields of StepRecord, or of ExamplesRecord
        {"step", "skipped"}          a step whose loss or gradient was not finite
        {"step", "held_out_loss"}    an evaluation; with several objectives also "held_out_loss/NAME" of each
        {"step", "valid/NAME", ...}  the metrics of a task on its validation file
        {"step", "unigram_loss"}     the baseline, once

    A resumed run drops the rows past the checkpoint it starts from, all of them where it starts from none,
    so no step is there twice. The metrics of a task at that very step are past it: they come after the
    checkpoint, and come again.
    """

    def __init__(
        self, run: Path, *, steps: int, start: int = 0, every: int = 10, stream: IO[str] | None = None
    ) -> None:
        self.run, self.steps, self.start, self.every = run, steps, start, every
        self.stream = stream or sys.stdout
        self.held_out: float | None = None  # the last one
        self.began = time.perf_counter()

    def __enter__(self) -> Self:
        self.run.mkdir(parents=True, exist_ok=True)
        self.metrics = _open_metrics(self.run / "metrics.jsonl", self.start)
        writer = require("torch.utils.tensorboard", extra="train").SummaryWriter
        self.board = writer(str(self.run / "tb"), purge_step=self.start + 1)
        self.bar = _Bar(self.start, self.steps) if self.stream.isatty() else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
        self.board.close()
        self.metrics.close()

    def step(self, step: int, record: StepRecord | ExamplesRecord) -> None:
        self._write(step, **asdict(record))
        if self.bar:
            self.bar.advance(step, record, self.held_out)
        elif step % self.every == 0 or step == self.steps:
            done = step - self.start
            left = (time.perf_counter() - self.began) / done * (self.steps - step)
            self.message(
                f"step {step}/{self.steps}  loss {record.loss:.4f}  lr {record.lr:.2e}"
                f"  grad norm {record.grad_norm:.2f}  {record.speed()}  {clock(left)} left"
            )

    def skipped(self, step: int, reason: str) -> None:
        self._write(step, skipped=reason)
        self.message(f"step {step}/{self.steps}  skipped: {reason}")

    def evaluation(self, step: int, loss: float, by_objective: Mapping[str, float] | None = None) -> None:
        each = by_objective or {}
        self.held_out = loss
        self._write(
            step, held_out_loss=loss, **{f"held_out_loss/{name}": value for name, value in each.items()}
        )
        if each or not self.bar:  # the bar itself has room for one loss
            parts = "".join(f"  {name} {value:.4f}" for name, value in each.items())
            self.message(f"step {step}/{self.steps}  held-out loss {loss:.4f}{parts}")

    def scores(self, step: int, metrics: Mapping[str, float], *, best: bool) -> None:
        self._write(step, **{f"valid/{name}": value for name, value in metrics.items()})
        found = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.message(f"step {step}/{self.steps}  {found}{'  (best so far)' if best else ''}")

    def unigram(self, loss: float) -> None:
        self._write(self.start, unigram_loss=loss)

    def message(self, text: str) -> None:
        if self.bar:
            self.bar.print(text)
        else:
            print(text, file=self.stream, flush=True)

    def _write(self, step: int, **values: float | str) -> None:
        self.metrics.write(json.dumps({"step": step, **for_json(values)}) + "\n")
        self.metrics.flush()
        for key, value in values.items():
            if not isinstance(value, str):
                self.board.add_scalar(key, value, step)


def for_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """A number that JSON cannot say (nan, inf) becomes null rather than a file that other readers refuse.

    >>> for_json({"loss": 2.0, "perplexity": float("inf")})
    {'loss': 2.0, 'perplexity': None}
    """
    return {k: v if isinstance(v, str) or abs(v) < float("inf") else None for k, v in values.items()}


class _Bar:
    """The progress bar of a terminal."""

    def __init__(self, start: int, steps: int) -> None:
        progress = require("rich.progress", extra="train")
        self._progress = progress.Progress(
            progress.TextColumn("step {task.completed}/{task.total}"),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.description}"),
            progress.TimeRemainingColumn(compact=True),
            speed_estimate_period=60,
        )
        self._task = self._progress.add_task("", total=steps, completed=start)
        self._progress.start()

    def advance(self, step: int, record: StepRecord | ExamplesRecord, held_out: float | None) -> None:
        known = f"loss {record.loss:.3f}" + ("" if held_out is None else f" · held-out {held_out:.3f}")
        self._progress.update(
            self._task, completed=step, description=f"{known} · {record.speed()} · time left"
        )

    def print(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self._progress.stop()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of RUN/metrics.jsonl. A last line that a crash cut short is left out."""
    rows = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any.

    Example:
        >>> clock(61.2), clock(7325)
        ('1:01', '2:02:05')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _is_scores(row: Mapping[str, Any]) -> bool:
    return any(name.startswith("valid/") for name in row)


def _open_metrics(path: Path, start: int) -> IO[str]:
    if path.exists():
        rows = [row for row in read_metrics(path.parent) if row["step"] <= start] if start else []
        kept = [json.dumps(row) + "\n" for row in rows if row["step"] < start or not _is_scores(row)]
        scratch = path.with_suffix(".partial")
        scratch.write_text("".join(kept), encoding="utf-8")
        os.replace(scratch, path)
    return path.open("a", encoding="utf-8")
