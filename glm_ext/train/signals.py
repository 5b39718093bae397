"""Ctrl-C and SIGTERM as a wish to stop between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def caught_signals() -> Iterator[list[signal.Signals]]:
    """Yields a list that receives SIGINT or SIGTERM. A second one acts as if nobody had caught the first."""
    caught: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield caught
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))
        restore()

    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        restore()
