"""Checks and times training steps through DeepSpeed's engine: python -m perf.calls.engine_step --json FILE

With ZeRO stages 0 and 1, compares the demo's model after three steps in float32 with the same steps on the CPU in plain
PyTorch, and then times a step of the full recipe. Without a GPU the engine runs on the CPU.
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
from tacaf.train.processes import start_distributed, stop_distributed
from tacaf.train.update import update

CONFIGS = ROOT / "launch" / "configs"
STEPS, CLASSES = 3, SYSU_MM01.training_identities[0]
TOLERANCE = 1e-3  # of the distance that the parameters moved
# Clipping would hide a gradient of the wrong scale, and AdamW's first steps amplify rounding.
PLAIN = (
    "optim.kind=sgd",
    "optim.clip_norm=0",
    "optim.scale_rate=false",
    "optim.new_rate=0.01",
    "optim.backbone_rate=0.01",
    "train.precision=fp32",
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


def by_hand(config: Config, model: TacafNet) -> torch.Tensor:
    """All parameters after the steps on the CPU, without DeepSpeed."""
    optimizer, criterion = parts_of(config, model)
    for step in range(STEPS):
        batch = batch_of(config, step, 1)
        optimizer.zero_grad()
        criterion(forward(model, batch, config), batch.label_B)[0].backward()
        optimizer.step()
    return numbers(model)


def by_engine(config: Config, model: TacafNet, device: torch.device) -> torch.Tensor:
    """All parameters after the same steps through the engine."""
    optimizer, criterion = parts_of(config, model)
    engine = build_engine(config, model, optimizer, len(batch_of(config, 0, 1).label_B))
    for step in range(STEPS):
        batch = batch_of(config, step, 1).to(device)
        update(engine, criterion(forward(engine, batch, config), batch.label_B)[0], clip_norm=config.optim.clip_norm)
    return numbers(engine.module)


def numbers(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()])


def compare(stage: int, device: torch.device) -> dict[str, Any]:
    """The row of one stage: the difference as a share of the distance that the parameters moved."""
    config = config_of("demo.yaml", stage, *PLAIN)
    torch.manual_seed(0)
    model = TacafNet(config.model, 8).train()
    begun, expected = numbers(model), by_hand(config, copy.deepcopy(model))
    found = by_engine(config, model, device)
    share = ((found - expected).norm() / (expected - begun).norm()).item()
    return {"zero": stage, "what": f"{STEPS} steps against the CPU", "difference": share, "right": share <= TOLERANCE}


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
    file = RowsFile(args.json, device=str(place.device), tolerance=TOLERANCE)
    for stage in (0, 1):
        file.add(**compare(stage, place.device))
    torch.backends.cudnn.allow_tf32 = True
    for stage in (0, 1):
        file.add(**timed(stage, place.device, args.small))
    file.write(complete=True)
    stop_distributed()
    return 0 if all(row["right"] for row in file.rows) else 1


if __name__ == "__main__":
    sys.exit(main(None))
