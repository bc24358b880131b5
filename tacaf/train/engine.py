"""DeepSpeed's engine: its settings, the engine around a model, and the model's tensors out of it.

`python -m tacaf.train.engine` builds the communication op that DeepSpeed uses on CPU, once, before ranks need it.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch.utils import cpp_extension

from tacaf import checkpoint, distributed
from tacaf.documents import what_is_wrong
from tacaf.files import first_line, locked
from tacaf.model.tacafnet import TacafNet
from tacaf.model.weights import CLASSIFIER, inference_model
from tacaf.run_files import WATCH_FOLDER
from tacaf.train.config import Config
from tacaf.train.processes import start_distributed, stop_distributed
from tacaf.train.update import decides_on_device
from tacaf.vocabulary import InputError


def prepare_deepspeed() -> None:
    """Make DeepSpeed ready in this process, once, after the ranks have met and before an engine is built.

    A collective call, which takes seconds. It chooses DeepSpeed's accelerator and puts this environment's programs
    first in PATH.
    """
    # The ninja of this environment builds DeepSpeed's op, activated or not; another one would build it anew.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed 0.19 calls what PyTorch 2.13 has renamed; every rank would say so several times.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Only a single rank has not told NCCL its device (`processes._backend_of`), and there the guess is right.
    warnings.filterwarnings("ignore", r"barrier\(\): using the device under current context", UserWarning)
    with _silent():
        _load_op()
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    _release_shared_memory()


@contextmanager
def _silent() -> Iterator[None]:
    """Keep from the terminal what DeepSpeed prints about its op, which is loaded twice, unless that fails."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            yield
    except BaseException:
        print(said.getvalue(), end="", file=sys.stderr)
        raise


def _release_shared_memory() -> None:
    """Remove the name of this rank's buffer in shared memory, now that every rank has opened it.

    DeepSpeed's op for CPU never does: each training would leave 66 MiB per rank in memory until the machine restarts.
    The ranks keep the memory itself until they end.
    """
    distributed.barrier()
    address, port = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{distributed.rank()}"
    Path("/dev/shm", name).unlink(missing_ok=True)


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


def build_engine(
    config: Config,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images_per_rank: int,
    found: Path | None = None,
) -> Any:
    """DeepSpeed's engine around the model; the `deepspeed` section of the config is its JSON, passed through.

    `prepare_deepspeed` comes first.
    `found`: the checkpoint it will resume from. Under ZeRO, a checkpoint of another number of ranks is loaded
    regrouped; DeepSpeed calls that universal.
    """
    import deepspeed  # here, so that what needs no engine does without the seconds it takes

    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=_settings(config, optimizer, images_per_rank, found)
    )
    if config.train.compile:
        engine.compile(compile_kwargs={"dynamic": False})  # in place: names and checkpoints stay as they are
    return engine


def _settings(
    config: Config, optimizer: torch.optim.Optimizer, images_per_rank: int, found: Path | None
) -> dict[str, Any]:
    """DeepSpeed's JSON: what follows from the configuration's other sections, around its `deepspeed` section."""
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
    return settings


def check_settings(config: Config) -> None:
    """InputError for a monitor whose package is missing, or for what DeepSpeed refuses of its section.

    For the start of a training and for --dry-run, before anything is built.
    """
    for name in config.train.watch:
        if name != "csv_monitor" and find_spec(name) is None:
            raise InputError(
                f"train.watch: expected the package {name} for the monitor {name!r}, found none; pip install {name}, or"
                " take it out"
            )
    if set(config.deepspeed) | set(config.deepspeed.get("zero_optimization", {})) <= {"zero_optimization", "stage"}:
        return  # nothing of its own in it: not worth the seconds that importing DeepSpeed takes
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    needed = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    try:
        DeepSpeedConfig({**needed, **config.deepspeed})
    except Exception as error:  # pydantic's, its own, and whatever a number in place of a mapping leads to
        what = what_is_wrong(error) if isinstance(error, ValidationError) else first_line(error)
        raise InputError(f"deepspeed: DeepSpeed does not accept its section: {what}; see its documentation") from None


def _monitors(config: Config) -> dict[str, dict[str, Any]]:
    """DeepSpeed's sections of the monitors in `train.watch`. A folder a start, so no step is in a file twice."""
    watched = config.run / WATCH_FOLDER
    folder = watched / f"start-{len(list(watched.glob('start-*')))}"
    places: dict[str, dict[str, Any]] = {
        "wandb": {"project": "tacaf", "group": str(config.run)},
        **{name: {"output_path": str(folder), "job_name": name} for name in ("csv_monitor", "tensorboard")},
    }
    if "wandb" in config.train.watch and distributed.rank() == 0:
        folder.mkdir(parents=True)
        os.environ.setdefault("WANDB_DIR", str(folder))  # its own choice would be the working directory
    return {name: {"enabled": True, **places[name], **config.deepspeed.get(name, {})} for name in config.train.watch}


def whole_state(engine: Any) -> dict[str, torch.Tensor]:
    """The model's state dict, whole. Every rank must call it.

    Under ZeRO-3 one parameter after the other is gathered and copied to the CPU, the classifiers on rank 0 alone: they
    may be many times the rest, and only a model file needs them.
    """
    state = engine.module.state_dict()
    if engine.zero_optimization_stage() < 3:
        return state
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    for name, parameter in engine.module.named_parameters():
        # DeepSpeed keeps small parameters whole. Gathered, they would be partitioned afterwards, and the next training
        # pass would fail, because DeepSpeed expects them to be as they were when it recorded the order of their use.
        partitioned = parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE
        with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
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


if __name__ == "__main__":
    place = start_distributed()
    prepare_deepspeed()
    print(f"DeepSpeed is ready on {place.device}")
    stop_distributed()
