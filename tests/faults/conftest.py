"""What tests of kills share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fork_server import ForkServer
from small_run import contents


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """Return a warm process that runs commands in children."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server, command, tmp_path_factory):
    """Return what the module's command leaves when nobody kills it, its file operations and its seconds."""
    output = tmp_path_factory.mktemp("whole") / "out"
    answer = server.run(command(output))
    assert answer["status"] == 0
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    return contents(output), answer["operations"], answer["seconds"]
