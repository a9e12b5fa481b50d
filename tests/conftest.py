"""What every test stands on: a cache of its own, and real data where it is present."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

# datasets reads this once, on import; tests must neither use nor fill the user's own cache.
CACHE = tempfile.mkdtemp(prefix="penchant-tests-")
os.environ["HF_DATASETS_CACHE"] = CACHE


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the GPU are skipped, with the reason, where there is none."""
    of_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if of_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in of_gpu:
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real preference data: PENCHANT_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("PENCHANT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real preference data in {folder}; set PENCHANT_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def smol() -> Any:
    """The embedded LLM in fp32, cut to 20 of its 30 layers; loading it takes a while, so it is shared."""
    from penchant.backbone import Backbone

    backbone = Backbone.load(dtype="float32")
    backbone.cut(20)
    return backbone
