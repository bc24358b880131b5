"""Times a training step of the whole model on synthetic tensors, with the kernels and with their plain definitions.

    python perf/bench_train.py [--device cpu] [--small] [--json FILE]

Forward, losses, backward and optimiser step of TACAFNet (ResNet-50 at 288x144, 96 images, bf16 autocast; --small: the
demo's model). Data loading is not part of it. Needs PyTorch, Triton and pydantic; neither DeepSpeed nor DALI.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

import tacaf.model.cmaam as cmaam
import tacaf.model.ipcam as ipcam
import tacaf.model.pooling as pooling
from perf.bench_kernels import MIB, quantiles, time_ms
from tacaf.logs import environment
from tacaf.losses.total import LossConfig, TacafLoss
from tacaf.model.pairs import draw_pairs
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.vocabulary import Branch

# where the model calls each op
CALLS = ((cmaam, "soft_align"), (cmaam, "align_distance"), (ipcam, "ring_aggregate"), (pooling, "gem_pyramid"))
IDENTITIES, PER_IDENTITY, PAIR_GROUP, CLASSES = 8, 4, 2, 395
SMALL = {
    "backbone": {"width": 16, "blocks": [1, 1, 1, 1]},
    "ipcam": {"node_width": 64, "attention_width": 32, "pair_width": 32},
}


@contextmanager
def plain_definitions() -> Iterator[None]:
    """Inside, the model runs every op by its definition."""
    kept = [getattr(module, name) for module, name in CALLS]
    try:
        for (module, name), op in zip(CALLS, kept, strict=True):
            setattr(module, name, functools.partial(op, backend="reference"))
        yield
    finally:
        for (module, name), op in zip(CALLS, kept, strict=True):
            setattr(module, name, op)


def batch(device: str, height: int, width: int) -> dict[str, torch.Tensor]:
    """Noise images of three branches, visible first, with the labels of a planned batch."""
    per_branch = IDENTITIES * PER_IDENTITY
    branch = torch.tensor([int(branch) for branch in Branch]).repeat_interleave(per_branch)
    label = torch.arange(IDENTITIES).repeat_interleave(PER_IDENTITY).repeat(len(Branch))
    images = torch.randn(len(label), 3, height, width, generator=torch.Generator().manual_seed(0))
    found = {"label": label, "branch": branch, "group": label // PAIR_GROUP, "position": torch.arange(len(label))}
    found = {name: tensor.to(device) for name, tensor in found.items()}
    return {**found, "images": images.to(device).contiguous(memory_format=torch.channels_last)}


def step_of(model: TacafNet, data: dict[str, torch.Tensor], device: str, bf16: bool) -> Callable[[], Any]:
    """One training step as a function without arguments."""
    criterion = TacafLoss(LossConfig())
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    visible = int((data["branch"] != Branch.INFRARED).sum())

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            pairs = [
                draw_pairs(data["label"], data["branch"], data["group"], data["position"], 0, 0, 0, layer, "both")
                for layer in (3, 4)
            ]
            loss, _ = criterion(model(data["images"], data["label"], visible, *pairs), data["label"])
        loss.backward()
        optimizer.step()
        return loss

    return step


def measure(device: str, small: bool, bf16: bool, seconds: float) -> list[dict]:
    """A row for each provider, both in one run on the same model."""
    height, width = (96, 48) if small else (288, 144)
    data, rows = batch(device, height, width), []
    for provider, around in (("definitions", plain_definitions), ("kernels", nullcontext)):
        torch.manual_seed(0)
        model = TacafNet(ModelConfig.model_validate(SMALL if small else {}), CLASSES).to(device).train()
        step = step_of(model, data, device, bf16)
        with around():
            loss = step()
            peak = None
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                step()
                peak = torch.cuda.max_memory_allocated() / MIB
            p20, p50, p80 = quantiles(time_ms(step, device, seconds))
        images = len(data["images"])
        rows.append(
            {
                "provider": provider, "images": images, "height": height, "width": width, "small": small, "bf16": bf16,
                "first_loss": loss.item(), "p20_ms": p20, "p50_ms": p50, "p80_ms": p80,
                "images_per_s": 1000 * images / p50, "peak_mib": peak,
            }
        )  # fmt: skip
        del model, step
    rows[1]["ratio_to_definitions"] = rows[0]["p50_ms"] / rows[1]["p50_ms"]
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="the demo's model and image size")
    parser.add_argument("--fp32", action="store_true", help="no autocast")
    parser.add_argument("--seconds", type=float, default=10, help="about how long each provider is timed")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args(argv)
    rows = measure(wanted.device, wanted.small, not wanted.fp32, wanted.seconds)
    for row in rows:
        peak = "" if row["peak_mib"] is None else f", peak {row['peak_mib']:.0f} MiB"
        print(f"{row['provider']:12} {row['p50_ms']:9.1f} ms a step, {row['images_per_s']:.0f} images/s{peak}")
    print(f"kernels: {rows[1]['ratio_to_definitions']:.2f} times as fast; first losses {rows[0]['first_loss']:.4f} "
          f"and {rows[1]['first_loss']:.4f}")  # fmt: skip
    if wanted.json:
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(json.dumps({"environment": environment(1), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
