"""GLMTokenizer: byte-level BPE by the `tokenizers` library, with GLM's special tokens."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .special import MASK_TOKENS, SPECIAL_TOKENS, SpecialIds

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Every byte is a token of its own, after the special ones: any text can be encoded and none needs [UNK].
_SMALLEST_VOCAB = len(SPECIAL_TOKENS) + 256

# Byte-level BPE spells a byte as the Latin-1 character of that number, or, where that cannot be seen, as the
# next free one from 256 on.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = sorted(set(range(256)) - set(_VISIBLE))
_BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}


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
        ids = {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS.values()}
        self._special = {name: index for name, index in ids.items() if index is not None}
        missing = [name for name in ids if name not in self._special]
        if missing:
            raise ValueError(
                f"this tokenizer lacks GLM's special tokens {', '.join(missing)}; "
                "train one with GLMTokenizer.train"
            )
        # Special tokens are split off here, where the caller's choice is known; the library then sees plain
        # text only.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.ids = SpecialIds(*self._special.values())

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> GLMTokenizer:
        """Byte-level BPE learned from documents; the special tokens get ids 0 .. 10, as in SpecialIds().

        A small corpus may yield fewer than vocab_size tokens: see the property vocab_size.
        """
        if vocab_size < _SMALLEST_VOCAB:
            raise ValueError(
                f"vocab_size: expected at least {_SMALLEST_VOCAB} "
                f"(256 bytes and {len(SPECIAL_TOKENS)} special tokens), got {vocab_size}"
            )
        library = _tokenizers()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[
                library.AddedToken(name, lstrip=name in MASK_TOKENS, special=True)
                for name in SPECIAL_TOKENS.values()
            ],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(documents, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str | Path) -> GLMTokenizer:
        """Reads a tokenizer.json, or the one in a folder."""
        file = _json_file(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no such file; expected a tokenizer.json written by GLMTokenizer.save"
            )
        library = _tokenizers()
        try:
            tokenizer = library.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{file}: not a tokenizer.json of the tokenizers library: {error}") from error
        return cls(tokenizer)

    def save(self, path: str | Path) -> Path:
        """Writes tokenizer.json (into `path` if that is a folder) and returns where it is."""
        file = _json_file(path)
        self._tokenizer.save(str(file))
        return file

    def encode(self, text: str, *, allow_special: bool | Collection[str] = False) -> list[int]:
        """Token ids of a text, nothing added.

        allow_special: which special tokens are read as such where the text spells them: none, all (True), or
        those named.
        """
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
        return [
            encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; special tokens are left out, or spelled if skip_special=False."""
        text: str = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special)
        return text

    def pieces(self) -> list[bytes]:
        """The bytes of every token id; none for special tokens.

        >>> tokenizer = GLMTokenizer.train(["哈！"], vocab_size=268)
        >>> pieces = tokenizer.pieces()
        >>> b"".join(pieces[token] for token in tokenizer.encode("哈！")).decode()
        '哈！'
        """
        special = set(self.ids)
        pieces = [b""] * self.vocab_size
        for spelling, token in self._tokenizer.get_vocab().items():
            if token not in special:
                pieces[token] = bytes(_BYTE_OF[character] for character in spelling)
        return pieces

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


def _json_file(path: str | Path) -> Path:
    return Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)


def _tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise ImportError(
            "GLMTokenizer needs the tokenizers library; install it with: pip install 'glm_ext[train]'"
        ) from error
    return tokenizers
