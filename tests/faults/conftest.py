"""What tests of kills share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fork_server import ForkServer


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """Return a warm process that runs commands in children."""
    server = ForkServer()
    yield server
    server.close()
