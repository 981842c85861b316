import pytest

from darkroom.models.clip import ClipTowers
from tests.models.tiny_clip import TINY


@pytest.fixture(scope="module")
def towers() -> ClipTowers:
    return ClipTowers.build(TINY, seed=0).eval()
