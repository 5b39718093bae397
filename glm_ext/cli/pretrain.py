"""glm-ext pretrain: text -> tokenizer -> GLM -> loss curve and filled blanks, in one run folder.

config.yaml  tokenizer.json  data.json  metrics.jsonl  tb/  step-N/  loss.png
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from glm_ext.batch import Batch
from glm_ext.cli.errors import UserError, user_errors
from glm_ext.config import GLMConfig
from glm_ext.data import (
    Cloze,
    GLMTokenizer,
    TokenSpanBatches,
    encode_documents,
    held_out_cloze,
    load_documents,
    split_documents,
    target_counts,
    unigram_loss,
)
from glm_ext.generate import fill
from glm_ext.model import GLM
from glm_ext.train.checkpoint import Checkpoint, load_checkpoint
from glm_ext.train.config import TrainConfig, config_errors, config_parser, from_namespace
from glm_ext.train.log import RunLog
from glm_ext.train.plot import plot_loss
from glm_ext.train.trainer import Diverged, Trainer

_UNIGRAM_STEPS = 200  # steps whose targets the word frequencies are counted on


def main(arguments: Sequence[str]) -> int:
    with user_errors():
        job = _prepare(*_parse(arguments))
    return _train(job)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A run, ready to start: everything that can be wrong with its settings and files has been checked."""

    config: TrainConfig
    run: Path
    model: GLM
    tokenizer: GLMTokenizer
    batches: TokenSpanBatches
    held_out: list[Batch]
    unigram_loss: float
    blanks: list[Cloze]
    resume: Checkpoint | None


def _parse(arguments: Sequence[str]) -> tuple[TrainConfig, Path, Checkpoint | None]:
    """The settings, the run folder, and the checkpoint to go on from."""
    parser = config_parser(
        "glm-ext pretrain", "Trains a GLM on text and fills three blanks of text it has not seen."
    )
    parser.add_argument("--run", type=str, help="folder of the run; null: runs/pretrain-<date>-<time>")
    parser.add_argument(
        "--resume", type=str, help="run folder to go on with, with its settings; --steps may be more"
    )
    with config_errors(also=["config", "run", "resume"]):
        options = parser.parse_args(list(arguments))
        given = parser.parse_args(list(arguments), defaults=False).as_flat()
    if options.resume is None:
        run = Path(options.run or time.strftime("runs/pretrain-%Y%m%d-%H%M%S"))
        if run.exists():
            raise UserError(f"{run} exists; go on with it by --resume {run}, or choose another --run")
        return from_namespace(options), run, None

    run = Path(options.resume)
    if others := sorted(set(vars(given)) - {"resume", "steps"}):
        raise UserError(
            f"--resume takes its settings from {run / 'config.yaml'}; leave out --{', --'.join(others)}"
        )
    checkpoint, folder = load_checkpoint(run)
    if folder == run:
        raise UserError(f"--resume expects the run folder, {run.parent}, not one of its checkpoints")
    config = TrainConfig.from_yaml(run / "config.yaml")
    if "steps" in given:
        config = dataclasses.replace(config, steps=options.steps)
    if config.steps < checkpoint.state["step"]:
        raise UserError(
            f"{folder} is past step {config.steps}; expected --steps of at least {checkpoint.state['step']}"
        )
    return config, run, checkpoint


