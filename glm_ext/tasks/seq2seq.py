"""Sequence to sequence: summaries, translations, answers. The source is Part A, the target its one blank.

    tokens    [CLS] source [sMASK] eos | <sop> t1 t2
    targets                            |  t1 t2 <eop>

(Du et al., "GLM", section 3.3.) Sequences of different lengths share a batch by their lengths: padding is
never attended.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from glm_ext.data.blocks import Example
from glm_ext.data.cloze import Prompt
from glm_ext.data.collate import collate
from glm_ext.data.special import MASK_TOKENS
from glm_ext.extras import require
from glm_ext.generate import GenerationConfig, fill_prompts
from glm_ext.model import GLM
from glm_ext.tasks.records import Fields, examples_of, read_records

if TYPE_CHECKING:
    from glm_ext.data.tokenizer import GLMTokenizer

_METRICS = {"rouge": "rougeL", "bleu": "bleu"}  # metric -> the one that decides


class Pair(NamedTuple):
    """A source and what should be written for it, as text and as the tokens of both parts."""

    source: str
    target: str
    context: list[int]  # Part A
    place: int  # of its blank
    answer: list[int]  # ends with eop, unless the target was cut


@dataclass(frozen=True, kw_only=True)
class Seq2SeqOptions:
    """Options of the task, checked when made: ValueError names the option, what it may be, and what came."""

    pattern: str = (
        "{source} [sMASK]"  # Part A, with one blank; the paper's summaries: "[sMASK] Content: {source}"
    )
    max_source: int = 256  # tokens of Part A; the source is cut at its end
    max_target: int = 64  # tokens of Part B
    label_smoothing: float = 0.1
    metric: str = "rouge"  # or "bleu"
    num_beams: int = 4
    min_length: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram: int = 3
    eval_batch_size: int = 16

    def __post_init__(self) -> None:
        blanks = sum(self.pattern.count(mask) for mask in MASK_TOKENS)
        _expect(
            self.pattern.count("{source}") == 1 and blanks == 1,
            "pattern",
            f"{{source}} and one of {', '.join(MASK_TOKENS)}, once each",
            self.pattern,
        )
        for name in ("max_target", "num_beams", "eval_batch_size"):
            _expect(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        _expect(self.max_source >= 8, "max_source", "8 or more", self.max_source)
        _expect(0 <= self.label_smoothing < 1, "label_smoothing", "0 to 1", self.label_smoothing)
        _expect(self.metric in _METRICS, "metric", " or ".join(_METRICS), self.metric)


def _expect(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ValueError(f"seq2seq: {name}: expected {expected}, got {value!r}")


class Seq2Seq:
    """The task "seq2seq"; its files are JSON lines or CSV with "source" and "target".

    The loss is the label-smoothed cross-entropy (1 - e) (-log p(y)) + e mean_v(-log p(v)), averaged over the
    tokens of a target, then over the examples. Metrics compare what beam search writes with the targets:
    ROUGE-1, 2 and L as F1 by rouge-score, or BLEU and chrF by sacrebleu, all in percent, and exact matches.
    """

    name = "seq2seq"
    module: nn.Module | None = None

    def __init__(self, tokenizer: GLMTokenizer, **options: Any) -> None:
        known = [field.name for field in fields(Seq2SeqOptions)]
        if unknown := sorted(set(options) - set(known)):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            raise ValueError(
                f"seq2seq: there is no option {unknown[0]}; did you mean {near[0]}?"
                if near
                else f"seq2seq: there is no option {unknown[0]}; it has {', '.join(known)}"
            )
        self.tokenizer, self.options = tokenizer, Seq2SeqOptions(**options)
        self.primary = _METRICS[self.options.metric]
        before, after = self.options.pattern.split("{source}")
        self._before = [tokenizer.cls_id, *tokenizer.encode(before, allow_special=MASK_TOKENS)]
        self._after = [*tokenizer.encode(after, allow_special=MASK_TOKENS), tokenizer.eos_id]
        self._room = self.options.max_source - len(self._before) - len(self._after)
        _expect(self._room >= 1, "max_source", "room for the pattern and a source", self.options.max_source)

    def examples(self, path: Path) -> list[Pair]:
        """The pairs of a file. ValueError names the file and the line that is not one."""
        return examples_of(path, read_records(path), self._pairs)

    def _pairs(self, fields: Fields) -> list[Pair]:
        for key in ("source", "target"):
            text = fields.get(key)
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{key}: expected a text, got {text!r}")
        return [self.pair(fields["source"], fields["target"])]

    def pair(self, source: str, target: str) -> Pair:
        """Source and target as tokens. Special tokens in them are plain text; a long one is cut at its end.

        A target that was cut has no eop: it does not end there.
        """
        tokenizer = self.tokenizer
        context = [*self._before, *tokenizer.encode(source)[: self._room], *self._after]
        masks = tokenizer.mask_ids
        place = next(place for place, token in enumerate(context) if token in masks)
        # A blank swallows the white space on its left, so what fills it begins with it.
        answer = [*tokenizer.encode(f" {target.strip()}"), tokenizer.eop_id]
        return Pair(source, target, context, place, answer[: self.options.max_target])

    def loss(self, model: GLM, examples: Sequence[Pair]) -> Tensor:
        batch = collate([self._example(pair) for pair in examples], self.tokenizer.pad_id)
        batch = batch.to(model.word_embeddings.weight.device)
        hidden = model.hidden(batch.tokens, batch.positions, batch.prefix_len, batch.seq_len)
        loss: Tensor = model.transformer.ops.linear_cross_entropy(
            hidden,
            model.word_embeddings.weight,
            batch.targets,
            batch.loss_mask,
            label_smoothing=self.options.label_smoothing,
        )
        return loss

    def _example(self, pair: Pair) -> Example:
        a, b = len(pair.context), len(pair.answer)
        positions = np.zeros((2, a + b), dtype=np.int64)
        positions[0] = [*range(a), *[pair.place] * b]
        positions[1, a:] = range(1, b + 1)
        loss_mask = np.zeros(a + b, dtype=np.float32)
        loss_mask[a:] = 1 / b  # each example weighs the same
        return Example(
            tokens=np.array([*pair.context, self.tokenizer.sop_id, *pair.answer[:-1]]),
            targets=np.array([*pair.context, *pair.answer]),
            positions=positions,
            loss_mask=loss_mask,
            prefix_len=a,
        )

    @torch.no_grad()
    def metrics(self, model: GLM, examples: Sequence[Pair]) -> dict[str, float]:
        score = {"rouge": _rouge, "bleu": _bleu}[self.options.metric]
        written = self.write(model, examples)
        targets = [pair.target.strip() for pair in examples]
        same = [text == target for text, target in zip(written, targets, strict=True)]
        return {**score(written, targets), "exact_match": 100 * sum(same) / len(same)}

    def write(self, model: GLM, examples: Sequence[Pair]) -> list[str]:
        """What the model writes for each source."""
        options = self.options
        config = GenerationConfig(
            max_length=options.max_target,
            min_length=options.min_length,
            num_beams=options.num_beams,
            length_penalty=options.length_penalty,
            no_repeat_ngram=options.no_repeat_ngram,
        )
        texts = []
        for first in range(0, len(examples), options.eval_batch_size):
            pairs = examples[first : first + options.eval_batch_size]
            prompts = [Prompt(pair.context, [pair.place]) for pair in pairs]
            for [span] in fill_prompts(model, self.tokenizer, prompts, None, config):
                texts.append(self.tokenizer.decode(span).strip())
        return texts


def _rouge(written: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in percent (Lin, "ROUGE", 2004)."""
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = require("rouge_score.rouge_scorer", extra="eval").RougeScorer(names, use_stemmer=True)
    scores = [scorer.score(target, text) for target, text in zip(targets, written, strict=True)]
    return {name: 100 * sum(score[name].fmeasure for score in scores) / len(scores) for name in names}


def _bleu(written: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU and chrF (Post, "A Call for Clarity in Reporting BLEU Scores", 2018)."""
    sacrebleu = require("sacrebleu", extra="eval")
    return {
        "bleu": sacrebleu.corpus_bleu(list(written), [list(targets)]).score,
        "chrf": sacrebleu.corpus_chrf(list(written), [list(targets)]).score,
    }
