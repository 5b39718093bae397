"""An array of flags, eight to a byte, that may lie in a memory-mapped file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Bits:
    """`count` flags; flag i is bit i % 8 of byte i // 8. A slice of them is a bool array.

    >>> bits = Bits.pack(np.array([True, False, True]))
    >>> bits[1:3], bits.shape, bits.data.nbytes
    (array([False,  True]), (3,), 1)
    """

    data: NDArray[np.uint8]
    count: int

    def __post_init__(self) -> None:
        if len(self.data) != -(-self.count // 8):
            raise ValueError(
                f"bits: expected {-(-self.count // 8)} bytes for {self.count} flags, got {len(self.data)}"
            )

    @classmethod
    def pack(cls, flags: Flags) -> Bits:
        return cls(np.packbits(flags, bitorder="little"), len(flags))

    @property
    def shape(self) -> tuple[int]:
        return (self.count,)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: slice) -> Flags:
        begin, end, _ = place.indices(self.count)
        first = begin // 8
        bits = np.unpackbits(self.data[first : -(-end // 8)], bitorder="little")
        return bits[begin - 8 * first : end - 8 * first].view(np.bool_)
