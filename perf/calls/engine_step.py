"""Checks and times training steps through DeepSpeed's engine: python -m perf.calls.engine_step --json FILE

With ZeRO stages 0 and 1, compares steps of the demo's model in float32 with the same steps in plain PyTorch, on the
same device and on the CPU, and then times a step of the full recipe. Without a GPU the engine runs on the CPU.

Each step is compared by itself, from the engine's parameters before it, because in a network from scratch a difference
in the last digit grows fifty-fold with every step. The CPU rounds in another way, and a ReLU or a maximum that rounding
decides changes the gradient by up to a hundredth; the tolerance allows for that. On the same device both compute the
same. float64 would not help, because ZeRO keeps its copy of the parameters in float32.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from perf.calls.rows import RowsFile
from tacaf.child_processes import ROOT
from tacaf.command import Parser, entry, to_path
from tacaf.datasets import SYSU_MM01
from tacaf.interfaces import Batch
from tacaf.losses.total import TacafLoss
from tacaf.model.tacafnet import TacafNet
from tacaf.optim import build_optimizer
from tacaf.train.config import Config, load_config
from tacaf.train.engine import build_engine, prepare_deepspeed
from tacaf.train.forward import draw, forward, noise_batch
from tacaf.train.processes import choose_convolutions, start_distributed, stop_distributed
from tacaf.train.update import update

CONFIGS = ROOT / "launch" / "configs"
STEPS, CLASSES = 3, SYSU_MM01.training_identities[0]
SAME_TOLERANCE, CPU_TOLERANCE = 1e-3, 0.1  # of the distance that a step moves the parameters
PLAIN = (
    # Clipping would hide a gradient of the wrong scale, and AdamW's first steps amplify rounding.
    "optim.kind=sgd",
    "optim.clip_norm=0",
    "optim.scale_rate=false",
    "optim.new_rate=0.01",
    "optim.backbone_rate=0.01",
    "optim.weight_decay=0.05",  # a hundred times the usual one, so that its absence is far above the tolerance
    "train.precision=fp32",
    # Rounding may decide which of two rows is the hardest, and with it the whole gradient.
    "loss.triplet=wrt",
)


def config_of(name: str, stage: int, *settings: str) -> Config:
    words = ["run=unused", "data.shards=unused", f"deepspeed.zero_optimization.stage={stage}", *settings]
    return load_config(CONFIGS / name, words)


def parts_of(config: Config, model: TacafNet) -> tuple[torch.optim.Optimizer, TacafLoss]:
    """The optimiser and the losses, as a training builds them."""
    parameters = (model.backbone_parameters(), model.new_parameters())
    optimizer = build_optimizer(config.optim, *parameters, config.data.plan.images_per_modality)
    return optimizer, TacafLoss(config.loss)


def batch_of(config: Config, step: int, groups: int) -> Batch:
    """A batch of noise with its pairs, which a training's data path draws ahead as well."""
    torch.manual_seed(100 + step)
    batch = noise_batch(config, groups)._replace(step=step)
    return batch._replace(pairs=draw(config, batch, 0, step))


class ByHand:
    """Steps of a copy of the model in plain PyTorch, without DeepSpeed."""

    def __init__(self, config: Config, model: TacafNet, device: torch.device) -> None:
        self.config, self.device = config, device
        self.model = copy.deepcopy(model).to(device)
        self.optimizer, self.criterion = parts_of(config, self.model)

    def step(self, before: torch.Tensor, batch: Batch) -> torch.Tensor:
        """All parameters after a step from the parameters `before`, both as in `numbers`."""
        own = before.to(self.device, copy=True)  # the parameters become parts of it
        torch.nn.utils.vector_to_parameters(own, self.model.parameters())
        batch = batch.to(self.device)
        self.optimizer.zero_grad()
        self.criterion(forward(self.model, batch, self.config), batch.label_B)[0].backward()
        self.optimizer.step()
        return numbers(self.model)


def numbers(model: torch.nn.Module) -> torch.Tensor:
    """All parameters, one after the other, on the CPU."""
    return torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()])


def compare(stage: int, device: torch.device) -> list[dict[str, Any]]:
    """The rows of one stage: the largest difference of a step as a share of the distance that it moved."""
    config = config_of("demo.yaml", stage, *PLAIN)
    torch.manual_seed(0)
    model = TacafNet(config.model, 8).train()
    tolerances = {torch.device("cpu"): CPU_TOLERANCE} | {device: SAME_TOLERANCE}
    others = [ByHand(config, model, place) for place in tolerances]
    shares: list[list[float]] = [[] for _ in others]
    optimizer, criterion = parts_of(config, model)
    engine = build_engine(config, model, optimizer, len(batch_of(config, 0, 1).label_B))
    for step in range(STEPS):
        before, batch = numbers(engine.module), batch_of(config, step, 1)
        there = batch.to(device)
        update(engine, criterion(forward(engine, there, config), there.label_B)[0], clip_norm=config.optim.clip_norm)
        found = numbers(engine.module)
        for other, share in zip(others, shares, strict=True):
            expected = other.step(before, batch)
            share.append(((found - expected).norm() / (expected - before).norm()).item())
    return [
        {
            "zero": stage,
            "what": f"each of {STEPS} steps against plain PyTorch, {place.type}",
            "difference": torch.tensor(share).max().item(),  # NaN if one is
            "tolerance": tolerance,
            "right": all(one <= tolerance for one in share),
        }
        for (place, tolerance), share in zip(tolerances.items(), shares, strict=True)
    ]


def timed(stage: int, device: torch.device, small: bool) -> dict[str, Any]:
    """The row of one stage: the time of a step of the full recipe, and the peak memory."""
    config = config_of("demo.yaml" if small else "sysu_mm01.yaml", stage)
    groups, warm, count = (1, 1, 1) if small else (4, 5, 20)
    model = TacafNet(config.model, CLASSES).train()
    optimizer, criterion = parts_of(config, model)
    batch = batch_of(config, 0, groups).to(device)
    engine = build_engine(config, model, optimizer, len(batch.label_B))

    def step() -> torch.Tensor:
        loss = criterion(forward(engine, batch, config), batch.label_B)[0]
        update(engine, loss, clip_norm=config.optim.clip_norm)
        return loss.detach()

    for _ in range(warm):
        loss = step()
    started = math.isfinite(loss.item())  # also waits for the device
    began = time.perf_counter()
    for _ in range(count):
        loss = step()
    finite = math.isfinite(loss.item()) and started
    step_ms = 1000 * (time.perf_counter() - began) / count
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    return {
        "zero": stage,
        "what": f"step of {getattr(config.model.backbone, 'width', None)}-wide model, {len(batch.label_B)} images",
        "step_ms": step_ms,
        "peak_mib": peak,
        "right": finite,
    }


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--small", action="store_true", help="the demo's model alone, for a rehearsal")
    args = parser.parse_args(argv)
    place = start_distributed()
    prepare_deepspeed()
    torch.backends.cudnn.allow_tf32 = False  # of convolutions; products are exact by default
    choose_convolutions(deterministic=True)
    file = RowsFile(args.json, device=str(place.device))
    for stage in (0, 1):
        for row in compare(stage, place.device):
            file.add(**row)
    torch.backends.cudnn.allow_tf32 = True
    choose_convolutions(deterministic=False)  # as a training does
    for stage in (0, 1):
        file.add(**timed(stage, place.device, args.small))
    file.write(complete=True)
    stop_distributed()
    return 0 if all(row["right"] for row in file.rows) else 1


if __name__ == "__main__":
    sys.exit(main(None))
