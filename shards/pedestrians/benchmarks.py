"""The project's own benchmarks: procedural sets in a fixed form, by name, for comparing methods and not for training.

A name stands for one set of files: layout, seed, identities, difficulty and generator version. What changes a picture
needs a new name. Source: ours; the two variants isolate what CMAAM and IPCAM are for (paper, sections 3 and 4).
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
    """Everything `synthesise` needs; 60 per cent of the identities train, 20 validate, 20 test."""

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
        """What its shard set and every result on it are called: never the name of the layout's public set."""
        return f"tacaf_{self.name}"


# The plain benchmark's difficulty: the ablation's baseline (launch/configs/ablation.yaml, from scratch) has a rank-1
# between 30 and 60 per cent on validation identities, so that there is room to both sides.
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
            "crops shifted and scaled far apart, and every viewpoint: what correspondence (CMAAM) is for",
            replace(PLAIN, crop_shift=0.12, crop_scale=0.25, viewpoint=1.0),
            1,
        ),
        Benchmark(
            "occluded_1",
            "most people partly hidden, noisy pictures: what parts that help each other (IPCAM) are for",
            replace(PLAIN, occlusion=0.7, occlusion_extent=0.4, noise=1.5),
            1,
        ),
    )
}


def make(name: str, out: Path, workers: int | None = None) -> dict[str, int | str]:
    """Write the benchmark's raw folders to `out`; what `synthesise` returns. InputError for an unknown name, or one
    that was made by another generator version.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        raise InputError(f"expected a benchmark of {', '.join(BENCHMARKS)}, got {name!r}; choose one of them")
    if benchmark.generator_version != GENERATOR_VERSION:
        raise InputError(
            f"{name}: expected generator version {benchmark.generator_version}, got {GENERATOR_VERSION}, whose pictures"
            " are others; take the release that made it, or a newer benchmark"
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
    """The set name of the benchmark below `root`, None where it is none. InputError if its facts are not ours."""
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
            f"{shown(path)}: expected the facts of a benchmark ({', '.join(BENCHMARKS)}), got others; make it again, or"
            " remove that file and pack a set of its own"
        ) from None
    return benchmark.set_name
