"""Measures images per second and waiting of our pipeline, PIL + DataLoader, and plain WebDataset + DataLoader.

    python perf/bench_data.py [--shards SHARDS] [--cores 1 2] [--device cpu] [--json FILE]

All three read the same shards and do the same operations (decode, resize to 288x144, pad-crop, flip, normalise, erase,
channel exchange) into batches of 96 images, from 64 decoded ones. Each runs in a process of its own, bound to a number
of cores; runs are interleaved, so that noise of the machine affects all alike. Without --shards a procedural set of
JPEG files of about 380 x 190 pixels is made first. `wait share` is the share of time that a training whose step takes
--step-ms spends waiting for batches.
On a GPU only our pipeline runs, with mixed decoding.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.bench_data")

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from tacaf.child_processes import child_environment
from tacaf.command import Parser, entry, to_path
from tacaf.data.augment import ERASE_FILL, GRAY, AugmentConfig
from tacaf.data.config import ReadingConfig
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan, PlanConfig, PlannedBatch
from tacaf.data.reader import ShardReader
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.files import write_json
from tacaf.images import MEAN, STD, open_image
from tacaf.provenance import environment
from tacaf.vocabulary import Branch

PROVIDERS = ("tacaf", "pil", "webdataset")
AUGMENT = AugmentConfig()
MEAN_C, STD_C = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (MEAN, STD))
FILL_C, GRAY_C = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (ERASE_FILL, GRAY))


def plan_of(index: ShardIndex) -> Plan:
    return Plan(select_training(index, "trainval"), PlanConfig(), seed=0)


def decoded(data: bytes) -> Image.Image:
    """An RGB image, decoded and resized with PIL."""
    with open_image(data) as image:
        return image.convert("RGB").resize((AUGMENT.width, AUGMENT.height), Image.Resampling.BILINEAR)


def augmented(image: Image.Image, branch: Branch) -> torch.Tensor:
    """A resized image after the random operations of one branch: float32 [3, H, W]."""
    height, width, pad = AUGMENT.height, AUGMENT.width, AUGMENT.pad
    padded = Image.new("RGB", (width + 2 * pad, height + 2 * pad))
    padded.paste(image, (pad, pad))
    left, top = random.randint(0, 2 * pad), random.randint(0, 2 * pad)
    image = padded.crop((left, top, left + width, top + height))
    if random.random() < AUGMENT.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255).sub_(MEAN_C).div_(STD_C)
    if random.random() < AUGMENT.erase:
        area, flat = random.uniform(*AUGMENT.erase_area) * height * width, AUGMENT.erase_aspect
        ratio = random.uniform(flat, 1 / flat)
        tall, wide = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if tall < height and wide < width:
            y, x = random.randint(0, height - tall), random.randint(0, width - wide)
            pixels[:, y : y + tall, x : x + wide] = FILL_C
    if branch == Branch.AUGMENTED:
        return pixels[random.randrange(3)].expand(3, -1, -1).contiguous()
    if branch == Branch.INFRARED:
        case = random.randrange(4)
        if case < 3:
            return pixels[case].expand(3, -1, -1).contiguous()
        if random.random() < AUGMENT.gray:
            return (pixels * GRAY_C).sum(0, keepdim=True).expand(3, -1, -1).contiguous()
    return pixels


class PilDataset(Dataset[Any]):
    """Item k of a batch: one visible image in two branches and one infrared image."""

    def __init__(self, index: ShardIndex, plan: Plan) -> None:
        self.reader, self.plan = ShardReader(index), plan
        self._last: tuple[int, PlannedBatch | None] = (-1, None)

    def __len__(self) -> int:
        return 10**6 * self.plan.config.images_per_modality

    def __getitem__(self, number: int) -> torch.Tensor:
        step, place = divmod(number, self.plan.config.images_per_modality)
        if self._last[0] != step:
            self._last = step, self.plan.global_batch(0, step)
        planned = self._last[1]
        assert planned is not None
        visible, infrared = (int(planned.row_B[planned.branch_B == branch][place]) for branch in (0, 2))
        image = decoded(self.reader.read(visible).tobytes())
        other = decoded(self.reader.read(infrared).tobytes())
        return torch.stack(
            [
                augmented(image, Branch.VISIBLE),
                augmented(image, Branch.AUGMENTED),
                augmented(other, Branch.INFRARED),
            ]
        )


class PlainShards(IterableDataset[Any]):
    """The shards read in order by WebDataset, repeatedly. An item is an image in its one or two branches."""

    def __init__(self, index: ShardIndex) -> None:
        self.shards = [index.store.where(shard.name) for shard in index.shards]

    def __iter__(self) -> Iterator[torch.Tensor]:
        import webdataset

        info = get_worker_info()
        own = (self.shards[info.id :: info.num_workers] if info else []) or self.shards
        while True:
            samples = webdataset.WebDataset(
                own, shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=True
            )
            for sample in samples:
                image = decoded(next(sample[kind] for kind in ("jpg", "png", "bmp") if kind in sample))
                if sample["__key__"].startswith("visible"):
                    yield torch.stack([augmented(image, Branch.VISIBLE), augmented(image, Branch.AUGMENTED)])
                else:
                    yield augmented(image, Branch.INFRARED)[None]


def batches_of(provider: str, index: ShardIndex, cores: int, device: str) -> Iterator[torch.Tensor]:
    """Endless batches of 96 images, made by as many threads or workers as there are cores."""
    plan = plan_of(index)
    if provider == "tacaf":
        device_id = 0 if device == "cuda" else None
        reading = ReadingConfig(threads=cores)
        for batch in TrainingPipeline(index, TrainingSource(plan, AUGMENT), reading, device_id=device_id):
            yield batch.images_BCHW
    elif provider == "pil":
        loader = DataLoader(PilDataset(index, plan), plan.config.images_per_modality, num_workers=cores)
        for items in loader:
            yield items.transpose(0, 1).flatten(0, 1)
    else:
        waiting: list[torch.Tensor] = []
        for items in DataLoader(PlainShards(index), batch_size=None, num_workers=cores):
            waiting += items
            if len(waiting) >= plan.images:
                yield torch.stack(waiting[: plan.images])
                waiting = waiting[plan.images :]


def rate(batches: Iterator[torch.Tensor], count: int) -> float:
    """Images per second, after two warm-up batches."""
    for _ in range(2):
        next(batches)
    began, images = time.perf_counter(), 0
    for _ in range(count):
        images += len(next(batches))
    torch.cuda.synchronize() if torch.cuda.is_available() else None
    return images / (time.perf_counter() - began)


def wait_share(batches: Iterator[torch.Tensor], step: Callable[[], None], count: int) -> float:
    """The share of time spent waiting for batches, if each batch is followed by `step`."""
    waited, began = 0.0, time.perf_counter()
    for _ in range(count):
        start = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - start
        step()
    return waited / (time.perf_counter() - began)


def child(provider: str, shards: Path, cores: int, device: str, count: int, step_ms: float) -> dict[str, Any]:
    """The measurements of this process, bound to `cores` cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(1)
    batches = batches_of(provider, ShardIndex.open(shards), cores, device)
    found = rate(batches, count)
    return {
        "images_per_s": found,
        "wait_share": wait_share(batches, lambda: time.sleep(step_ms / 1000), max(4, count // 4)),
    }


def run_child(provider: str, shards: Path, cores: int, args: argparse.Namespace) -> dict[str, Any]:
    words = [
        "--child",
        provider,
        "--shards",
        str(shards),
        "--cores",
        str(cores),
        "--device",
        args.device,
        "--batches",
        str(args.batches),
        "--step-ms",
        str(args.step_ms),
    ]
    done = subprocess.run(
        [sys.executable, __file__, *words], env=child_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {provider} on {cores} cores failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def make_set(folder: Path) -> Path:
    """A procedural set of JPEG files of about 380 x 190 pixels, packed."""
    command = [sys.executable, "-m", "shards"]
    raw, shards = folder / "raw", folder / "shards"
    synth = ["synth", "--out", str(raw), "--identities", "48", "--height", "380"]
    subprocess.run([*command, *synth], env=child_environment(), check=True, capture_output=True)
    subprocess.run(
        [*command, "pack", "sysu_mm01", "--root", str(raw), "--out", str(shards)],
        env=child_environment(),
        check=True,
        capture_output=True,
    )
    return shards


def measure(shards: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each provider and number of cores: the median over the repeats, and the ratio to PIL."""
    providers = PROVIDERS if args.device == "cpu" else PROVIDERS[:1]
    rows = []
    for cores in args.cores:
        found: dict[str, list[dict[str, Any]]] = {provider: [] for provider in providers}
        for _ in range(args.repeats):
            for provider in providers:
                found[provider].append(run_child(provider, shards, cores, args))
        for provider in providers:
            rates = [one["images_per_s"] for one in found[provider]]
            rows.append(
                {
                    "provider": provider,
                    "device": args.device,
                    "cores": cores,
                    "images_per_s": round(statistics.median(rates), 1),
                    "images_per_s_all": [round(value, 1) for value in rates],
                    "wait_share": round(statistics.median(one["wait_share"] for one in found[provider]), 4),
                    "step_ms": args.step_ms,
                }
            )
        usual = next((row["images_per_s"] for row in rows if row["provider"] == "pil" and row["cores"] == cores), None)
        for row in rows:
            if row["cores"] == cores:
                row["ratio_to_pil"] = None if usual is None else round(row["images_per_s"] / usual, 3)
    return rows


def facts_of(shards: Path) -> dict[str, Any]:
    """Facts about the shards, without which figures cannot be compared."""
    index = ShardIndex.open(shards)
    sizes = []
    for row in range(0, len(index), max(1, len(index) // 50)):
        with open_image(ShardReader(index).read(row).tobytes()) as image:
            sizes.append(image.size)
    width, height = np.mean(sizes, axis=0)
    mean_bytes = float(np.mean(index.columns["size"]))
    return {
        "name": index.name,
        "images": len(index),
        "mean_size": [round(float(height)), round(float(width))],
        "mean_bytes": round(mean_bytes),
    }


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=to_path, help="a packed set; default: one made for this run")
    parser.add_argument("--cores", type=int, nargs="+", default=[1], help="numbers of cores to measure (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=int, default=30, help="timed batches per run (default 30)")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved runs of each (default 3)")
    parser.add_argument("--step-ms", type=float, default=200.0, help="length of the step that waits (default 200)")
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--child", choices=PROVIDERS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(child(args.child, args.shards, args.cores[0], args.device, args.batches, args.step_ms)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        shards = args.shards or make_set(Path(folder))
        result: dict[str, Any] = {"environment": environment(1), "set": facts_of(shards), "rows": measure(shards, args)}
    if args.json:
        write_json(args.json, result)
    print(f"{'provider':12} {'cores':>5} {'images/s':>9} {'to PIL':>7} {'waits':>7}")
    for row in result["rows"]:
        ratio = "-" if row["ratio_to_pil"] is None else f"{row['ratio_to_pil']:.2f}"
        print(f"{row['provider']:12} {row['cores']:5} {row['images_per_s']:9.0f} {ratio:>7} {row['wait_share']:7.1%}")
    return 0
