"""glm-ext pretrain: text -> tokenizer -> GLM -> loss curve and filled blanks, in one run folder.

config.yaml  tokenizer.json  data.json  metrics.jsonl  tb/  step-N/  loss.png
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glm_ext.batch import Batch
from glm_ext.cli.arguments import parse_arguments
from glm_ext.cli.errors import UserError, user_errors
from glm_ext.cli.resume import check_new, recorded, resumed, stopped_by
from glm_ext.cli.text import load_text
from glm_ext.data import (
    Cloze,
    ExampleBatches,
    GLMTokenizer,
    Mixture,
    held_out_cloze,
    target_counts,
    unigram_loss,
)
from glm_ext.data.files import write_atomically
from glm_ext.generate import GenerationConfig, fill
from glm_ext.model import GLM
from glm_ext.train.checkpoint import Checkpoint
from glm_ext.train.config import TrainConfig
from glm_ext.train.log import RunLog
from glm_ext.train.plot import plot_loss
from glm_ext.train.settings import ConfigError, config_parser, from_namespace
from glm_ext.train.trainer import Diverged, Evaluation, Trainer

_DESCRIPTION = """Trains a GLM on text and fills three blanks of text it has not seen. With no options: the
tiny preset on the documentation inside Python, a few minutes on a laptop."""

# Steps whose targets are counted for the unigram loss: enough that more would not lower it in the second
# digit.
_UNIGRAM_STEPS = 500

# The part of the texts that must fit an objective: with fewer, a hundred in a row would not now and then, and
# the mixture would not be the one that was asked for.
_LEAST_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that is ready to start: all that can be wrong with its settings and files has been checked."""

    config: TrainConfig
    run: Path
    resume: Checkpoint | None
    tokenizer: GLMTokenizer
    model: GLM
    train: ExampleBatches
    held_out: list[Batch]
    held_out_by_objective: dict[str, list[Batch]]  # empty where there is only one
    unigram_loss: float
    blanks: list[Cloze]


def main(arguments: Sequence[str]) -> int:
    with user_errors():
        job = prepare(*parse(arguments))
    return train(job)


def parse(arguments: Sequence[str]) -> tuple[TrainConfig, Path, Checkpoint | None]:
    """The settings, the run folder, and the checkpoint to go on from."""
    parser = config_parser(TrainConfig, "glm-ext pretrain", _DESCRIPTION)
    parser.add_argument("--run", type=str, help="folder of the run; null: runs/pretrain-<date>-<time>")
    parser.add_argument(
        "--resume",
        type=str,
        help="run folder to go on with, as it was set; --steps and --optim.lr may change",
    )
    options = parse_arguments(parser, arguments)
    given = vars(parse_arguments(parser, arguments, defaults=False).as_flat())
    if options.resume is None:
        run = Path(options.run or time.strftime("runs/pretrain-%Y%m%d-%H%M%S"))
        check_new(run, "run")
        return from_namespace(TrainConfig, options), run, None

    run = Path(options.resume)
    config, checkpoint = resumed(TrainConfig, run, given, may_change=["steps", "optim.lr"])
    reached = checkpoint.state["step"] if checkpoint else 0
    if config.steps < reached:
        raise UserError(f"steps: expected at least {reached}, which {run} has reached, got {config.steps}")
    return config, run, checkpoint


