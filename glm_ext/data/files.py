"""Files that are whole or not there at all, and how to tell whether one has changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file of any length, in hex."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def decode(data: bytes) -> str:
    """Bytes as text; ValueError that names the byte where they are not UTF-8.

    >>> decode(b"a \\xff")
    Traceback (most recent call last):
    ValueError: not UTF-8 at byte 2 (invalid start byte); convert it, e.g. with iconv -t UTF-8
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 at byte {error.start} ({error.reason}); convert it, e.g. with iconv -t UTF-8"
        ) from None


def write_atomically(path: Path, data: bytes) -> None:
    """The file is there whole, or not at all, whenever the process or the machine stops."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
