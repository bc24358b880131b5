"""Loading a checkpoint on another number of ranks, by way of DeepSpeed's "universal" format with whole tensors.

DeepSpeed's converter and ZeRO-3's loader support only Adam's two states, by name, so SGD's momentum is stored under
Adam's name, beside zeros. Only files that the checkpoint's manifest lists are read, and all of them under `data_only`.
"""

import argparse
import contextlib
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tacaf.checkpoint import manifest_of

_ONLY, _NOT_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
TEMPORARY = ".tmp-universal"  # below checkpoints/; the next save removes it
MOMENTUM = "momentum_buffer"
ADAM = ("exp_avg", "exp_avg_sq")
# The keys of (states, fp32 parameters) below "optimizer_state_dict" in a rank's file, up to stage 2 and in stage 3.
PLACES = ((("base_optimizer_state", "single_partition_of_fp32_groups")), (("optimizer_state_dict", "fp32_flat_groups")))


@contextlib.contextmanager
def data_only() -> Iterator[None]:
    """Restrict torch.load in this block to tensors, plain values and three classes that DeepSpeed saves.

    Some versions of Python 3.11 pickle a member of an enumeration as a call of `getattr`, which could read any
    attribute. It is replaced by a function that accepts only the stages of ZeRO.

    DeepSpeed itself would load arbitrary pickles, which can run any code; PyTorch's environment variable overrides it.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def stage_of(kind: Any, name: str) -> Any:
        if kind is not ZeroStageEnum or name not in kind.__members__:
            raise pickle.UnpicklingError(f"GLOBAL getattr of {kind} and {name}")
        return kind[name]

    before = {name: os.environ.pop(name, None) for name in (_ONLY, _NOT_ONLY)}
    os.environ[_ONLY] = "1"
    try:
        with torch.serialization.safe_globals(
            [LossScaler, ZeroStageEnum, fragment_address, (stage_of, "builtins.getattr")]
        ):
            yield
    finally:
        del os.environ[_ONLY]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@data_only()
def regrouped(path: Path, stage: int) -> Path:
    """Convert the checkpoint at `path`, of ZeRO stage 1 to 3, to a universal one beside it. Only one rank may do so."""
    from deepspeed.checkpoint import ds_to_universal

    root = path.parent / TEMPORARY
    shutil.rmtree(root, ignore_errors=True)
    parts, whole = root / "parts", root / path.name
    parts.mkdir(parents=True)
    momentum = _named_as_adam(path, parts, PLACES[stage >= 3])
    options = argparse.Namespace(
        input_folder=str(parts),
        output_folder=str(whole),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        ds_to_universal.main(options)
    if momentum and stage < 3:  # these loaders take the states' names from the files
        for first in (whole / "zero").rglob(f"{ADAM[0]}.pt"):
            first.rename(first.with_name(f"{MOMENTUM}.pt"))
            first.with_name(f"{ADAM[1]}.pt").unlink()
    shutil.rmtree(parts)
    return whole


@data_only()
def load_regrouped(engine: Any, whole: Path) -> dict[str, Any]:
    """Load the result of `regrouped` into an engine of the same stage. Returns the checkpoint's client state.

    Hyperparameters are kept as they were built, because ZeRO-3's loader would give every group those of the first.
    Buffers (the running statistics) are loaded from the first model file, because DeepSpeed's loader ignores them.
    """
    optimizer = engine.optimizer.optimizer
    built = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    _, client = engine.load_checkpoint(str(whole.parent), tag=whole.name)
    for group, values in zip(optimizer.param_groups, built, strict=True):
        group.update(values)
    file = min(whole.glob("*model_states.pt"))
    saved = torch.load(file, map_location="cpu", weights_only=True)["module"]
    for name, buffer in engine.module.named_buffers():
        if name in saved:  # the others are constants
            buffer.copy_(saved[name])
    for state in optimizer.state.values():
        if isinstance(optimizer, torch.optim.SGD):
            if ADAM[0] in state:
                state[MOMENTUM] = state[ADAM[0]]
            for name in (*ADAM, "step"):
                state.pop(name, None)
        elif torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()  # ZeRO-3 gave all of them one tensor, which is incremented in place
    return client


def _named_as_adam(path: Path, parts: Path, places: tuple[str, str]) -> bool:
    """Put the checkpoint's files into `parts`, with SGD's states renamed. Returns whether there were any."""
    states_at, parameters_at = places
    momentum = False
    for file in (path / name for name in manifest_of(path).files if name.endswith(".pt") and "/" not in name):
        if not file.name.endswith("optim_states.pt"):
            (parts / file.name).symlink_to(file.resolve())
            continue
        whole = torch.load(file, map_location="cpu", weights_only=True)
        states = whole["optimizer_state_dict"][states_at]["state"]
        for group, parameters in enumerate(whole["optimizer_state_dict"][parameters_at]):
            state = states.setdefault(group, {})
            if ADAM[0] not in state:
                momentum = True
                first = state.pop(MOMENTUM, None)
                zeros = torch.zeros_like(parameters)
                states[group] = {ADAM[0]: zeros if first is None else first, ADAM[1]: zeros, "step": 0}
        torch.save(whole, parts / file.name)
    return momentum
