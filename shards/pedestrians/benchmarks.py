"""The project's own benchmarks: fixed procedural sets, for comparing methods and not for training a usable model.

A name means one set of files: layout, seed, identities, difficulty and generator version. A change that alters a
picture needs a new name. Source: ours; two of them isolate what CMAAM and IPCAM are for (paper, sections 3 and 4).
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shards.pedestrians.scene import Difficulty
from shards.pedestrians.synth import GENERATOR_VERSION, synthesise
from tacaf.documents import MOST_BYTES, load_json
from tacaf.files import read_bytes, shown
from tacaf.vocabulary import InputError

FACTS = "benchmark.json"  # beside the set's folders: which benchmark they are


@dataclass(frozen=True)
class Benchmark:
    """The arguments of `synthesise`; 60 % of the identities are for training, 20 for validation and 20 for the test."""

    name: str
    about: str
    difficulty: Difficulty
    generator_version: int
    layout: str = "sysu_mm01"
    identities: int = 500
    seed: int = 2026
    images_per_camera: int = 4
    height: int = 192

    @property
    def set_name(self) -> str:
        """The name of its shard set and of every result on it: never the name of the public set with that layout."""
        return f"tacaf_{self.name}"


# The plain benchmark's difficulty. The ablation's baseline (launch/configs/ablation.yaml, from scratch) reaches a
# rank-1 between 30 and 60 % on validation identities, which leaves room for better and for worse results.
PLAIN = Difficulty(
    viewpoint=0.2,
    pose=0.5,
    crop_shift=0.02,
    crop_scale=0.05,
    occlusion=0.05,
    lighting=0.5,
    noise=0.5,
    clutter=0.6,
    blur=0.6,
    colour_cast=0.08,
)
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("plain_1", "mild nuisances of every kind", PLAIN, 1),
        Benchmark(
            "misaligned_1",
            "crops with large differences in position, scale and viewpoint: what correspondence (CMAAM) is for",
            replace(PLAIN, crop_shift=0.12, crop_scale=0.25, viewpoint=1.0),
            1,
        ),
        Benchmark(
            "occluded_1",
            "most people partly hidden, and noisy pictures: what attention between parts (IPCAM) is for",
            replace(PLAIN, occlusion=0.7, occlusion_extent=0.4, noise=1.5),
            1,
        ),
    )
}


def make(name: str, out: Path, workers: int | None = None) -> dict[str, int | str]:
    """Write the benchmark's raw folders to `out`. Returns what `synthesise` returns.

    Raises InputError if the name is unknown or the benchmark belongs to another version of the generator.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        raise InputError(f"expected a benchmark of {', '.join(BENCHMARKS)}, got {name!r}; choose one of them")
    if benchmark.generator_version != GENERATOR_VERSION:
        raise InputError(
            f"{name}: expected generator version {benchmark.generator_version}, got {GENERATOR_VERSION}, which draws"
            " different pictures; use the release that made the benchmark, or a newer benchmark"
        )
    return synthesise(
        out,
        layout=benchmark.layout,
        identities=benchmark.identities,
        seed=benchmark.seed,
        images_per_camera=benchmark.images_per_camera,
        height=benchmark.height,
        workers=workers,
        difficulty=benchmark.difficulty,
        texts={FACTS: json.dumps(asdict(benchmark), indent=1) + "\n"},
    )


def set_name(root: Path) -> str | None:
    """The set name of the benchmark in `root`, or None if it is not a benchmark.

    Raises InputError if its facts are not those of a known benchmark.
    """
    path = Path(root) / FACTS
    if not path.is_file():
        return None
    try:
        facts = load_json(read_bytes(path, MOST_BYTES), shown(path))
        benchmark = BENCHMARKS[facts["name"]]
        if facts != json.loads(json.dumps(asdict(benchmark))):
            raise KeyError(facts["name"])
    except (InputError, KeyError, TypeError):
        raise InputError(
            f"{shown(path)}: expected the facts of a benchmark ({', '.join(BENCHMARKS)}), got others; make the"
            " benchmark again, or remove this file to pack the folder as a set that is not a benchmark"
        ) from None
    return benchmark.set_name
