"""Where sentences end: Punkt (Kiss and Strunk 2006), trained on the text itself, and Chinese marks.

Punkt learns from a text, without labels, which words are abbreviations ("Dr.", "e.g.") and which begin
sentences. nltk's implementation is used; nothing is downloaded.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from glm_ext.extras import require

_CHINESE_END = re.compile("[。？！；…]+[”’」』）\"')]*")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


class SentenceSplitter:
    """Finds the ends of sentences by what Punkt has learned; `parameters` is its JSON."""

    def __init__(self, parameters: str) -> None:
        punkt = _punkt()
        learned = json.loads(parameters)
        made = punkt.PunktParameters()
        made.abbrev_types = set(learned["abbreviations"])
        made.collocations = {(first, second) for first, second in learned["collocations"]}
        made.sent_starters = set(learned["sentence_starters"])
        made.ortho_context = defaultdict(int, learned["orthography"])
        self.parameters = parameters
        self._tokenizer = punkt.PunktSentenceTokenizer(made)

    @classmethod
    def train(cls, texts: Iterable[str]) -> SentenceSplitter:
        """Learns from texts; the more of the same kind, the better."""
        trainer: Any = _punkt().PunktTrainer()
        for text in texts:
            trainer.train(text, finalize=False)
        trainer.finalize_training()
        learned = trainer.get_params()
        return cls(
            json.dumps(
                {
                    "abbreviations": sorted(learned.abbrev_types),
                    "collocations": sorted(learned.collocations),
                    "sentence_starters": sorted(learned.sent_starters),
                    "orthography": dict(sorted(learned.ortho_context.items())),
                },
                ensure_ascii=False,
            )
        )

    def ends(self, text: str) -> list[int]:
        """How many characters there are up to the end of each sentence, its closing newlines included.

        A blank line ends a sentence whatever stands before it; so does a Chinese mark.
        """
        found = {match.end() for match in _CHINESE_END.finditer(text)}
        begin = 0
        for blank in [*(match.start() for match in _BLANK_LINE.finditer(text)), len(text)]:
            found.update(begin + end for _, end in self._tokenizer.span_tokenize(text[begin:blank]))
            begin = blank
        return sorted({_after_newlines(text, end) for end in found})


def _after_newlines(text: str, end: int) -> int:
    while text.startswith("\n", end):
        end += 1
    return end


def _punkt() -> Any:
    return require("nltk.tokenize.punkt", extra="data", purpose="splitting sentences by Punkt")
