"""The sets that an ablation trains and scores on: benchmarks of the project, which it makes first, or packed sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launch.study.kept import Scored
from shards.pedestrians import benchmarks
from shards.pedestrians.benchmarks import Benchmark
from shards.sources import sysu_mm01
from tacaf.data.index import ShardIndex
from tacaf.files import shown
from tacaf.train.config import Config
from tacaf.train.leak import check_protocol
from tacaf.vocabulary import INDEX_FILE, InputError, Modality

FEWEST_SCORED = 2  # identities; with one, every ranked list would be right


class StudySet(Protocol):
    """What a study needs to know about a set."""

    @property
    def name(self) -> str:
        """The name, which is part of the names of files and run folders."""

    @property
    def title(self) -> str:
        """The name on the page."""

    @property
    def about(self) -> str:
        """The first note on the page."""

    @property
    def folder(self) -> Path:
        """The folder of its shards."""

    @property
    def sha256(self) -> str | None:
        """The hash of its index; None if the name alone identifies the set."""

    @property
    def settings(self) -> tuple[str, ...]:
        """Settings of its trainings, which override the configuration file and are overridden by the user's."""

    def check(self, config: Config, split: Scored) -> None:
        """Raise InputError unless it can be studied with this configuration and this split can be scored."""

    def make(self) -> None:
        """Make the set unless it exists."""


@dataclass(frozen=True)
class BenchmarkSet:
    """One of the project's benchmarks, rendered and packed into `folder`."""

    benchmark: Benchmark
    folder: Path
    sha256: str | None = None
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def title(self) -> str:
        return self.benchmark.set_name

    @property
    def about(self) -> str:
        kind = self.benchmark
        return (
            f"Benchmark: {kind.about}; {kind.identities} procedural people, seed {kind.seed}, generator version"
            f" {kind.generator_version}. It does not predict results on the public data sets."
        )

    def check(self, config: Config, split: Scored) -> None:
        if config.evaluation.protocol != "sysu_mm01":
            raise InputError(
                f"expected evaluation.protocol sysu_mm01, because {self.name} has that layout, got"
                f" {config.evaluation.protocol}; set evaluation.protocol: sysu_mm01"
            )

    def make(self) -> None:
        raw = self.folder.with_name(f"{self.name}-raw")
        if (self.folder / INDEX_FILE).exists():
            return
        if not raw.exists():
            benchmarks.make(self.name, raw)
        print(sysu_mm01.pack(raw, self.folder).summary(), flush=True)


@dataclass(frozen=True, eq=False)
class PackedSet:
    """A packed set of any images. It is scored under `generic` unless the user sets another protocol."""

    index: ShardIndex
    folder: Path
    settings: tuple[str, ...] = (
        "data.split=train",
        "evaluation.split=val",
        "evaluation.protocol=generic",
        "evaluation.gallery_draw=null",
    )

    @classmethod
    def open(cls, folder: Path) -> "PackedSet":
        """Open the set in a folder. Raises InputError if the folder contains no complete set."""
        return cls(ShardIndex.open(folder), folder.resolve())

    @property
    def name(self) -> str:
        return self.index.name

    @property
    def title(self) -> str:
        return self.index.name

    @property
    def about(self) -> str:
        counts = ", ".join(f"{len(pids)} {name}" for name, pids in self.index.splits.items())
        return f"Set: {self.name}, {len(self.index)} images; identities: {counts}."

    @property
    def sha256(self) -> str | None:
        return self.index.sha256

    def check(self, config: Config, split: Scored) -> None:
        check_protocol(self.index, config.evaluation.protocol)
        for name, fewest in (
            ("train", config.data.plan.identities_per_batch),
            ("val", FEWEST_SCORED),
            *([("test", FEWEST_SCORED)] if split == "test" else []),
        ):
            self._check_split(name, fewest)

    def _check_split(self, split: str, fewest: int) -> None:
        """Raise InputError if the split has fewer than `fewest` identities with images of both modalities."""
        columns, pids = self.index.columns, set(self.index.splits.get(split, ()))
        seen = [pids.intersection(columns["pid"][columns["modality"] == modality.code]) for modality in Modality]
        both = len(set.intersection(*seen))
        if both < fewest:
            remedy = "pack the set with more of them"
            if split == "val" and not pids:
                remedy = "give people this split in the manifest, or leave its column out and pack with --val-share 0.1"
            counts = ", ".join(f"{len(some)} with {name} ones" for name, some in zip(Modality, seen, strict=True))
            raise InputError(
                f"{shown(self.folder)}, split {split!r}: expected at least {fewest} identities with images of both"
                f" modalities, got {both} ({counts}); {remedy}"
            )

    def make(self) -> None:
        """Do nothing, because the set exists."""


def choose_sets(names: list[str], packed: list[Path], out: Path) -> tuple[StudySet, ...]:
    """The benchmarks with these names, in `out`, and the packed sets. Raises InputError if two have the same name."""
    sets: list[StudySet] = [
        BenchmarkSet(benchmarks.BENCHMARKS[name], out / "sets" / name) for name in dict.fromkeys(names)
    ]
    sets += [PackedSet.open(folder) for folder in dict.fromkeys(folder.resolve() for folder in packed)]
    by_name: dict[str, StudySet] = {}
    for one in sets:
        other = by_name.setdefault(one.name, one)
        if other is not one:
            raise InputError(
                f"expected sets with different names, since files are named after them, got {one.name} in"
                f" {shown(other.folder)} and {shown(one.folder)}; give only one, or pack one with another --name"
            )
    return tuple(sets)
