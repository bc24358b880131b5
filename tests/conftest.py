"""What several rooms' tests share: a small raw set, the same set packed, and where the authors' own files lie."""

import os
from pathlib import Path

import pytest

from shards import sysu_mm01
from shards.synth import synthesise

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def raw_sysu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A procedural raw set in the SYSU-MM01 layout: 12 identities, 3 images a camera, 96 pixels high. Read only."""
    out = tmp_path_factory.mktemp("raw") / "sysu_mm01"
    synthesise(out, layout="sysu_mm01", identities=12, seed=0, images_per_camera=3, height=96, workers=1)
    return out


@pytest.fixture(scope="session")
def sysu_shards(raw_sysu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw_sysu` packed into one shard. Read only: copy it before changing it."""
    return sysu_mm01.pack(raw_sysu, tmp_path_factory.mktemp("shards") / "sysu_mm01").folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder above `sysu_mm01/rand_perm_cam.mat`: $TACAF_GOLDEN, or shared/golden beside the repository."""
    folder = Path(os.environ.get("TACAF_GOLDEN") or ROOT.parent / "shared" / "golden")
    if not (folder / "sysu_mm01" / "rand_perm_cam.mat").is_file():
        pytest.skip(
            f"no sysu_mm01/rand_perm_cam.mat in {folder}: get it from the evaluation folder of the SYSU-MM01 authors' "
            "repository (github.com/wuancong/SYSU-MM01) and set TACAF_GOLDEN to the folder above sysu_mm01"
        )
    return folder