def _prepare(config: TrainConfig, run: Path, resume: Checkpoint | None) -> _Job:
    if config.threads:
        torch.set_num_threads(config.threads)
    documents, held_out_documents = split_documents(load_documents(config.data.path), config.data.held_out)
    blanks = held_out_cloze(held_out_documents, np.random.default_rng(config.seed), 3)
    if resume:
        tokenizer = GLMTokenizer.load(run)
    else:
        tokenizer = GLMTokenizer.train(documents, config.data.vocab_size)
    overrides = {"vocab_size": tokenizer.padded_vocab_size(), **config.model.overrides}
    torch.manual_seed(config.seed)
    model_config = GLMConfig.preset(config.model.preset, **overrides)
    if config.data.seq_length > model_config.max_positions:
        raise UserError(
            f"data.seq_length: expected at most the model's max_positions, {model_config.max_positions}, "
            f"got {config.data.seq_length}; lower it or raise model.overrides.max_positions"
        )
    model = GLM(model_config).to(config.device)

    tokens = encode_documents(tokenizer, documents)
    batches = TokenSpanBatches(
        documents=tokens,
        ids=tokenizer.ids,
        batch_size=config.batch_size,
        max_length=config.data.seq_length,
        seed=config.seed,
    )
    held_out = dataclasses.replace(batches, documents=encode_documents(tokenizer, held_out_documents))
    fixed = held_out.take(config.eval_batches)
    counts = target_counts(batches.take(_UNIGRAM_STEPS), model_config.vocab_size)

    run.mkdir(parents=True, exist_ok=True)
    _check_same_text(run / "data.json", tokens.tokens, len(documents))
    config.to_yaml(run / "config.yaml")
    tokenizer.save(run)
    print(
        f"text     {len(documents):,} documents, {len(tokens.tokens):,} tokens; {len(held_out_documents):,} held out"
    )
    print(
        f"model    {config.model.preset}, {model.num_parameters():,} parameters, {torch.get_num_threads()} threads"
    )
    print(f"run      {run}" + (f", from step {resume.state['step']}" if resume else ""), flush=True)
    return _Job(
        config=config,
        run=run,
        model=model,
        tokenizer=tokenizer,
        batches=batches,
        held_out=fixed,
        unigram_loss=unigram_loss(counts, fixed),
        blanks=blanks,
        resume=resume,
    )


def _train(job: _Job) -> int:
    config, run = job.config, job.run
    start = job.resume.state["step"] if job.resume else 0
    with RunLog(run, steps=config.steps, start=start, every=config.log_every) as log:
        if not job.resume:
            log.unigram(job.unigram_loss)
        trainer = Trainer(
            job.model,
            config,
            batch_at=job.batches.batch,
            held_out=job.held_out,
            run=run,
            log=log,
            tokenizer=(run / "tokenizer.json").read_text(encoding="utf-8"),
            resume=job.resume,
        )
        try:
            stopped = trainer.train()
        except Diverged as error:
            log.message(f"glm-ext: {error}")
            return 1
    if stopped:
        print(f"\nstopped by {stopped.name} and saved at step {trainer.progress.step}; go on with:\n")
        print(f"  {shlex.join(['glm-ext', 'pretrain', '--resume', str(run)])}")
        return 128 + stopped
    _report(job, trainer.evaluate())
    return 0


def _report(job: _Job, held_out_loss: float) -> None:
    print(
        f"\nheld-out loss {held_out_loss:.3f} nats per token; by word frequencies alone {job.unigram_loss:.3f}"
    )
    print("\nthree blanks in sentences that it has not seen:")
    for blank in job.blanks:
        filled = fill(job.model, job.tokenizer, blank.text)
        print(f"\n  {blank.text}\n    filled  {filled[0].strip()}\n    truth   {blank.truth}")
    print(f"\nloss curve  {plot_loss(job.run)}")
    again = shlex.join(["glm-ext", "fill", str(job.run), "The [MASK] of the list."])
    print(f"try it      {again}")


def _check_same_text(path: Path, tokens: np.ndarray, documents: int) -> None:
    """Records which text a run learns from; a resumed run must find the same."""
    now = {
        "documents": documents,
        "tokens": len(tokens),
        "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
    }
    if not path.exists():
        path.write_text(json.dumps(now, indent=2), encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if now != before:
        raise UserError(
            f"the text has changed since the run began: {before['documents']:,} documents, {before['tokens']:,} tokens "
            f"then, {documents:,} and {len(tokens):,} now; go on with the same text (and Python, for the text in it)"
        )
