"""Where the tests find their cases."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"  # real data and trained checkpoints, on the project's machines only


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the project's real data and checkpoints, which are not on this machine")
    return SHARED
