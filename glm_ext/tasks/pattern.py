"""A pattern: how the fields of a record become Part A, as in "{premise} Question: {hypothesis:bare}? [MASK]".

A field may name a form after a colon: `bare` without its final punctuation, `lower` with a small first
letter, `clause` both, `raw` with the white space around it. Whatever a field holds is plain text; only the
pattern itself may hold a mask or another special token.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glm_ext.data.special import MASK_TOKENS

from .records import field_of

if TYPE_CHECKING:
    from glm_ext.data.tokenizer import GLMTokenizer


def _bare(text: str) -> str:
    return text.strip().rstrip(".?!;:,。？！；：，")


def _lower(text: str) -> str:
    text = text.strip()
    return text[:1].lower() + text[1:]


FORMS: dict[str, Callable[[str], str]] = {
    "": str.strip,
    "bare": _bare,
    "lower": _lower,
    "clause": lambda text: _lower(_bare(text)),
    "raw": lambda text: text,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """Literal text, or a field with the white space before it and its form."""

    text: str
    field: str | None = None
    form: str = ""

    def render(self, fields: Mapping[str, Any]) -> str:
        if self.field is None:
            return self.text
        value = field_of(fields, self.field)
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError(f"{self.field}: expected a text, got {value!r}")
        return self.text + FORMS[self.form](str(value))


def parse_pattern(pattern: str) -> list[Piece]:
    """The pieces of a pattern. ValueError for a form that there is not, a conversion (!r), or broken
    braces.

    White space goes with the field after it, as in the text that models learn from: " what" is one token.

    >>> [piece.render({"a": "Is it?"}) for piece in parse_pattern("Say: {a:clause}. [MASK]")]
    ['Say:', ' is it', '. [MASK]']
    """
    pieces: list[Piece] = []
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(f"pattern: {error} in {pattern!r}; a brace itself is written twice") from None
    for literal, field, form, conversion in parts:
        space = literal[len(literal.rstrip()) :] if field is not None else ""
        if literal := literal[: len(literal) - len(space)]:
            pieces.append(Piece(literal))
        if field is not None:
            if not field:
                raise ValueError(f"pattern: expected the name of a field in every {{}}, got {pattern!r}")
            if conversion is not None:
                raise ValueError(
                    f"pattern: expected {{{field}}} or {{{field}:form}}, got {field}!{conversion}"
                )
            if form not in FORMS:
                known = ", ".join(filter(None, FORMS))
                raise ValueError(f"pattern: expected a form among {known}, got {field}:{form}")
            pieces.append(Piece(space, field, form or ""))
    return pieces


def render(pattern: str, fields: Mapping[str, Any]) -> str:
    """The text of a pattern without masks, for choices.

    >>> render("{a}, then {b:lower}", {"a": "One", "b": "Two"})
    'One, then two'
    """
    return "".join(piece.render(fields) for piece in parse_pattern(pattern))


def count_masks(pattern: str) -> int:
    literal = "".join(piece.text for piece in parse_pattern(pattern) if piece.field is None)
    return sum(literal.count(mask) for mask in MASK_TOKENS)


def encode_pattern(
    tokenizer: GLMTokenizer,
    pieces: Sequence[Piece],
    fields: Mapping[str, Any],
    *,
    max_length: int,
    shorten: Sequence[str] = (),
) -> list[int]:
    """[CLS] + pieces + eos, at most max_length tokens.

    Where it is longer, the fields named in `shorten` are cut at their end, always the longest of them.
    ValueError if that is not enough.
    """
    texts = [piece.render(fields) for piece in pieces]
    encoded = [
        tokenizer.encode(text, allow_special=piece.field is None)
        for piece, text in zip(pieces, texts, strict=True)
    ]
    excess = sum(map(len, encoded)) + 2 - max_length
    cuttable = [tokens for piece, tokens in zip(pieces, encoded, strict=True) if piece.field in shorten]
    if excess > sum(map(len, cuttable)):
        hint = f"even without {', '.join(shorten)}" if shorten else "and no field of it may be shortened"
        raise ValueError(
            f"the text has {excess + max_length} tokens, more than max_length = {max_length}, {hint}"
        )
    for _ in range(excess):
        max(cuttable, key=len).pop()
    return [tokenizer.cls_id, *(token for tokens in encoded for token in tokens), tokenizer.eos_id]
