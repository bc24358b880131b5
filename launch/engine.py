"""The one file that knows DeepSpeed: starting ranks, building the engine, saving and loading through it.

`python -m launch.engine` builds the native communication op that DeepSpeed wants on CPU, once, before ranks need it.
"""

import logging
import math
import os
import shutil
import socket
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from launch.config import Config
from launch.regroup import TEMPORARY, load_regrouped, regrouped
from tacaf import checkpoint, distributed
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import CLASSIFIER, embedder
from tacaf.vocabulary import InputError


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


def start_distributed() -> Place:
    """Join the process group the launcher describes (deepspeed, torchrun, srun), or be a group of one."""
    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port())
        )
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed 0.19 calls what PyTorch 2.13 has renamed; every rank would say so several times.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    return Place(distributed.rank(), distributed.world_size(), device)


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

    start = len(list((config.run / "watch").glob("start-*"))) if distributed.rank() == 0 else 0
    folder = str(config.run / "watch" / f"start-{start}")  # one a start, so that no step stands in a file twice
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": images_per_rank,
        "zero_allow_untested_optimizer": True,  # SGD under ZeRO is refused without it
        "steps_per_print": 2**31,  # the run's own progress line says it
        **config.deepspeed,
    }
    for name in config.train.watch:
        own = (
            {"project": "tacaf", "group": str(config.run)}
            if name == "wandb"
            else {"output_path": folder, "job_name": name}
        )
        settings[name] = {"enabled": True, **own, **config.deepspeed.get(name, {})}
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
    return engine


def update(engine: Any, loss: torch.Tensor) -> float | None:
    """Backward and the optimiser's step; the norm of the whole gradient. Nothing is updated where it is not finite."""
    engine.backward(loss)
    if engine.zero_optimization_stage() >= 1:
        engine.step()  # leaves the parameters alone where the norm is not finite
        return float(engine.get_global_grad_norm())
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if math.isfinite(norm):
        engine.step()
    else:
        engine.zero_grad()
    return norm


def save(engine: Any, folder: Path, global_step: int, facts: dict, keep: int, best: bool = False) -> None:
    """A whole checkpoint of this step, on all ranks together; `facts` are plain JSON, the same on every rank.

    NotSavedError on every rank where the disk has too little room; what was there stays as it was.
    """
    distributed.average_batchnorm_statistics(engine.module)
    lacking = 0
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
    except (OSError, RuntimeError) as error:  # PyTorch says RuntimeError where its file writer fails
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
    if distributed.rank() == 0:
        checkpoint.commit(folder, global_step, facts, keep, best)
    distributed.barrier()


def resume(engine: Any, path: Path) -> dict:
    """Load a checkpoint that `find_checkpoint` found into an engine built for it; its facts."""
    if engine.load_universal_checkpoint():
        whole = path.parent / TEMPORARY / path.name
        if distributed.rank() == 0:
            regrouped(path, engine.zero_optimization_stage())
        distributed.barrier()
        return load_regrouped(engine, whole)["facts"]
    loaded, client = engine.load_checkpoint(str(path.parent), tag=path.name)
    if loaded is None:
        raise InputError(f"{path} could not be loaded although its files are whole; was it made by a newer TACAF?")
    return client["facts"]


def find_checkpoint(folder: Path, must_match: dict) -> Path:
    """The newest whole checkpoint of a run, checked against this run's facts before anything is loaded."""
    path = checkpoint.newest_whole(folder, warn=lambda text: print(f"warning: {text}", file=sys.stderr, flush=True))
    if path is None:
        raise InputError(
            f"--resume: expected a checkpoint in {folder}, found none; leave --resume out to start the run"
        )
    checkpoint.refuse_other(checkpoint.facts_of(path), must_match, path)
    return path


def _bytes_needed(engine: Any, folder: Path) -> int:
    """As much as the newest checkpoint takes; before the first, weights, ZeRO's copy of them and two states."""
    newest = sorted(folder.glob("step-*"))
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
    return embedder(config.model, whole_state(engine)).to(engine.device)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    print(f"DeepSpeed is ready on {start_distributed().device}")
    stop_distributed()
