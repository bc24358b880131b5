"""Writes the ablation's tables as a page of the documentation, from the stored scores of every training.

    python perf/ablation_tables.py [--results perf/results] [--out docs/ablation_tables.md]

Nothing is trained or embedded. The page is a function of the files `ablation_<benchmark>.jsonl` alone.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.ablation_tables")

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.study.ablation_table import AblationRow, markdown, record
from launch.study.bootstrap import RESAMPLINGS
from launch.study.identity_scores import IdentityScores
from launch.study.kept import KeptScores, KeptTraining, Scored, kept_file
from launch.study.rows import CORE, ROWS, varied_row
from shards.pedestrians.benchmarks import BENCHMARKS
from tacaf.checkout import ROOT
from tacaf.command import Parser, entry, to_path
from tacaf.files import shown, write_whole
from tacaf.vocabulary import InputError

INNER = ("no_ring", "no_self", "no_pair", "consistency", "norm_mask", "one_way")
HEAD = """# Tables of the ablation

This page is written by `python perf/ablation_tables.py` from `perf/results/ablation_*.jsonl`; do not edit it.
[What each part adds](ablation.md) and, for the places, [Real sensors](real_sensors.md) say how the trainings were made
and what the tables show.

Unless a table says otherwise, every model is the small network of `launch/configs/ablation.yaml`, trained from scratch
and scored after its last epoch: all_search, single shot, literature draw, 10 trials, cosine distance, no flip, no
re-ranking. Figures are per cent, mean ± sample standard deviation over seeds. The benchmarks are procedural and say
nothing about the public data sets.

