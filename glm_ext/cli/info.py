"""glm-ext info."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from glm_ext import info


def main(arguments: Sequence[str]) -> int:
    argparse.ArgumentParser(prog="glm-ext info", description=info.__doc__).parse_args(arguments)
    return info.main()
