"""What the user can mend, told apart from what only a developer can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A wrong argument, file or installation; its message is one line that says what to do."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Around what the user's arguments, files and texts decide: what it raises is the user's to mend.

    `fill`, `evaluate`, `prepare`, `tokenizer` and `show` judge texts as they work, so their work is inside;
    training is outside, so that a defect of ours keeps its traceback after hours.
    """
    from glm_ext.train.checkpoint import CheckpointError

    try:
        yield
    except BrokenPipeError:  # whoever reads what is printed has gone: nothing to mend
        raise
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        raise UserError(" ".join(str(error).split())) from error
