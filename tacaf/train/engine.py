"""The one file that knows DeepSpeed: starting ranks, building the engine, saving and loading through it.

`python -m tacaf.train.engine` builds the communication op that DeepSpeed wants on CPU, once, before ranks need it.
"""

import functools
import logging
import os
import pickle
import re
import shutil
import socket
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch.utils import cpp_extension

from tacaf import checkpoint, distributed
from tacaf.documents import what_is_wrong
from tacaf.files import locked
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import CLASSIFIER, inference_model
from tacaf.train.config import Config
from tacaf.train.regroup import TEMPORARY, data_only, load_regrouped, regrouped
from tacaf.train.state import BEFORE, EPOCHS, SavedFacts, extension
from tacaf.train.update import decides_on_device
from tacaf.vocabulary import InputError

CHECKPOINTS = "checkpoints"  # below the run's folder


class Place(NamedTuple):
    """Where this process runs."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def device_id(self) -> int | None:
        """DALI's device number; None is the CPU."""
        return self.device.index if self.device.type == "cuda" else None


class NotSavedError(Exception):
    """A checkpoint could not be written, on any rank; the run can go on and try again."""


def start_distributed(start_limit_s: float = 600, stall_limit_s: float = 1800) -> Place:
    """Join the process group the launcher describes (deepspeed, torchrun, srun), or be a group of one.

    InputError where the ranks have not met after `start_limit_s` seconds. Collective calls wait longer than
    `stall_limit_s`, so that the watchdog is the one to speak.
    """
    cuda = torch.cuda.is_available()
    # The ninja of this environment builds DeepSpeed's op, activated or not; another one would build it anew.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    _read_launcher()
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed 0.19 calls what PyTorch 2.13 has renamed; every rank would say so several times.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    _meet("nccl" if cuda else "gloo", timedelta(seconds=start_limit_s), timedelta(seconds=stall_limit_s + 300))
    _load_op()
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    return Place(distributed.rank(), distributed.world_size(), device)


def choose_convolutions(deterministic: bool) -> None:
    """How cuDNN picks its algorithms in this process: reproducible ones, or the fastest by trying them out.

    A training's batches all have one size, so that every convolution is tried once. Evaluation has one size as well,
    but for its last batch.
    """
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def _load_op() -> None:
    """One process at a time loads DeepSpeed's op, which the first one builds.

    A build that was killed leaves PyTorch's lock file behind, and every later start would wait at it for ever. The
    system's own lock ends with its process: whoever holds it may take such a file away. Only the building is done under
    it: where the ranks meet in DeepSpeed, the first waits for the others' shared memory.
    """
    from deepspeed.comm.torch import build_shm_op

    environment = f"tacaf_py{sys.version_info.major}{sys.version_info.minor}_torch{torch.__version__}"
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(cpp_extension.get_default_build_root()) / environment))
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    with locked(folder / "tacaf.lock"):
        for left in folder.glob("*/lock"):
            left.unlink(missing_ok=True)
        build_shm_op()


def _read_launcher() -> None:
    """RANK and its companions: as deepspeed and torchrun set them, from SLURM inside a step of several tasks, or alone.

    A program that is not started by srun inherits SLURM's variables too, but no number of a step.
    """
    if "RANK" in os.environ:
        return
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if os.environ.get("SLURM_STEP_ID", "").isdigit() and int(tasks) > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise InputError(
                f"srun started {tasks} tasks: expected {' and '.join(missing)} in the environment, for the ranks to"
                " meet; set them as launch/cluster/slurm.sbatch does"
            )
        own = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"}
        os.environ.update({name: os.environ[source] for name, source in own.items()}, WORLD_SIZE=tasks)
        return
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))