Differences are in points, with 95 % intervals: Student's, with the standard error of a bootstrap over identities and
seeds. They are bold where the interval excludes zero. ¹ One seed or two: the interval covers little or nothing of the
spread over seeds, so such a difference never counts as shown.
"""


_PLACES = (
    "Set: visible and thermal crops of places, from the RoadScene pairs; places and not people (real_sensors.md says"
    " how they are made); protocol generic, infrared to every visible image."
)
_PRETRAINED = " EfficientNet-Lite0 from ImageNet weights, `launch/configs/laptop.yaml`."
_HEAVIER = (
    f"{_PRETRAINED[:-1]} with `loss.part`, `loss.pair` and `model.ipcam.part_weight` at 1, as it was until commit"
    " b09f2db."
)
_LIGHTER = "loss.part=0.3+loss.pair=0.3"
_WIDER = "model.ipcam.node_width=512+model.ipcam.attention_width=128+model.ipcam.pair_width=256"
_FASTER = f"{_PRETRAINED[:-1]} with `optim.new_rate: 0.0015`, as it was until commit 4cd5e9a."
_ABSOLUTE = f"{_PRETRAINED[:-1]} with `loss.triplet_unit: absolute`, as it was until commit c70bb09."


class Table(NamedTuple):
    """A table of the page for each of `splits`: these rows of a benchmark with these seeds."""

    title: str
    benchmark: str
    rows: tuple[str, ...]  # names of rows, or of tries: ROW+a.b=c+...
    seeds: tuple[int, ...] = (0, 1, 2)
    splits: tuple[Scored, ...] = ("val", "test")
    folder: str = ""  # below the results, for scores of another length of training
    about: str = ""  # describes the set if it is not one of the project's benchmarks
    models: str = ""  # describes the models if they are not those of ablation.yaml


TABLES = (
    Table("core rows", "plain_1", CORE, seeds=(0, 1, 2, 3, 4)),
    Table("all rows", "plain_1", (*CORE, "ipcam", "cmaam", "both", *INNER)),
    Table("rows with CMAAM", "misaligned_1", ("baseline", "aug", "aug_cmaam", "full", "cmaam")),
    Table("trained three times as long", "misaligned_1", ("baseline", "aug", "aug_cmaam"), folder="longer"),
    Table("rows with IPCAM", "occluded_1", ("baseline", "aug", "aug_ipcam", "full", "ipcam")),
    Table(
        "tries",
        "plain_1",
        (
            *("aug", "aug_cmaam", "full"),
            "aug_cmaam+loss.dt=0.5",
            "aug_cmaam+loss.dt=4",
            "aug_cmaam+loss.dt=6+model.cmaam.mask=norm",
            "aug_cmaam+model.cmaam.matching=deviations",
            "full+model.cmaam.layers=[3]",
            "full+loss.dt=1",
            "full+loss.dt=4",
        ),
        seeds=(0,),
        splits=("val",),
    ),
    Table(
        "tries",
        "misaligned_1",
        (
            *("aug", "aug_cmaam"),
            "aug_cmaam+model.cmaam.mask=norm",
            "aug_cmaam+loss.dt=6+model.cmaam.mask=norm",
            "aug_cmaam+loss.dense_margin=2+model.cmaam.mask=norm",
            "aug_cmaam+loss.ic=0.3+model.cmaam.consistency=true",
            "aug_cmaam+model.cmaam.matching=deviations",
        ),
        seeds=(0,),
        splits=("val",),
    ),
    Table("from scratch", "roadscene_places", ("baseline", "aug", "full"), (0, 1, 2, 3, 4), about=_PLACES),
    Table("from scratch, core rows", "roadscene_places", CORE, about=_PLACES),
    *(
        Table("self-similarity", name, ("full", "full+model.cmaam.self_similarity=0.5"), (0,), ("val",), about=about)
        for name, about in (("roadscene_places", _PLACES), *((benchmark, "") for benchmark in BENCHMARKS))
    ),
    *(
        Table("from scratch, 2,400 steps", name, ("full", "full+train.epochs=24"), (0,), about=about)
        for name, about in (("roadscene_places", _PLACES), ("plain_1", ""))
    ),
    *(
        Table("from ImageNet weights", name, rows, seeds, folder="pretrained", about=about, models=_PRETRAINED)
        for name, rows, seeds, about in (
            ("roadscene_places", ("aug", "full"), (0, 1, 2), _PLACES),
            ("misaligned_1", ("aug", "full"), (0, 1, 2, 3, 4), ""),
            ("plain_1", ("aug", "full"), (0, 1, 2), ""),
            ("occluded_1", ("aug", "full"), (0, 1, 2), ""),
        )
    ),
    Table(
        "from ImageNet weights, CMAAM without IPCAM",
        "misaligned_1",
        ("aug", "aug_cmaam", "full"),
        seeds=(0, 1),
        splits=("val",),
        folder="pretrained",
        models=_PRETRAINED,
    ),
    *(
        Table(
            "from ImageNet weights, heavier IPCAM",
            name,
            ("aug", "full"),
            (0, 1),
            folder="heavier_ipcam",
            about=about,
            models=_HEAVIER,
        )
        for name, about in (("roadscene_places", _PLACES), ("misaligned_1", ""))
    ),
    *(
        Table(
            "from ImageNet weights, weights of IPCAM's losses",
            name,
            ("aug", "full", *(f"full+{one}" for one in tries)),
            (0,),
            splits=("val",),
            folder="heavier_ipcam",
            about=about,
            models=_HEAVIER,
        )
        for name, about, tries in (
            ("roadscene_places", _PLACES, (_LIGHTER, f"{_LIGHTER}+loss.dt=3")),
            (
                "misaligned_1",
                "",
                (_LIGHTER, f"{_LIGHTER}+loss.dt=3", f"{_LIGHTER}+loss.dt=6", _WIDER, f"{_LIGHTER}+{_WIDER}"),
            ),
        )
    ),
    *(
        Table(
            "from ImageNet weights, faster new parts",
            name,
            ("aug", "full"),
            (0, 1),
            folder="new_rate",
            about=about,
            models=_FASTER,
        )
        for name, about in (("roadscene_places", _PLACES), ("misaligned_1", ""))
    ),
    *(
        Table(
            "from ImageNet weights, rates of new parts",
            name,
            ("aug", "full", *(f"{row}+optim.new_rate={rate}" for row, rate in tries)),
            (0,),
            splits=("val",),
            folder="new_rate",
            about=about,
            models=_FASTER,
        )
        for name, about, tries in (
            ("roadscene_places", _PLACES, (("aug", 0.0005), ("full", 0.0005), ("full", 0.006))),
            ("misaligned_1", "", (("aug", 0.0005), ("full", 0.00015), ("full", 0.0005), ("full", 0.006))),
        )
    ),
    Table(
        "from ImageNet weights, absolute triplet",
        "roadscene_places",
        CORE,
        splits=("val",),
        folder="absolute_triplet",
        about=_PLACES,
        models=_ABSOLUTE,
    ),
    *(
        Table(
            "from ImageNet weights, absolute triplet",
            name,
            rows,
            (0, 1),
            splits=("val",),
            folder="absolute_triplet",
            models=_ABSOLUTE,
        )
        for name, rows in (
            ("plain_1", ("baseline", "aug", "full")),
            ("misaligned_1", ("baseline", "full")),
            ("occluded_1", ("baseline", "aug", "full")),
        )
    ),
    Table(
        "from ImageNet weights, absolute triplet, tries",
        "roadscene_places",
        (
            *("aug", "aug_cmaam"),
            "aug_cmaam+model.cmaam.self_similarity=0.5",
            "aug_cmaam+model.cmaam.mask=deviation",
            "aug_cmaam+loss.dt=4",
            "aug+loss.label_smoothing=0.1",
        ),
        seeds=(0, 1),
        splits=("val",),
        folder="absolute_triplet",
        about=_PLACES,
        models=_ABSOLUTE,
    ),
    Table(
        "from ImageNet weights, absolute triplet, tries of one seed",
        "roadscene_places",
        ("aug", "aug+optim.backbone_rate=0.003"),
        seeds=(0,),
        splits=("val",),
        folder="absolute_triplet",
        about=_PLACES,
        models=_ABSOLUTE,
    ),
    Table(
        "from ImageNet weights, absolute triplet, on a CPU",
        "roadscene_places",
        ("aug",),
        seeds=(0, 1),
        folder="absolute_triplet_cpu",
        about=_PLACES,
        models=_ABSOLUTE,
    ),
    Table(
        "from ImageNet weights, tries on a CPU",
        "roadscene_places",
        (
            *("aug", "aug_cmaam"),
            "aug+loss.triplet_unit=distance",
            "aug+loss.triplet_unit=distance+optim.backbone_rate=0.0005",
        ),
        seeds=(0,),
        folder="absolute_triplet_cpu",
        about=_PLACES,
        models=_ABSOLUTE,
    ),
)


def page(results: Path, tables: Sequence[Table]) -> str:
    """The whole page, as Markdown. Raises InputError if the scores of a training are missing."""
    parts = [section(results, table, split) for table in tables for split in table.splits]
    return "\n".join([HEAD, *parts])


def section(results: Path, table: Table, split: Scored) -> str:
    """One table under its own heading."""
    store = KeptScores(kept_file(results / table.folder, table.benchmark))
    kept = {(row, seed): _find(store, row, seed) for row in table.rows for seed in table.seeds}
    rows = [_row(key, {seed: kept[key, seed] for seed in table.seeds}, split) for key in table.rows]
    identities = "validation" if split == "val" else "test"
    return markdown(
        record(
            rows,
            RESAMPLINGS,
            {"title": f"{table.benchmark}, {table.title}, {identities} identities", "notes": _notes(table, kept)},
        ),
        level=2,
    )


def _row(name: str, kept: dict[int, KeptTraining], split: Scored) -> AblationRow:
    base, *settings = name.split("+")
    row = varied_row(base, *settings) if settings else ROWS[base]
    scores = {seed: IdentityScores.of(training.scores[split].people) for seed, training in kept.items()}
    return AblationRow(row, scores, lacks=())


def _notes(table: Table, kept: dict[tuple[str, int], KeptTraining]) -> list[str]:
    """The facts that differ between tables: the benchmark, the length of the training, the commits."""
    length = {one.config["train"]["epochs"] * one.config["train"]["steps_per_epoch"] for one in kept.values()}
    commits = {start.commit for one in kept.values() for start in one.trainings if start.commit}
    about = f"{table.about or _benchmark(table.benchmark)}{table.models}"
    return [
        f"{about} Steps: {' or '.join(f'{steps:,}' for steps in sorted(length))}."
        f" Trained at {', '.join(sorted(commit[:7] + commit[40:] for commit in commits))}."
    ]


def _benchmark(name: str) -> str:
    kind = BENCHMARKS[name]
    return (
        f"Benchmark: {kind.about}; {kind.identities} procedural people, seed {kind.seed}, generator version"
        f" {kind.generator_version}."
    )


def _find(store: KeptScores, row: str, seed: int) -> KeptTraining:
    found = store.find(row, seed)
    if found is None:
        raise InputError(f"{shown(store.file)} has no scores of row {row} with seed {seed}")
    return found


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=to_path, default=ROOT / "perf" / "results", help="default: perf/results")
    parser.add_argument("--out", type=to_path, default=ROOT / "docs" / "ablation_tables.md", help="default: the page")
    args = parser.parse_args(argv)
    write_whole(args.out, page(args.results, TABLES))
    print(f"written: {shown(args.out)}")
    return 0
