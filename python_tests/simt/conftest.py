from __future__ import annotations

import pytest

from .backend import Simt
from .build import load_simt


@pytest.fixture(scope="session")
def simt() -> Simt:
    return Simt(load_simt())