def _meet(backend: str, start_limit: timedelta, call_limit: timedelta) -> None:
    """Every rank finds the first one at MASTER_ADDR:MASTER_PORT."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if rank > 0:
        _reach(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), start_limit.total_seconds())
    try:
        store, rank, ranks = next(torch.distributed.rendezvous("env://", rank, ranks, timeout=start_limit))
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=call_limit)
    except (torch.distributed.DistError, RuntimeError, ValueError) as error:
        advice = (
            "another program uses that port; give another one (--master_port, MASTER_PORT)"
            if "EADDRINUSE" in str(error)
            else "see that every rank is started, has this address and port, and can reach it"
        )
        raise InputError(
            f"expected {ranks} ranks to meet at {where} within {start_limit.total_seconds():g} s, rank {rank} got:"
            f" {_first_line(error)[:200]}; {advice}"
        ) from None


def _reach(host: str, port: int, limit_s: float) -> None:
    """Wait until the first rank listens. PyTorch would wait as well, and end in pages of its own."""
    until = time.monotonic() + limit_s
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() > until:
                raise InputError(
                    f"expected the first rank at {host}:{port}, got for {limit_s:g} s: {error}; see that it is started,"
                    " that every rank has its address and port, and that no firewall is between"
                ) from None
            time.sleep(0.2)


def stop_distributed() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def build_engine(
    config: Config,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images_per_rank: int,
    found: Path | None = None,
) -> Any:
    """DeepSpeed's engine around the model; the `deepspeed` section of the config is its JSON, passed through.

    `found`: the checkpoint it is going to resume from. Under ZeRO one of another number of ranks is loaded regrouped,
    as DeepSpeed calls it universal.
    """
    import deepspeed

    zero = config.deepspeed.get("zero_optimization", {})
    by_flag = decides_on_device(optimizer, zero)
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": images_per_rank,
        "gradient_accumulation_steps": config.train.accumulate,
        "gradient_clipping": 0.0 if by_flag else config.optim.clip_norm,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice a step; the run's log has the speed
        "zero_allow_untested_optimizer": True,  # SGD under ZeRO is refused without it
        "steps_per_print": 2**31,  # the run's own progress line says it
        **config.deepspeed,
    }
    if by_flag and config.zero_stage >= 1:
        settings["zero_optimization"] = {**zero, "compute_grad_norm": False}  # `update` does, without a wait
    settings |= _monitors(config)
    if found is not None and config.zero_stage >= 1:
        ranks = checkpoint.facts_of(found)["ranks"]
        settings["checkpoint"] = {
            **config.deepspeed.get("checkpoint", {}),
            "load_universal": ranks != distributed.world_size(),
        }
    if config.train.precision == "bf16":
        # Gradients travel in fp32: no module is given the lower communication precision.
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    if config.train.compile:
        engine.compile(compile_kwargs={"dynamic": False})  # in place: names and checkpoints stay as they are
    return engine


def check_settings(config: Config) -> None:
    """InputError for what DeepSpeed refuses of its section, before anything is built."""
    if set(config.deepspeed) | set(config.deepspeed.get("zero_optimization", {})) <= {"zero_optimization", "stage"}:
        return  # nothing of its own in it: not worth the seconds that its import takes
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    needed = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    try:
        DeepSpeedConfig({**needed, **config.deepspeed})
    except Exception as error:  # pydantic's, its own, and whatever a number in place of a mapping leads to
        what = what_is_wrong(error) if isinstance(error, ValidationError) else _first_line(error)
        raise InputError(f"deepspeed: DeepSpeed does not accept its section: {what}; see its documentation") from None


def _monitors(config: Config) -> dict[str, dict]:
    """DeepSpeed's sections of the monitors in `train.watch`. A folder a start, so no step is in a file twice."""
    folder = config.run / "watch" / f"start-{len(list((config.run / 'watch').glob('start-*')))}"
    places: dict[str, dict] = {
        "wandb": {"project": "tacaf", "group": str(config.run)},
        **{name: {"output_path": str(folder), "job_name": name} for name in ("csv_monitor", "tensorboard")},
    }
    if "wandb" in config.train.watch and distributed.rank() == 0:
        folder.mkdir(parents=True)
        os.environ.setdefault("WANDB_DIR", str(folder))  # its own choice would be the working directory
    return {name: {"enabled": True, **places[name], **config.deepspeed.get(name, {})} for name in config.train.watch}


def save(engine: Any, folder: Path, global_step: int, facts: dict, keep: int, best: bool = False) -> None:
    """A whole checkpoint of this step, on all ranks together; `facts` are plain JSON, the same on every rank.

    NotSavedError on every rank where the disk has too little room; what was there stays as it was.
    """
    distributed.average_batchnorm_statistics(engine.module)
    lacking = 0
    with distributed.together():
        if distributed.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.clear_temporary(folder)
            lacking = _bytes_needed(engine, folder) - shutil.disk_usage(folder).free
    lacking = int(max(row[0] for row in distributed.numbers_of_ranks([float(lacking)])))
    if lacking > 0:
        raise NotSavedError(
            f"checkpoint of step {global_step} not saved: {folder} lacks {lacking / 2**20:,.0f} MiB of free space; make"
            " room, or keep fewer with train.keep"
        )
    try:
        engine.save_checkpoint(
            str(folder), tag=checkpoint.temporary_tag(global_step), client_state={"facts": facts}, save_latest=False
        )
    except (OSError, RuntimeError) as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise  # another rank has gone
        if distributed.world_size() > 1:  # the others may be waiting inside DeepSpeed
            raise InputError(
                f"checkpoint of step {global_step} not saved: rank {distributed.rank()} could not write into {folder}:"
                f" {_first_line(error)}; older checkpoints are untouched; make room and go on with --resume"
            ) from None
        checkpoint.clear_temporary(folder)
        raise NotSavedError(
            f"checkpoint of step {global_step} not saved into {folder}: {_first_line(error)}; older ones are untouched"
        ) from None
    distributed.barrier()
    problem: str | None = None
    if distributed.rank() == 0:
        try:
            checkpoint.commit(folder, global_step, facts, keep, best)
        except (InputError, OSError) as error:
            problem = _first_line(error)
    problem = distributed.gather_objects(problem)[0]
    if problem is not None:
        raise NotSavedError(f"checkpoint of step {global_step} not saved into {folder}: {problem}")


