"""GLMTokenizer: a vocabulary of the `tokenizers` library with GLM's special tokens."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import vocabularies
from .files import write_atomically
from .special import MASK_TOKENS, SPECIAL_TOKENS, SpecialIds

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# How a vocabulary may spell each special token: GPT-2 and sentencepiece have one for the end of a text and
# for padding, BERT's padding ends a text too.
_SPELLINGS = {role: (name,) for role, name in SPECIAL_TOKENS.items()} | {
    "pad": (SPECIAL_TOKENS["pad"], SPECIAL_TOKENS["eos"]),
    "eos": (SPECIAL_TOKENS["eos"], SPECIAL_TOKENS["pad"]),
}


class GLMTokenizer:
    """Text <-> token ids.

    Spaces belong to the word that follows them, so a blank swallows the white space on its left: "the [MASK]
    ran" has the mask where " cat" was. A special token written in a text is plain text unless the caller
    allows it.

    >>> tokenizer = GLMTokenizer.train(["the cat sat on the mat"] * 2, vocab_size=280)
    >>> tokenizer.decode(tokenizer.encode("the cat [MASK]"))
    'the cat [MASK]'
    >>> tokenizer.encode("[MASK]", allow_special=True) == [tokenizer.mask_id]
    True
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._special: dict[str, int] = {}
        ids: dict[str, int] = {}
        for role, names in _SPELLINGS.items():
            for name in names:
                if role not in ids and (index := tokenizer.token_to_id(name)) is not None:
                    ids[role] = self._special[name] = index
        if missing := [name for role, name in SPECIAL_TOKENS.items() if role not in ids]:
            raise ValueError(
                f"this tokenizer lacks GLM's special tokens {', '.join(missing)}; "
                "train one with GLMTokenizer.train, or add them with GLMTokenizer.adopt"
            )
        _check_ids(tokenizer)
        # Special tokens are split off here, where the caller's choice is known; the library then sees plain
        # text only.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._byte_of = vocabularies.byte_tokens(tokenizer)
        self._token_of = {byte: token for token, byte in self._byte_of.items()}
        self.ids = SpecialIds(**ids)

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own copy forgets encode_special_tokens, so copies are made the way of files.
        return type(self).from_json, (self.to_json(),)

    @classmethod
    def train(
        cls, documents: Iterable[str], vocab_size: int, kind: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    ) -> GLMTokenizer:
        """A vocabulary learned from documents.

        "bpe": byte-level, exact for any text; the special tokens get ids 0 .. 10, as in SpecialIds(). So they
        do in "wordpiece", which drops white space and knows no character that is not in the documents.
        "unigram" (sentencepiece's model, with its bytes as a last resort) has them after all others. A small
        corpus may yield fewer than vocab_size tokens: see the property vocab_size.
        """
        return cls(vocabularies.train(documents, vocab_size, kind))

    @classmethod
    def adopt(cls, path: str | Path) -> GLMTokenizer:
        """Another model's vocabulary, with GLM's special tokens at the ids that GLM's public models use.

        path: GPT-2's vocab.json or encoder.json with its merges beside it, BERT's vocab.txt, a sentencepiece
        .model, a tokenizer.json, or a folder with one of these (of several: .model or vocab.txt, then
        tokenizer.json, then vocab.json). Tokens that it has are reused ([CLS], [SEP], [PAD], [UNK] and [MASK]
        of BERT; <|endoftext|> of GPT-2, which also pads), the others are appended.
        """
        return cls(vocabularies.read(Path(path)))

    @classmethod
    def load(cls, path: str | Path) -> GLMTokenizer:
        """Reads a tokenizer.json, or the one in a folder."""
        file = _json_file(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no such file; expected a tokenizer.json written by GLMTokenizer.save"
            )
        return cls(vocabularies.read_json(file))

    def save(self, path: str | Path) -> Path:
        """Writes tokenizer.json (into `path` if that is a folder) and returns where it is."""
        file = _json_file(path)
        write_atomically(file, self.to_json().encode())
        return file

    @classmethod
    def from_json(cls, text: str) -> GLMTokenizer:
        """The inverse of to_json."""
        return cls(vocabularies.library().Tokenizer.from_str(text))

    def to_json(self) -> str:
        """What `save` writes."""
        text: str = self._tokenizer.to_str(pretty=True)
        return text

    def encode(self, text: str, *, allow_special: bool | Collection[str] = False) -> list[int]:
        """Token ids of a text, nothing added.

        allow_special: which special tokens are read as such where the text spells them: none, all (True), or
        those named. ValueError where the text holds a lone surrogate, as a byte that is not UTF-8 becomes.
        """
        expect_utf8(text)
        allowed = self._special if allow_special is True else allow_special or ()
        if not allowed:
            return self._encode(text)
        unknown = set(allowed) - set(self._special)
        if unknown:
            raise ValueError(f"allow_special: expected some of {list(self._special)}, got {sorted(unknown)}")
        patterns = [rf"\s*{re.escape(name)}" if name in MASK_TOKENS else re.escape(name) for name in allowed]
        ids: list[int] = []
        # re.split with one group: plain, special, plain, ..., plain.
        for place, piece in enumerate(re.split(f"({'|'.join(patterns)})", text)):
            if place % 2 == 1:
                ids.append(self._special[piece.lstrip()])
            else:
                ids.extend(self._encode(piece))
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Plain encode of many texts, in parallel."""
        return [encoding.ids for encoding in self._encodings(texts)]

    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Plain encode of many texts: of each, its ids, and up to which character each of them reaches."""
        return [(encoding.ids, [end for _, end in encoding.offsets]) for encoding in self._encodings(texts)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; special tokens are left out, or spelled if skip_special=False.

        Bytes that are no character, as where a text was cut within one, become U+FFFD.
        """
        tokens = [int(i) for i in ids]
        if self._byte_of:
            tokens = self._with_whole_characters(tokens)
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=skip_special)
        return text

    def _with_whole_characters(self, tokens: list[int]) -> list[int]:
        """Of runs of bytes, for which the library gives up a whole run that has one bad byte in it."""
        whole: list[int] = []
        for are_bytes, run in groupby(tokens, key=self._byte_of.__contains__):
            if are_bytes:
                text = bytes(self._byte_of[token] for token in run).decode(errors="replace")
                whole += [self._token_of[byte] for byte in text.encode()]
            else:
                whole += run
        return whole

    def pieces(self) -> list[bytes]:
        """The bytes of every token id; none for special tokens.

        >>> tokenizer = GLMTokenizer.train(["哈！"], vocab_size=268)
        >>> pieces = tokenizer.pieces()
        >>> b"".join(pieces[token] for token in tokenizer.encode("哈！")).decode()
        '哈！'
        """
        special = set(self.ids)
        pieces = [b""] * self.vocab_size
        for token, piece in vocabularies.pieces(self._tokenizer):
            if token not in special:
                pieces[token] = piece
        return pieces

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        for text in texts:
            expect_utf8(text)
        encodings: list[Any] = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return encodings

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        size: int = self._tokenizer.get_vocab_size()
        return size

    def padded_vocab_size(self, multiple: int = 128) -> int:
        """vocab_size rounded up: the rows of a model's embedding table, in whole tiles."""
        return -(-self.vocab_size // multiple) * multiple

    @property
    def pad_id(self) -> int:
        return self.ids.pad

    @property
    def cls_id(self) -> int:
        return self.ids.cls

    @property
    def mask_id(self) -> int:
        return self.ids.mask

    @property
    def gmask_id(self) -> int:
        return self.ids.gmask

    @property
    def smask_id(self) -> int:
        return self.ids.smask

    @property
    def mask_ids(self) -> frozenset[int]:
        """Those of the three blanks that a text may hold."""
        return frozenset((self.ids.mask, self.ids.gmask, self.ids.smask))

    @property
    def dblock_id(self) -> int:
        return self.ids.dblock

    @property
    def eos_id(self) -> int:
        return self.ids.eos

    @property
    def sop_id(self) -> int:
        return self.ids.sop

    @property
    def eop_id(self) -> int:
        return self.ids.eop


def expect_utf8(text: str) -> None:
    """ValueError that says where the text holds what UTF-8 cannot say.

    >>> expect_utf8("naïve"), expect_utf8("a \\udcff")
    Traceback (most recent call last):
    ValueError: not UTF-8 at character 2 ('\\udcff'); convert the text, e.g. with iconv -t UTF-8
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"not UTF-8 at character {error.start} ({text[error.start]!r}); "
            "convert the text, e.g. with iconv -t UTF-8"
        ) from None


def _check_ids(tokenizer: Tokenizer) -> None:
    """A model has a row for each of n tokens: their ids are 0 to n - 1. A gap means that two share one."""
    ids = tokenizer.get_vocab().values()
    if missing := set(range(len(ids))) - set(ids):
        raise ValueError(
            f"this tokenizer has {len(ids)} tokens, and none of them has id {min(missing)}; expected 0 to "
            f"{len(ids) - 1}, each of one token; in a vocab.txt, put a word of its own (say [unused7]) in "
            "place of each blank or repeated line"
        )


def _json_file(path: str | Path) -> Path:
    return Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
