"""The one file that knows DeepSpeed: starting ranks, building the engine, saving and loading through it.

`python -m launch.engine` builds the native communication op that DeepSpeed wants on CPU, once, before ranks need it.
"""

import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from launch.config import Config
from tacaf import checkpoint, distributed
from tacaf.model.tacafnet import TacafNet
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
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    return Place(distributed.rank(), distributed.world_size(), device)


def stop_distributed() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def build_engine(config: Config, model: torch.nn.Module, optimizer: torch.optim.Optimizer, images_per_rank: int) -> Any:
    """DeepSpeed's engine around the model; the `deepspeed` section of the config is its JSON, passed through."""
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": images_per_rank,
        "zero_allow_untested_optimizer": True,  # SGD under ZeRO is refused without it
        "steps_per_print": 2**31,  # the run's own progress line says it
        **config.deepspeed,
    }
    if config.train.precision == "bf16":
        # Gradients travel in fp32: no module is given the lower communication precision.
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine


def save(engine: Any, folder: Path, global_step: int, facts: dict, keep: int) -> None:
    """A whole checkpoint of this step, on all ranks together; `facts` are plain JSON, the same on every rank."""
    distributed.average_batchnorm_statistics(engine.module)
    if distributed.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.clear_temporary(folder)
    distributed.barrier()
    engine.save_checkpoint(
        str(folder), tag=checkpoint.temporary_tag(global_step), client_state={"facts": facts}, save_latest=False
    )
    distributed.barrier()
    if distributed.rank() == 0:
        checkpoint.commit(folder, global_step, facts, keep)
    distributed.barrier()


def resume(engine: Any, folder: Path, must_match: dict) -> dict:
    """Load the newest whole checkpoint into the engine; its facts. Refuses another model, set or seed by name."""
    path = find_checkpoint(folder, must_match)
    loaded, client = engine.load_checkpoint(str(folder), tag=path.name)
    if loaded is None:
        raise InputError(
            f"{path} could not be loaded although its files are whole; it was perhaps made with another world size or"
            " ZeRO stage"
        )
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


def whole_state(engine: Any) -> dict[str, torch.Tensor]:
    """The model's state dict, whole, on every rank; under ZeRO-3 the partitioned parameters are gathered first."""
    if engine.zero_optimization_stage() < 3:
        return engine.module.state_dict()
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}


def whole_model(engine: Any, config: Config, identities: int) -> TacafNet:
    """The model to evaluate: the engine's own, or under ZeRO-3 a copy with whole parameters.

    Under ZeRO-3 every forward is a collective call, and ranks have different numbers of images to embed.
    """
    if engine.zero_optimization_stage() < 3:
        return engine.module
    model = TacafNet(config.model, identities)
    model.load_state_dict(whole_state(engine))
    return model.to(engine.device)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    print(f"DeepSpeed is ready on {start_distributed().device}")
    stop_distributed()