def resume(engine: Any, path: Path) -> dict[str, Any]:
    """Load a checkpoint that `find_checkpoint` found into an engine built for it; its facts."""
    try:
        if engine.load_universal_checkpoint():
            with distributed.together():
                if distributed.rank() == 0:
                    _regroup(path, engine)
            load_regrouped(engine, path.parent / TEMPORARY / path.name)
        else:
            with data_only():
                loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name)
            if loaded is None:
                raise InputError(f"{path} could not be loaded although its files are whole; is it of another version?")
    except pickle.UnpicklingError as error:
        raise _not_data(path, error) from None
    return checkpoint.facts_of(path)


def _regroup(path: Path, engine: Any) -> None:
    try:
        regrouped(path, engine.zero_optimization_stage())
    except pickle.UnpicklingError as error:
        raise _not_data(path, error) from None


def _not_data(path: Path, error: Exception) -> InputError:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f"refers to {found[1]}, which is code" if found else f"cannot be read as data ({_first_line(error)})"
    return InputError(f"{path} {what}; a checkpoint holds tensors and plain values only. It was not loaded")


def find_checkpoint(config: Config, must_match: dict[str, Any], trusted: bool = False) -> Path | None:
    """The newest whole checkpoint of a run, on every rank; rank 0 looks and checks it before anything is built.

    None where there is none yet: a run killed before its first save begins again. InputError for one of other settings,
    but that it may be of fewer epochs; and, unless it is `trusted`, for one that somebody else may have made.
    """
    folder = config.run / CHECKPOINTS
    path: Path | None = None
    with distributed.together():
        if distributed.rank() == 0 and checkpoint.steps_in(folder):
            warn = functools.partial(print, "warning:", file=sys.stderr, flush=True)
            path = checkpoint.newest_whole(folder, warn, SavedFacts)
            if path is None:
                raise InputError(
                    f"--resume: expected a whole checkpoint in {folder}, found damaged ones only; copy one back, or"
                    " start a new run"
                )
            saved = {**BEFORE, **checkpoint.facts_of(path)}
            if extension(saved, config):
                saved[EPOCHS] = must_match[EPOCHS]
            checkpoint.refuse_other(saved, must_match, path)
            if not trusted:
                checkpoint.refuse_strange(path)
    return distributed.gather_objects(path)[0]


def _bytes_needed(engine: Any, folder: Path) -> int:
    """As much as the newest checkpoint takes; before the first, weights, ZeRO's copy of them and two states."""
    newest = checkpoint.steps_in(folder)
    if newest:
        return sum(path.stat().st_size for path in newest[-1].rglob("*") if path.is_file())
    return 4 * 4 * sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in engine.module.parameters())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def whole_state(engine: Any) -> dict[str, torch.Tensor]:
    """The model's state dict, whole. Every rank must call it.

    Under ZeRO-3 one parameter after the other is gathered and copied to the CPU, the classifiers on rank 0 alone: they
    may be many times the rest, and only a model file needs them.
    """
    state = engine.module.state_dict()
    if engine.zero_optimization_stage() < 3:
        return state
    import deepspeed

    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if distributed.rank() == 0 or CLASSIFIER not in name:
                state[name] = parameter.detach().cpu().clone()
            else:
                del state[name]
    return state


def whole_model(engine: Any, config: Config) -> TacafNet:
    """The model to evaluate: the engine's own, or under ZeRO-3 a copy with whole parameters, classifiers aside.

    Under ZeRO-3 every forward is a collective call, and ranks have different numbers of images to embed.
    """
    if engine.zero_optimization_stage() < 3:
        return engine.module
    return inference_model(config.model, whole_state(engine)).to(engine.device)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    print(f"DeepSpeed is ready on {start_distributed().device}")
    stop_distributed()
