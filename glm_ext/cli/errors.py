"""What the user can mend, told apart from what only a developer can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A wrong argument, file or installation; its message is one line that says what to do."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Around the reading of arguments, files and checkpoints: what they raise is the user's to mend.

    Training stays outside, so that a defect of ours keeps its traceback. `prepare`, `tokenizer` and `show`
    read as they work: there all of it is inside.
    """
    from glm_ext.train.checkpoint import CheckpointError

    try:
        yield
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        raise UserError(" ".join(str(error).split())) from error
