"""What all tests share."""

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds; deselect with -m 'not slow'")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of models and texts that lies beside the checkout; skips where there is none."""
    named = os.environ.get("OMNIQUANT_SHARED")
    folder = Path(named) if named else CHECKOUT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data at {folder}: set OMNIQUANT_SHARED")
    return folder
