"""Training of the built-in detectors stays clear of the scenes that judge them."""

from __future__ import annotations

from types import ModuleType

import pytest

from edge.data.datasets import FRESH_SEED
from tests.support.tools import load_tool


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("train/train_builtin")


def test_seeds_whose_scenes_evaluate_are_refused(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tiny-yolo-scenes", "--out", "runs", "--seed"]
    last = (1 + tool.parse([*words, str(tool.HIGHEST_SEED)]).seed) * tool.SEEDS_EACH
    assert last + tool.SEEDS_EACH <= FRESH_SEED
    for wrong in (tool.HIGHEST_SEED + 1, -1):
        with pytest.raises(SystemExit):
            tool.parse([*words, str(wrong)])
        assert "scenes that evaluate" in capsys.readouterr().err
