"""What a cloze task is, as a file of a few lines says it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from glm_ext.extras import require
from glm_ext.spelling import did_you_mean

from .metrics import METRICS
from .pattern import count_masks, parse_pattern
from .records import Fields, parse_json, read_text


@dataclass(frozen=True, kw_only=True)
class Description:
    """A cloze task. ValueError names what is wrong with it.

    Either `verbalizer`, label -> answer, or `choices`, patterns of each record's own answers, or the field
    that holds a list of them, as in ["*field"].

    >>> sentiment = Description(
    ...     name="reviews",
    ...     pattern="{text} It was [MASK].",
    ...     verbalizer={"neg": "bad", "pos": "good"},
    ...     shorten=["text"],
    ... )
    >>> sentiment.labels
    ['neg', 'pos']
    """

    name: str
    pattern: str  # "{field}" and one mask
    verbalizer: Mapping[str, str] = field(default_factory=dict)
    choices: Sequence[str] = ()
    label: str = "label"  # the field that says which is right: a label, or the number of a choice (or a list)
    shorten: Sequence[str] = ()  # fields that may be cut where the text is too long
    metrics: Sequence[str] = ("accuracy",)
    primary: str = ""  # of the metrics' values; the first one by default
    group: str = ""  # the field of records that a metric judges together
    expand: Callable[[Fields], Iterable[Fields]] | None = None  # one line of the file -> its records
    # The same for a line to learn from; None: as for one to be judged by. What is drawn is drawn by rng.
    expand_training: Callable[[Fields, np.random.Generator], Iterable[Fields]] | None = None

    def __post_init__(self) -> None:
        for name in ("name", "pattern", "label", "primary", "group"):
            self._expect(isinstance(getattr(self, name), str), name, "a text", getattr(self, name))
        verbalized = isinstance(self.verbalizer, Mapping)
        self._expect(verbalized, "verbalizer", "keys and values", self.verbalizer)
        for name in ("choices", "shorten", "metrics"):
            entries = getattr(self, name)
            listed = isinstance(entries, list | tuple) and all(isinstance(entry, str) for entry in entries)
            self._expect(listed, name, "a list of texts", entries)
        self._expect(
            count_masks(self.pattern) == 1, "pattern", "one of [MASK], [sMASK], [gMASK]", self.pattern
        )
        given = [name for name in ("verbalizer", "choices") if getattr(self, name)]
        self._expect(len(given) == 1, "verbalizer, choices", "one of them", given)
        for label, answer in self.verbalizer.items():
            self._expect(isinstance(label, str), "verbalizer", "labels that are texts", label)
            answered = isinstance(answer, str) and bool(answer.strip())
            self._expect(answered, f"verbalizer[{label}]", "a text", answer)
        for choice in self.choices:
            alone = len(self.choices) == 1 or not choice.startswith("*")
            self._expect(alone, "choices", '["*field"] alone, or patterns', self.choices)
            parse_pattern(choice)
        for metric in self.metrics:
            self._expect(metric in METRICS, "metrics", f"some of {', '.join(METRICS)}", metric)
            two = 2 in (len(self.verbalizer), len(self.choices))
            fits = two or not METRICS[metric].of_two
            self._expect(fits, "metrics", "one for more than two choices, as f1_macro", metric)
        self._expect(bool(self.metrics), "metrics", "at least one", self.metrics)
        values = [value for metric in self.metrics for value in METRICS[metric].values]
        if not self.primary:
            object.__setattr__(self, "primary", values[0])
        self._expect(self.primary in values, "primary", f"one of {', '.join(values)}", self.primary)
        in_pattern = {piece.field for piece in parse_pattern(self.pattern)}
        for name in self.shorten:
            self._expect(name in in_pattern, "shorten", "fields of the pattern", name)

    def _expect(self, condition: bool, name: str, expected: str, value: object) -> None:
        if not condition:
            raise ValueError(f"{self.name or 'task'}: {name}: expected {expected}, got {value!r}")

    @property
    def labels(self) -> list[str]:
        return list(self.verbalizer)

    @classmethod
    def load(cls, path: str | Path) -> Description:
        """From a YAML or JSON file with the fields above but for those that are functions.

        ValueError for a key that there is not; the name is the file's by default.
        """
        path = Path(path)
        text = read_text(path)
        try:
            values = parse_json(text) if path.suffix == ".json" else _yaml(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected keys and values, got {type(values).__name__}")
        known = [entry.name for entry in fields(cls) if not entry.name.startswith("expand")]
        if unknown := [key for key in values if key not in known]:
            hint = did_you_mean(str(unknown[0]), known) or f"; there are {', '.join(known)}"
            raise ValueError(f"{path}: there is no key {unknown[0]!r}{hint}")
        if "pattern" not in values:
            raise ValueError(f"{path}: expected a pattern")
        named: dict[str, Any] = {"name": path.stem} | values
        try:
            return cls(**named)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _yaml(text: str) -> Any:
    """Every scalar as the text that it is: no and yes are answers here, not false and true."""
    yaml = require("yaml", extra="train")
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("YAML that nests too deep to be read") from None
