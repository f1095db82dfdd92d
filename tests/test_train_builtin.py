"""Training of the built-in detectors stays clear of the scenes that judge them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from edge.data.datasets import FRESH_SEED


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parent.parent / "tools" / "train" / "train_builtin.py"
    spec = importlib.util.spec_from_file_location("train_builtin", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
