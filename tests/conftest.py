"""What several rooms' tests share: a small raw set, the same set packed, and where the authors' own files lie."""

import os

# One thread a process, before anything imports PyTorch: the processes of a parallel run do not fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from hypothesis import HealthCheck, settings

from shards.pedestrians.synth import synthesise
from shards.sources import sysu_mm01
from tacaf.files import locked
from tests.processes import LIMIT_S

pytest_plugins = ("tests.quick",)
ROOT = Path(__file__).parent.parent
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


class Once(Protocol):
    def __call__(self, name: str, make: Callable[[Path], object]) -> Path: ...


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)`: the file or folder `name`, made by the first worker of a parallel run that needs it.

    `make` gets its path, where nothing is yet. The others wait meanwhile. No test may change what was made.
    """
    shared = _shared(tmp_path_factory)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with locked(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                make(folder)
                made.touch()
        return folder

    return once


def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of pytest, which all its workers see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Ctrl-C reaches the tests' commands even where a shell started the tests in the background, ignoring SIGINT."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Checkpoints are signed with a key of the tests, not with that of the user who runs them."""
    os.environ["XDG_STATE_HOME"] = str(_shared(tmp_path_factory) / "state")


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """A test that starts a rank in this process leaves no RANK or MASTER_PORT for the next test's processes."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def raw_sysu(once: Once) -> Path:
    """A procedural raw set in the SYSU-MM01 layout: 12 identities, 3 images a camera, 96 pixels high. Read only."""

    def make(out: Path) -> None:
        synthesise(out, layout="sysu_mm01", identities=12, seed=0, images_per_camera=3, height=96, workers=1)

    return once("raw_sysu", make)


@pytest.fixture(scope="session")
def sysu_shards(raw_sysu: Path, once: Once) -> Path:
    """`raw_sysu` packed into one shard. Read only: copy it before changing it."""
    return once("sysu_shards", lambda out: sysu_mm01.pack(raw_sysu, out))


@pytest.fixture(scope="session")
def untrained_run(sysu_shards: Path, once: Once) -> Path:
    """A run's folder with the configuration and the model of a training on `sysu_shards` of no step. Read only."""
    from tests.train.finished import write_model  # here, because most tests need no model

    return once("untrained_run", lambda out: write_model(out, sysu_shards))


@pytest.fixture(scope="session")
def sysu_shards_many(once: Once) -> Path:
    """80 identities, 2 images a camera, in several shards of about 1 MiB. Read only."""

    def make(out: Path) -> None:
        raw = out.with_name(f"{out.name}.raw")
        synthesise(raw, layout="sysu_mm01", identities=80, seed=1, images_per_camera=2, height=128, workers=1)
        sysu_mm01.pack(raw, out, shard_mib=1, workers=1)

    return once("sysu_shards_many", make)


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a disk of its own, with room for 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Any]], list]:
    """Call it with work(rank): two threads run it as two ranks that meet in the norms' sums and the losses' gathers.

    Both live in one autograd graph, so the gradient flows between them as through `tacaf.distributed`.
    """
    own, meeting, slots = threading.local(), threading.Barrier(2, timeout=LIMIT_S), [None, None]

    def exchange(tensor: Any) -> list:
        slots[own.rank] = tensor
        meeting.wait()
        seen = list(slots)
        meeting.wait()
        return seen

    monkeypatch.setattr("tacaf.model.norm.world_size", lambda: 2)
    monkeypatch.setattr("tacaf.model.norm.sum_over_ranks", lambda tensor: sum(exchange(tensor)))
    monkeypatch.setattr("tacaf.model.norm.gather_rows", lambda rows: torch.cat(exchange(rows)))
    monkeypatch.setattr("tacaf.losses.triplet.gather_rows", lambda tensor: torch.cat(exchange(tensor)))

    def run(work: Callable[[int], Any]) -> list:
        def as_rank(rank: int) -> Any:
            own.rank = rank
            return work(rank)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(as_rank, range(2)))

    return run
