"""How ranks meet on GPUs that are not there, what is kept from the terminal, and which memory a process keeps."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch import train
from tacaf import distributed
from tacaf.child_processes import ROOT, child_environment
from tacaf.train.config import load_config
from tacaf.train.engine import _silent
from tacaf.train.processes import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, Place, keep_freed_memory, start_distributed


@pytest.fixture
def groups(monkeypatch) -> list[dict[str, Any]]:
    """What `init_process_group` is given, on a machine that seems to have GPUs."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: given.append({"set": device}))
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda _, rank, ranks, timeout: iter([("store", rank, ranks)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **values: given.append(values))
    monkeypatch.setattr(distributed, "open_control_group", lambda limit: given.append({"control": limit}))
    return given


def test_a_rank_among_several_gives_nccl_its_device(monkeypatch, groups):
    """The number of its GPU on this machine, which is not its rank on the second machine."""
    monkeypatch.setattr("tacaf.train.processes._reach", lambda *_: None)
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "MASTER_ADDR": "a", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    place = start_distributed(stall_limit_s=100)
    device = torch.device("cuda", 1)
    assert isinstance(place, Place)
    assert place.device == device
    assert groups[0] == {"set": device}, "before anything communicates"
    assert (groups[1]["backend"], groups[1]["device_id"]) == ("nccl", device)
    assert (groups[1]["store"], groups[1]["rank"], groups[1]["world_size"]) == ("store", 5, 8)
    assert list(groups[2]) == ["control"]


def test_a_single_rank_is_not_bound_to_its_device(monkeypatch, groups):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what start_distributed sets is taken back
        monkeypatch.delenv(name)
    place = start_distributed()
    assert place == Place(0, 1, torch.device("cuda", 0))
    assert groups[1]["backend"] == "nccl"
    assert "device_id" not in groups[1]
    assert len(groups) == 2


def test_what_deepspeed_prints_at_the_start_is_kept_from_the_terminal_unless_it_fails(capfd):
    def fail() -> None:
        print("the compiler's reason")
        raise RuntimeError

    with _silent():
        print("built successfully")
    with pytest.raises(RuntimeError), _silent():
        fail()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "the compiler's reason\n")


COUNT_FAULTS = """
import resource, torch
from tacaf.train.processes import keep_freed_memory
{first}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)  # 40 MiB, freed at once; by default glibc maps every block above 32 MiB afresh
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(40)][-1])
"""
CHOICES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def _faults(first: str) -> int:
    """How many pages the system gave to the last of forty tensors, each of which is freed before the next."""
    words = [sys.executable, "-c", COUNT_FAULTS.format(first=first)]
    environment = {name: value for name, value in child_environment().items() if name not in CHOICES}
    return int(subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_freed_memory_is_used_again():
    usual = _faults("pass")
    if usual < 5:
        pytest.skip("this allocator keeps freed memory by itself")
    assert _faults("keep_freed_memory()") < usual / 4


def _options(monkeypatch, largest_block: int, **environment: str) -> list[tuple[int, int]]:
    """The options that a C library takes which refuses larger thresholds for blocks."""
    taken: list[tuple[int, int]] = []

    def mallopt(option: int, value: int) -> int:
        if option == M_MMAP_THRESHOLD and value > largest_block:
            return 0
        taken.append((option, value))
        return 1

    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    return taken


def test_an_older_c_library_that_refuses_large_blocks_keeps_smaller_ones(monkeypatch):
    both = [(M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**30)]
    assert _options(monkeypatch, 2**40) == both
    assert _options(monkeypatch, 2**25) == [(M_MMAP_THRESHOLD, 2**25), both[1]]


def test_the_end_of_the_heap_is_not_kept_alone(monkeypatch):
    """glibc would then stop adjusting the threshold of blocks, and map blocks above 128 KiB afresh."""
    assert _options(monkeypatch, 0) == []


@pytest.mark.parametrize("name", CHOICES)
def test_what_the_environment_chooses_stays(monkeypatch, name):
    value = "glibc.malloc.check=0" if name == "GLIBC_TUNABLES" else "1048576"
    assert _options(monkeypatch, 2**40, **{name: value}) == []
    assert len(_options(monkeypatch, 2**40, GLIBC_TUNABLES="glibc.pthread.rseq=0")) == 2, "says nothing about memory"


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()


@pytest.mark.parametrize(("device", "calls"), [("cpu", 1), ("cuda:0", 0)])
def test_a_training_on_a_cpu_keeps_freed_memory(monkeypatch, device, calls):
    class ReachedError(Exception):
        pass

    def stop() -> None:
        raise ReachedError

    called: list[None] = []
    monkeypatch.setattr(train, "start_distributed", lambda *_: Place(0, 1, torch.device(device)))
    for name in ("prepare_deepspeed", "choose_convolutions"):
        monkeypatch.setattr(train, name, lambda *_: None)
    monkeypatch.setattr(train, "keep_freed_memory", lambda: called.append(None))
    monkeypatch.setattr(distributed, "together", stop)
    config = load_config(ROOT / "launch/configs/demo.yaml", [])
    with pytest.raises(ReachedError):
        train.train(config, None, resuming=False, trusted=False)
    assert len(called) == calls
