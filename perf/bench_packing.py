"""Measures packing and verifying in MB/s, beside `tar -cf` of the same files and `sha256sum` of the shards.

    python perf/bench_packing.py [--identities 48] [--copies 8] [--shard-mib 32] [--json perf/results/packing.json]

The set is procedural, JPEG files of about 380 x 190 pixels, made in a temporary folder. Because drawing takes longest,
only a few thousand files are drawn and then copied under other pids. The runs are interleaved, and the median of each
action's repeats is reported. Packing and verifying are called as functions, so their times include the start of their
worker processes but not that of Python. Nothing is printed unless the packed set has every byte of the images.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.bench_packing")

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from shards.pedestrians.synth import synthesise
from shards.sources import sysu_mm01
from shards.verify import verify
from tacaf.command import Parser, entry, to_path
from tacaf.files import write_json
from tacaf.provenance import cpu_name, git_commit
from tacaf.vocabulary import InputError

HEIGHT = 380
IMAGES_PER_CAMERA = 8


def actions(raw: Path, folder: Path, shard_mib: int) -> dict[str, Callable[[], object]]:
    """The actions to time, by name. They read the raw files and `folder`/set; outputs are removed after each."""
    cores = len(os.sched_getaffinity(0))
    shards = sorted(map(str, (folder / "set").glob("*.tar")))
    tar = str(folder / "plain.tar")

    def pack(workers: int) -> None:
        sysu_mm01.pack(raw, folder / "packed", shard_mib=shard_mib, workers=workers)

    def plain_tar() -> None:
        run("tar", "--create", "--file", tar, "--directory", str(raw), ".")
        run("sync", tar)  # because packing flushes its files to the disk too

    found: dict[str, Callable[[], object]] = {
        "tar -cf and sync": plain_tar,
        "sha256sum": lambda: run("sha256sum", *shards),
        "pack --workers 1": lambda: pack(1),
        "verify --workers 1": lambda: sound(verify(folder / "set", workers=1)),
        "verify --quick": lambda: sound(verify(folder / "set", quick=True)),
    }
    if cores > 1:
        found[f"pack --workers {cores}"] = lambda: pack(cores)
        found[f"verify --workers {cores}"] = lambda: sound(verify(folder / "set", workers=cores))
    return found


def make(raw: Path, identities: int, copies: int) -> None:
    """Make the raw set: `identities` drawn people, each with `copies` pids that have files of their own."""
    synthesise(raw, identities=identities, images_per_camera=IMAGES_PER_CAMERA, height=HEIGHT)
    for folder in sorted(raw.glob("cam*/*")):
        for copy in range(1, copies):
            shutil.copytree(folder, folder.with_name(f"{int(folder.name) + copy * identities:04d}"))
    for path in raw.glob("exp/*_id.txt"):
        pids = [int(word) for word in path.read_text().split(",")]
        path.write_text(",".join(str(pid + copy * identities) for copy in range(copies) for pid in pids))


def measure(raw: Path, folder: Path, shard_mib: int, repeats: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts about the set, and a row for each action: seconds and MB/s of image bytes (1 MB = 1e6 bytes)."""
    packed = sysu_mm01.pack(raw, folder / "set", shard_mib=shard_mib)
    files = list(raw.glob("cam*/*/*.jpg"))
    total = sum(path.stat().st_size for path in files)
    sizes = np.load(folder / "set/columns/size.npy")
    sound(verify(folder / "set"))
    if packed.index.images != len(files) or int(sizes.sum()) != total:
        raise SystemExit(
            f"error: expected {len(files)} images of {total} bytes in the set; no figure on a wrong result"
        )
    taken: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, action in actions(raw, folder, shard_mib).items():
            began = time.perf_counter()
            action()
            taken.setdefault(name, []).append(time.perf_counter() - began)
            shutil.rmtree(folder / "packed", ignore_errors=True)
            (folder / "plain.tar").unlink(missing_ok=True)
    rows = []
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        rates = {"mb_per_s": total / middle / 1e6, "slowest": total / max(seconds) / 1e6}
        rates["fastest"] = total / min(seconds) / 1e6
        row = {"action": name, "seconds": round(middle, 4), "images_per_s": round(len(files) / middle)}
        rows.append({**row, **{key: round(rate, 1) for key, rate in rates.items()}})
    facts = {"images": len(files), "image_bytes": total, "shards": len(packed.index.shards), "shard_mib": shard_mib}
    return facts, rows


def sound(problems: list[str]) -> None:
    if problems:
        raise InputError(f"expected a sound set, got {problems[0]}; no figure on a wrong result")


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def circumstances(folder: Path, repeats: int) -> dict[str, Any]:
    """The facts that the figures depend on."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=False)
    return {
        "cpu": cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "file_system": kind.stdout.strip() or None,
        "page_cache": "warm: the files were just written",
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "pillow")},
        "commit": git_commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "repeats": repeats,
        "unit": "MB/s of image bytes, 1 MB = 1e6 bytes; median, slowest and fastest of the repeats",
    }


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=48, help="people to draw, with about 43 images each")
    parser.add_argument("--copies", type=int, default=8, help="copies of every file")
    parser.add_argument("--shard-mib", type=int, default=32, help="small, so that there are shards for every core")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=to_path, help="folder for temporary files (default: the system's)")
    parser.add_argument("--json", type=to_path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        facts = circumstances(folder, args.repeats)
        make(folder / "raw", args.identities, args.copies)
        case, rows = measure(folder / "raw", folder, args.shard_mib, args.repeats)
    if args.json is not None:
        write_json(args.json, {"circumstances": facts, "set": case, "results": rows})
    print(f"{case['images']} images, {case['image_bytes'] / 1e6:.1f} MB, {case['shards']} shards")
    print(f"{'':22s}  {'MB/s':>8s}  {'slowest':>8s}  {'fastest':>8s}  {'images/s':>8s}")
    for row in rows:
        rates = "  ".join(f"{row[key]:8.1f}" for key in ("mb_per_s", "slowest", "fastest"))
        print(f"{row['action']:22s}  {rates}  {row['images_per_s']:8d}")
    return 0
