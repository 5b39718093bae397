"""Finds the inner loops of the matrix products in a library, and what they keep on the stack.

A register tile (csrc/cpu/microkernel.h) holds its sums in registers for the whole of its loop. If the
compiler runs out of registers there, nothing fails and everything takes three times as long: the machine code
must be looked at.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FUNCTION = re.compile(r"^[0-9a-f]+ <(?P<name>.+)>:$")
INSTRUCTION = re.compile(r"^\s*(?P<address>[0-9a-f]+):\s+(?P<text>[a-z].*)$")
JUMP = re.compile(r"^j\w+\s+(?P<target>[0-9a-f]+)")
MULTIPLY_ADD = re.compile(r"^(vfmadd\w+p[sd]|vdpbf16ps)\s")
ON_STACK = re.compile(r"^v.*\(%r[sb]p")


@dataclass(frozen=True)
class Loop:
    function: str
    body: list[str]

    @property
    def multiply_adds(self) -> int:
        return sum(bool(MULTIPLY_ADD.match(line)) for line in self.body)

    @property
    def spills(self) -> list[str]:
        """Instructions that move vectors to or from the stack."""
        return [line for line in self.body if ON_STACK.match(line)]


def tile_loops(library: Path, least: int) -> Iterator[Loop]:
    """The innermost loops with at least `least` multiply-adds of vectors."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "--wide", str(library)]
    name, body = "", list[tuple[int, str]]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as disassembler:
        assert disassembler.stdout is not None
        for line in disassembler.stdout:
            if function := FUNCTION.match(line):
                name, body = function["name"], []
            elif instruction := INSTRUCTION.match(line):
                body.append((int(instruction["address"], 16), instruction["text"]))
                jump = JUMP.match(instruction["text"])
                if jump is None:
                    continue
                begin = int(jump["target"], 16)
                if not body[0][0] <= begin <= body[-1][0]:
                    continue  # forward, or to another function
                loop = Loop(name, [text for address, text in body if address >= begin])
                body = body[-1:]  # what comes around this loop is not innermost
                if loop.multiply_adds >= least:
                    yield loop
    assert disassembler.returncode == 0, f"objdump {library} failed"