def prepare(config: TrainConfig, run: Path, resume: Checkpoint | None) -> Job:
    """Reads the text, trains or loads the tokenizer, makes the model and the run folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    begun = resume is not None or (run / "tokenizer.json").exists()
    text = load_text(config.data, GLMTokenizer.load(run) if begun else None)
    tokenizer = text.tokenizer
    model_config = config.model.build(tokenizer.padded_vocab_size())
    if config.data.seq_length > model_config.max_positions:
        raise ConfigError(
            f"data.seq_length: expected at most {model_config.max_positions}, the positions of the model, "
            f"got {config.data.seq_length}; raise model.overrides.max_positions"
        )
    mixture = config.data.objectives.build(tokenizer.pieces())
    batches = ExampleBatches(
        documents=text.train,
        ids=tokenizer.ids,
        batch_size=config.batch_size,
        max_length=config.data.seq_length,
        seed=config.seed,
        objective=mixture,
        token_budget=config.data.budget(config.batch_size),
        join_documents=config.data.joins,
    )
    if not resume:
        check_objectives(batches, mixture)
    unseen = dataclasses.replace(batches, documents=text.held_out)
    held_out = unseen.take(config.eval_batches)
    several = mixture.active if len(mixture.active) > 1 else ()
    by_objective = {
        name: dataclasses.replace(unseen, objective=mixture.only(name)).take(config.eval_batches)
        for name in several
    }
    blanks = held_out_cloze(text.held_out_texts, np.random.default_rng(config.seed), 3)
    torch.manual_seed(config.seed)
    model = GLM(model_config, backend=config.backend).to(config.device)

    run.mkdir(parents=True, exist_ok=True)
    learned_from = {"documents": len(text.train), "tokens": text.train.num_tokens, "sha256": text.sha256}
    check_same_text(run / "data.json", learned_from)
    config.to_yaml(run / "config.yaml")  # first: from here on it is a run that --resume goes on with
    write_atomically(run / "data.json", json.dumps(learned_from, indent=2).encode())
    tokenizer.save(run)
    print(
        f"text   {text.train.num_tokens:,} tokens in {len(text.train):,} documents, "
        f"{len(text.held_out):,} held out"
    )
    print(
        f"model  {config.model.preset}, {model.num_parameters():,} parameters, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"run    {run}" + (f", from step {resume.state['step']}" if resume else ""), flush=True)
    return Job(
        config=config,
        run=run,
        resume=resume,
        tokenizer=tokenizer,
        model=model,
        train=batches,
        held_out=held_out,
        held_out_by_objective=by_objective,
        unigram_loss=unigram_loss(
            target_counts(map(batches.batch, range(_UNIGRAM_STEPS)), model_config.vocab_size), held_out
        ),
        blanks=blanks,
    )


def check_objectives(batches: ExampleBatches, mixture: Mixture) -> None:
    """ConfigError for an objective whose examples would be missed only far into training."""
    for name in mixture.active:
        share = dataclasses.replace(batches, objective=mixture.only(name)).share_that_fits()
        if share < _LEAST_SHARE:
            raise ConfigError(
                f"data.objectives.{name}: expected a text that it finds blanks in, but only {share:.0%} of "
                f"its pieces of {batches.max_length} tokens have any: too short, without whole sentences, or "
                "all prompt; set it to 0, or raise data.seq_length"
            )


def train(job: Job) -> int:
    """Trains to the end and reports, or to a signal and says how to go on."""
    config, run = job.config, job.run
    start = job.resume.state["step"] if job.resume else 0
    with RunLog(run, steps=config.steps, start=start, every=config.log_every) as log:
        if not job.resume:
            log.unigram(job.unigram_loss)
        trainer = Trainer(
            job.model,
            config,
            batch_at=job.train.batch,
            held_out=job.held_out,
            run=run,
            log=log,
            tokenizer=(run / "tokenizer.json").read_text(encoding="utf-8"),
            resume=job.resume,
            held_out_by_objective=job.held_out_by_objective,
        )
        try:
            stopped = trainer.train()
        except Diverged as error:
            print(f"glm-ext: {error}", file=sys.stderr)
            return 1
    if stopped:
        return stopped_by(stopped, "pretrain", run, trainer.steps_taken)
    report(job, trainer.evaluation())
    return 0


def report(job: Job, found: Evaluation) -> None:
    """Prints what was learned: the loss beside the unigram's, and three blanks beside the truth."""
    curve = plot_loss(job.run)
    print(f"\nheld-out loss  {found.held_out_loss:.3f} nats per token")
    for name, loss in found.by_objective.items():
        print(f"  {name:<12} {loss:.3f}")
    print(f"unigram loss   {job.unigram_loss:.3f} (knowing how frequent each token is, and nothing else)")
    for blank in job.blanks:
        print(f"\n  {blank.text}\n    model  {guess(job, blank.text)}\n    truth  {blank.truth}")
    print(f"\nloss curve  {curve}")
    print(f"try it      {shlex.join(['glm-ext', 'fill', str(job.run), 'Return the [MASK] of the list.'])}")


def guess(job: Job, text: str) -> str:
    """What the model writes into a blank, or why it cannot."""
    longest = min(GenerationConfig().max_length, job.model.config.max_positions - 1)
    try:
        [span] = fill(job.model, job.tokenizer, text, max_length=longest).spans
    except ValueError as error:  # the sentence is too long for the model
        return f"({error})"
    return span.strip() or "(nothing)"


def check_same_text(path: Path, now: dict[str, Any]) -> None:
    """A run that goes on must find the text that data.json says it has learned from."""
    before = recorded(path, now)
    if before is not None and before != now:
        raise UserError(
            f"the text has changed since the run began: {before['tokens']:,} tokens in "
            f"{before['documents']:,} documents then, {now['tokens']:,} in {now['documents']:,} now; go on "
            "with the same text, or for the text inside Python with the same Python"
        )
