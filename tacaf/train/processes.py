"""The processes of a run: rank and device, how they connect, and settings of each process."""

import ctypes
import os
import socket
import time
from datetime import timedelta
from typing import Any, NamedTuple

import torch

from tacaf import distributed
from tacaf.files import first_line
from tacaf.vocabulary import InputError

# Blocks up to this size come from the heap, whose end is returned to the system only if this much of it is free
# (`keep_freed_memory`). glibc 2.30 accepts at most 32 MiB for blocks, glibc 2.36 any number.
KEPT_BYTES = 2**30
OLD_GLIBC_BYTES = 2**25
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


class Place(NamedTuple):
    """Where this process runs."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def device_id(self) -> int | None:
        """DALI's device number; None is the CPU."""
        return self.device.index if self.device.type == "cuda" else None


def start_distributed(start_limit_s: float = 600, stall_limit_s: float = 1800) -> Place:
    """Join the process group that the launcher describes (deepspeed, torchrun, srun), or form a group of one.

    Raises InputError if the ranks have not connected after `start_limit_s` seconds. Collective calls time out later
    than `stall_limit_s`, so that the watchdog reports first.
    """
    _read_launcher()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    _meet(device, timedelta(seconds=start_limit_s), timedelta(seconds=stall_limit_s + 300))
    return Place(distributed.rank(), distributed.world_size(), device)


def stop_distributed() -> None:
    distributed.close_groups()


def choose_convolutions(deterministic: bool) -> None:
    """Let cuDNN use reproducible algorithms in this process, or the fastest ones, which it finds by trying them.

    Trying is done once per size. A training's batches all have the same size, and so have those of an evaluation,
    except the last one.
    """
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def keep_freed_memory() -> None:
    """Let the C library reuse the memory of freed CPU tensors instead of returning it to the system.

    Every step allocates and frees the same sizes. By default glibc returns blocks above 32 MiB, and the free end of its
    heap, at once. The system then clears every page of the next ones, which took 9 to 18 per cent of a small
    network's step (docs/measured.md). Nothing changes where the C library has no such setting, or the environment
    chooses one.
    """
    chosen = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys()
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None or chosen or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return
    # Setting the second alone would be worse than nothing: glibc would no longer adjust the first.
    if any(set_option(M_MMAP_THRESHOLD, size) for size in (KEPT_BYTES, OLD_GLIBC_BYTES)):
        set_option(M_TRIM_THRESHOLD, KEPT_BYTES)


def _read_launcher() -> None:
    """Set RANK and its companions unless deepspeed or torchrun did: from SLURM's variables, or for a single process.

    A program that srun did not start also inherits SLURM's variables, but not SLURM_STEP_ID.
    """
    if "RANK" in os.environ:
        return
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if os.environ.get("SLURM_STEP_ID", "").isdigit() and int(tasks) > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise InputError(
                f"srun started {tasks} tasks, but {' and '.join(missing)} is missing in the environment, through which"
                " the ranks find each other; set it as launch/cluster/slurm.sbatch does"
            )
        own = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"}
        os.environ.update({name: os.environ[source] for name, source in own.items()}, WORLD_SIZE=tasks)
        return
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))


def _backend_of(device: torch.device, ranks: int) -> dict[str, Any]:
    """The arguments of PyTorch's `init_process_group` that say how ranks on such devices communicate.

    Ranks that do not tell NCCL their device let it guess at a barrier, which can hang. With it, every new group splits
    NCCL's communicator, which fails for a single rank on some machines (DeepSpeed's issue 8248); DeepSpeed does the
    same. NCCL guesses right for a single rank.
    """
    if device.type == "cpu":
        return {"backend": "gloo"}
    return {"backend": "nccl", "device_id": device} if ranks > 1 else {"backend": "nccl"}


def _meet(device: torch.device, start_limit: timedelta, call_limit: timedelta) -> None:
    """Connect to the first rank at MASTER_ADDR:MASTER_PORT and form the process group."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if rank > 0:
        _reach(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), start_limit.total_seconds())
    try:
        store, rank, ranks = next(torch.distributed.rendezvous("env://", rank, ranks, timeout=start_limit))
        torch.distributed.init_process_group(
            **_backend_of(device, ranks), store=store, rank=rank, world_size=ranks, timeout=call_limit
        )
        if ranks > 1:
            distributed.open_control_group(call_limit)
    except (torch.distributed.DistError, RuntimeError, ValueError) as error:
        advice = (
            "another program uses that port; give another one (--master_port, MASTER_PORT)"
            if "EADDRINUSE" in str(error)
            else "check that every rank is started, has this address and port, and can reach it"
        )
        raise InputError(
            f"{ranks} ranks did not connect at {where} within {start_limit.total_seconds():g} s; rank {rank} failed"
            f" with: {first_line(error)[:200]}; {advice}"
        ) from None


def _reach(host: str, port: int, limit_s: float) -> None:
    """Wait until the first rank listens. PyTorch would wait too, but fails with a very long traceback."""
    until = time.monotonic() + limit_s
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() > until:
                raise InputError(
                    f"cannot reach the first rank at {host}:{port} within {limit_s:g} s: {error}; check that it is"
                    " started, that every rank has its address and port, and that no firewall is in between"
                ) from None
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
