"""Sequence to sequence: summaries, translations, answers. The source is Part A, the target its one blank.

    tokens    [CLS] source [sMASK] eos | <sop> t1 t2
    targets                            |  t1 t2 <eop>

(Du et al., "GLM", section 3.3.) Sequences of different lengths share a batch by their lengths: padding is
never attended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from glm_ext.data.blocks import Example
from glm_ext.data.cloze import Prompt
from glm_ext.data.collate import collate
from glm_ext.data.special import MASK_TOKENS
from glm_ext.data.tokenizer import GLMTokenizer
from glm_ext.extras import require
from glm_ext.generate import GenerationConfig, fill_prompts
from glm_ext.model import GLM

from .likelihood import mask_field, one_blank
from .records import Fields, examples_of, read_records
from .task import Task, batches, length_option


class Pair(NamedTuple):
    """A source and what should be written for it, as text and as the tokens of both parts."""

    source: str
    target: str
    context: list[int]  # Part A
    place: int  # of its blank
    answer: list[int]  # ends with eop, unless the target was cut


def _expect(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ValueError(f"seq2seq: {name}: expected {expected}, got {value!r}")


class Seq2Seq(Task):
    """The task "seq2seq"; its files are JSON lines or CSV with "source" and "target".

    The loss is the label-smoothed cross-entropy (1 - e) (-log p(y)) + e mean_v(-log p(v)), averaged over the
    tokens of a target, then over the examples. Metrics compare what beam search writes with the targets:
    ROUGE-1, 2 and L as F1 by rouge-score, or BLEU and chrF by sacrebleu, all in percent, and exact matches.
    """

    name = "seq2seq"
    module: nn.Module | None = None

    def __init__(
        self,
        tokenizer: GLMTokenizer,
        *,
        pattern: str = "{source} [sMASK]",
        max_source: int | None = None,
        max_target: int | None = None,
        label_smoothing: float = 0.1,
        metric: str = "rouge",
        num_beams: int = 4,
        min_length: int = 0,
        length_penalty: float = 1.0,
        no_repeat_ngram: int = 3,
        eval_batch_size: int = 16,
        max_positions: int | None = None,
    ) -> None:
        """ValueError names the option, what it may be, and what came.

        pattern: Part A, with one blank; the paper's summaries: "[sMASK] Content: {source}".
        max_source: tokens of Part A; the source is cut at its end. max_target: tokens of Part B.
        By default 256 and 64, or what max_positions leaves where that is less.
        metric: "rouge" or "bleu".
        num_beams, min_length, length_penalty, no_repeat_ngram: of the search, as in GenerationConfig.
        """
        blanks = sum(pattern.count(mask) for mask in MASK_TOKENS)
        one_of_each = f"{{source}} and one of {', '.join(MASK_TOKENS)}, once each"
        _expect(pattern.count("{source}") == 1 and blanks == 1, "pattern", one_of_each, pattern)
        for name, count in {"num_beams": num_beams, "eval_batch_size": eval_batch_size}.items():
            _expect(count >= 1, name, "1 or more", count)
        max_source = length_option("seq2seq: max_source", max_source, max_positions, lowest=8)
        # Generation begins with a token of its own.
        max_target = length_option("seq2seq: max_target", max_target, max_positions, besides=1, usual=64)
        _expect(0 <= min_length <= max_target, "min_length", f"0 to {max_target} (max_target)", min_length)
        _expect(no_repeat_ngram >= 0, "no_repeat_ngram", "0 (off) or more", no_repeat_ngram)
        _expect(0 <= label_smoothing < 1, "label_smoothing", "0 to 1", label_smoothing)
        _expect(metric in _METRICS, "metric", " or ".join(_METRICS), metric)
        self.tokenizer, self.max_target, self.eval_batch_size = tokenizer, max_target, eval_batch_size
        self.label_smoothing, self.metric = label_smoothing, _METRICS[metric]
        self.primary = self.metric.primary
        self.generation = GenerationConfig(
            max_length=max_target,
            min_length=min_length,
            num_beams=num_beams,
            length_penalty=length_penalty,
            no_repeat_ngram=no_repeat_ngram,
        )
        self.mask = mask_field(next(mask for mask in MASK_TOKENS if mask in pattern))
        before, after = pattern.split("{source}")
        self._before = [tokenizer.cls_id, *tokenizer.encode(before, allow_special=MASK_TOKENS)]
        self._after = [*tokenizer.encode(after, allow_special=MASK_TOKENS), tokenizer.eos_id]
        self._room = max_source - len(self._before) - len(self._after)
        _expect(self._room >= 1, "max_source", "room for the pattern and a source", max_source)

    def check(self) -> None:
        require(self.metric.package, extra="eval")

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
        return Pair(source, target, context, place, answer[: self.max_target])

    def loss(self, model: GLM, examples: Sequence[Pair]) -> Tensor:
        batch = collate([self._example(pair) for pair in examples], self.tokenizer.pad_id)
        batch = batch.to(model.word_embeddings.weight.device)
        hidden, head = model.hidden_and_head(batch.tokens, batch.positions, batch.prefix_len, batch.seq_len)
        loss: Tensor = model.transformer.ops(hidden).linear_cross_entropy(
            hidden,
            head,
            batch.targets,
            batch.loss_mask,
            label_smoothing=self.label_smoothing,
        )
        return loss

    def _example(self, pair: Pair) -> Example:
        blocks = one_blank(self.tokenizer, pair.context, pair.place, pair.answer)
        # Each example weighs the same.
        return dataclasses.replace(blocks, loss_mask=blocks.loss_mask / blocks.loss_mask.sum())

    @torch.no_grad()
    def metrics(self, model: GLM, examples: Sequence[Pair]) -> dict[str, float]:
        written = self.write(model, examples)
        targets = [pair.target.strip() for pair in examples]
        same = [text == target for text, target in zip(written, targets, strict=True)]
        return {**self.metric.score(written, targets), "exact_match": 100 * sum(same) / len(same)}

    def write(self, model: GLM, examples: Sequence[Pair]) -> list[str]:
        """What the model writes for each source."""
        texts = []
        for pairs in batches(examples, self.eval_batch_size):
            prompts = [Prompt(pair.context, [pair.place]) for pair in pairs]
            for [span] in fill_prompts(model, self.tokenizer, prompts, None, self.generation):
                texts.append(self.tokenizer.decode(span).strip())
        return texts


def _rouge(written: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in percent (Lin, "ROUGE", 2004)."""
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = require(_METRICS["rouge"].package, extra="eval").RougeScorer(names, use_stemmer=True)
    scores = [scorer.score(target, text) for target, text in zip(targets, written, strict=True)]
    return {name: 100 * sum(score[name].fmeasure for score in scores) / len(scores) for name in names}


def _bleu(written: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU and chrF (Post, "A Call for Clarity in Reporting BLEU Scores", 2018)."""
    sacrebleu = require(_METRICS["bleu"].package, extra="eval")
    return {
        "bleu": sacrebleu.corpus_bleu(list(written), [list(targets)]).score,
        "chrf": sacrebleu.corpus_chrf(list(written), [list(targets)]).score,
    }


class _Metric(NamedTuple):
    score: Callable[[Sequence[str], Sequence[str]], dict[str, float]]  # (written, targets) -> values
    primary: str  # the value that decides
    package: str  # of the extra "eval"


_METRICS = {
    "rouge": _Metric(_rouge, "rougeL", "rouge_score.rouge_scorer"),
    "bleu": _Metric(_bleu, "bleu", "sacrebleu"),
}
