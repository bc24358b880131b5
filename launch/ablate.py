"""What each part of the method adds, on the project's own benchmarks: rows x seeds, paired differences with intervals.

    python launch/ablate.py --out DIR [--benchmarks plain_1 ...] [--rows ...] [--seeds 0 1 2] [--parallel 2]
    python launch/ablate.py --out DIR --rows aug --try aug_cmaam loss.dt=2 --try aug_cmaam loss.dt=4 --name tries

Judged on validation identities; `--test` scores what is finished on the test identities, once all choices are made.
`--try` adds a row with other settings, so that what was tried stands in a table of its own, also what failed.
What is finished is kept: the same command goes on after an interruption. --results gets a file of every training's
scores in ablation/, with which it need not be repeated even where its run is gone, and a table for every benchmark,
anew after every training, which says what it lacks.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.ablate")

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.study import table as study_table
from launch.study.forest import draw_forest
from launch.study.results import Cell, result_file
from launch.study.trainings import SCRIPT, Training, run_all
from shards.pedestrians import benchmarks
from shards.sources import sysu_mm01
from tacaf.command import EXIT_STOPPED, Parser, entry, to_path
from tacaf.files import write_whole
from tacaf.provenance import command, git_commit, published, versions
from tacaf.vocabulary import InputError

CONFIG = SCRIPT.parent / "configs" / "ablation.yaml"


class Row(NamedTuple):
    """A row of the table: its words, what it sets, and the rows it is compared with."""

    text: str
    settings: tuple[str, ...]
    against: tuple[str, ...]


_NO_AUG = "data.plan.channel_augment=false"
_NO_IPCAM = "model.ipcam.enabled=false"
_NO_CMAAM = "model.cmaam.enabled=false"
ROWS = {
    "baseline": Row("baseline", (_NO_AUG, _NO_IPCAM, _NO_CMAAM), ()),
    "aug": Row("+ channel augmentation", (_NO_IPCAM, _NO_CMAAM), ("baseline",)),
    "aug_ipcam": Row("+ augmentation + IPCAM", (_NO_CMAAM,), ("aug", "baseline")),
    "aug_cmaam": Row("+ augmentation + CMAAM", (_NO_IPCAM,), ("aug", "baseline")),
    "full": Row("full (augmentation + IPCAM + CMAAM)", (), ("baseline", "aug", "aug_ipcam", "aug_cmaam")),
    "ipcam": Row("+ IPCAM, no augmentation", (_NO_AUG, _NO_CMAAM), ("baseline",)),
    "cmaam": Row("+ CMAAM, no augmentation", (_NO_AUG, _NO_IPCAM), ("baseline",)),
    "both": Row("+ IPCAM + CMAAM, no augmentation", (_NO_AUG,), ("baseline", "full")),
    "no_ring": Row("full without the ring", ("model.ipcam.ring=false",), ("full",)),
    "no_self": Row("full without the self-connection", ("model.ipcam.self_connection=false",), ("full",)),
    "no_pair": Row("full without the pair stage", ("model.ipcam.pair_stage=false",), ("full",)),
    "consistency": Row(
        "full with identity consistency at .3", ("loss.ic=0.3", "model.cmaam.consistency=true"), ("full",)
    ),
    "no_consistency": Row(
        "full without identity consistency", ("loss.ic=0", "model.cmaam.consistency=false"), ("full",)
    ),
    "norm_mask": Row("full, person mask by the norm", ("model.cmaam.mask=norm",), ("full",)),
    "no_dense": Row("full without the dense triplet", ("loss.dt=0",), ("full",)),
    "one_way": Row("full, visible anchors only", ("model.cmaam.direction=visible_to_infrared",), ("full",)),
}
CORE = ("baseline", "aug", "aug_ipcam", "aug_cmaam", "full")


def cells(wanted: argparse.Namespace) -> list[Cell]:
    """All trainings: seeds outermost, so that every row stands once before any is repeated."""
    return [
        Cell(
            benchmark,
            key,
            seed,
            Training(
                wanted.out / "runs" / f"{benchmark}-{key}-seed{seed}",
                wanted.config,
                (*wanted.set, f"data.shards={set_folder(wanted, benchmark)}", f"seed={seed}", *row.settings),
            ),
            result_file(wanted.results, benchmark, key, seed),
        )
        for seed in wanted.seeds
        for benchmark in wanted.benchmarks
        for key, row in wanted.rows.items()
    ]


def ablate(wanted: argparse.Namespace) -> int:
    """Make the sets, train what is not trained, write the tables; 1 if a training failed, 75 if asked to stop."""
    table = cells(wanted)
    for cell in table:
        cell.check()
    failures: dict[Training, str] = {}
    by_training = {cell.training: cell for cell in table}

    def ended(one: Training, status: int) -> None:
        words = "finished" if status == 0 else f"status {status}"
        try:
            if status == 0:
                by_training[one].collect(wanted.split)
            elif status != EXIT_STOPPED:
                failures[one] = f"its training ended with status {status}, see {one.folder.name}.log"
        except InputError as error:
            words = failures[one] = str(error)
        print(f"{one.folder.name}: {words}", flush=True)
        write_tables(wanted, table, failures)

    lacking = [cell for cell in table if cell.people(wanted.split) is None]
    todo = [cell for cell in lacking if not cell.training.finished()]
    print(f"{len(table) - len(todo)} of {len(table)} trainings are finished", flush=True)
    if not wanted.only_tables:
        for benchmark in {cell.benchmark: None for cell in lacking}:
            make_set(wanted, benchmark)
    for cell in lacking:
        if cell.can_collect(wanted.split) or (cell.training.finished() and not wanted.only_tables):
            ended(cell.training, 0)
    if not wanted.only_tables:
        threads = {"OMP_NUM_THREADS": "1"} if wanted.parallel > 1 else None
        if not run_all([cell.training for cell in todo], ended, wanted.parallel, environment=threads):
            print("asked to stop; the same command goes on from there", flush=True)
            return EXIT_STOPPED
    for path in write_tables(wanted, table, failures):
        print(path.read_text())
    return 1 if failures else 0


def set_folder(wanted: argparse.Namespace, benchmark: str) -> Path:
    return wanted.out / "sets" / benchmark


def make_set(wanted: argparse.Namespace, benchmark: str) -> None:
    """Render and pack a benchmark, unless that was done."""
    packed = set_folder(wanted, benchmark)
    raw = packed.with_name(f"{benchmark}-raw")
    if (packed / "index.json").exists():
        return
    if not raw.exists():
        benchmarks.make(benchmark, raw)
    print(sysu_mm01.pack(raw, packed).summary(), flush=True)


def write_tables(wanted: argparse.Namespace, table: Sequence[Cell], failures: dict[Training, str]) -> list[Path]:
    """For every benchmark a page, a record and a picture; the pages' paths."""
    pages = []
    for benchmark in wanted.benchmarks:
        own = [cell for cell in table if cell.benchmark == benchmark]
        rows = [table_row(wanted, row, [cell for cell in own if cell.row == row], failures) for row in wanted.rows]
        content = study_table.record(rows, wanted.resamplings, facts_of(wanted, benchmark, own))
        parts = ("ablation", benchmark, wanted.split, wanted.name)
        name = "_".join(part for part in parts if part)
        wanted.results.mkdir(parents=True, exist_ok=True)
        pages.append(wanted.results / f"{name}.md")
        write_whole(wanted.results / f"{name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        write_whole(wanted.results / f"{name}.svg", draw_forest(content))
        write_whole(pages[-1], study_table.markdown(content))
    return pages


def table_row(
    wanted: argparse.Namespace, key: str, own: Sequence[Cell], failures: dict[Training, str]
) -> study_table.Row:
    """A row as far as it is measured; what is missing is said in its place."""
    found = {cell.seed: cell.people(wanted.split) for cell in own}
    seeds = {seed: people for seed, people in found.items() if people is not None}
    lacks = [f"seed {cell.seed}: {failures[cell.training]}" for cell in own if cell.training in failures]
    waiting = len(own) - len(seeds) - len(lacks)
    lacks += [f"{waiting} of {len(own)} seeds not finished"] if waiting else []
    row = wanted.rows[key]
    return study_table.Row(key, row.text, row.against, seeds, lacks)


def facts_of(wanted: argparse.Namespace, benchmark: str, own: Sequence[Cell]) -> dict[str, Any]:
    """What stands over the table and in its record."""
    config = own[0].training.config()
    commits = sorted({commit[:7] + commit[40:] for cell in own for commit in cell.trained_at()})
    embeddings, weights = (" or ".join(dict.fromkeys(words)) for words in zip(*map(may_differ, own), strict=True))
    kind = benchmarks.BENCHMARKS[benchmark]
    split = "test" if wanted.split == "test" else "validation"
    steps = config.train.epochs * (config.train.steps_per_epoch or 0)
    length = f"{steps} steps" if steps else f"{config.train.epochs} epochs"
    return {
        "title": f"What each part adds: {kind.set_name}, {split} identities",
        "notes": [
            f"Benchmark: {kind.about}; {kind.identities} procedural people, seed {kind.seed}, generator version"
            f" {kind.generator_version}. It says nothing about the public data sets.",
            f"all_search, single shot, literature draw, 10 trials, {config.evaluation.metric},"
            f" {embeddings} embedding, no flip, no re-ranking; the last epoch's model after {length}"
            f" of {config.data.plan.images_per_modality} images a modality at {config.data.augment.height} x"
            f" {config.data.augment.width}, {weights}. Per cent, mean ± sample standard deviation over"
            " seeds. Intervals: Student's, with the standard error of a bootstrap over identities and seeds.",
            f"Trained at {'commit' if len(commits) == 1 else 'commits'} {', '.join(commits) or 'none yet'}.",
        ],
        "benchmark": benchmark,
        "split": split,
        "protocol": "sysu_mm01, all_search, 1 shot, literature draw",
        "seeds_asked": list(wanted.seeds),
        "config": wanted.config.name,
        "settings": published(wanted.set),
        "trained_at": commits,
        "versions": versions(),
        "commit": git_commit(),
        "command": command(),
    }


def may_differ(cell: Cell) -> tuple[str, str]:
    """What the page's head says and a `--try` may have otherwise: embedding, and what the training begins with."""
    config = cell.training.config()
    given = config.train.weights or config.train.start_from or getattr(config.model.backbone, "weights", None)
    return config.evaluation.embedding, f"from {Path(given).name}" if given else "from scratch"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = tuple(benchmarks.BENCHMARKS)
    parser.add_argument("--out", type=to_path, required=True, help="sets and runs go there")
    parser.add_argument("--results", type=to_path, help="tables go there; default: OUT/results")
    parser.add_argument("--benchmarks", nargs="+", choices=names, default=names[:1], help="default: %(default)s")
    parser.add_argument("--rows", nargs="+", choices=(*ROWS, "core", "all"), default=["core"], help="default: core")
    parser.add_argument(
        "--try",
        action="append",
        nargs="+",
        default=[],
        dest="tries",
        metavar=("ROW", "a.b=c"),
        help="one more row: ROW with these settings; repeat for several",
    )
    parser.add_argument("--name", default="", help="added to the names of the tables' files; needed with --try")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", type=to_path, default=CONFIG)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="for every training")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at a time, each on one thread where several")
    parser.add_argument("--test", action="store_true", help="score the test identities")
    parser.add_argument(
        "--only-tables", action="store_true", help="train and embed nothing: tables of what is finished"
    )
    parser.add_argument("--resamplings", type=int, default=10_000, help="of the bootstrap")
    wanted = parser.parse_args(argv)
    wanted.results = wanted.results or wanted.out / "results"
    wanted.split = "test" if wanted.test else "val"
    asked = {*wanted.rows, *(CORE if "core" in wanted.rows else ()), *(telling(wanted) if "all" in wanted.rows else ())}
    wanted.rows = {name: row for name, row in ROWS.items() if name in asked}
    wanted.rows |= dict(tried(*words) for words in wanted.tries)
    wanted.seeds = tuple(dict.fromkeys(wanted.seeds))
    wanted.benchmarks = tuple(dict.fromkeys(wanted.benchmarks))
    if "/" in wanted.name or (wanted.tries and not wanted.name):
        raise InputError(
            f"expected --name WORD with --try, for tables of their own, and no / in it, got {wanted.name!r}; name it"
        )
    for name in ("parallel", "resamplings"):
        if getattr(wanted, name) < 1:
            raise InputError(f"expected at least 1 in --{name}, got {getattr(wanted, name)}; raise it")
    return wanted


def telling(wanted: argparse.Namespace) -> list[str]:
    """The rows that are not full under another name, since the configuration has that switch so already.

    A row that the configuration refuses is left out with a word.
    """

    def training(row: Row) -> dict[str, Any]:
        return Training(wanted.out, wanted.config, (*wanted.set, *row.settings)).config().effective()

    full, same = training(ROWS["full"]), set()
    for key, row in ROWS.items():
        try:
            if key != "full" and training(row) == full:
                same.add(key)
        except InputError as error:
            print(f"row {key} left out: {error}", file=sys.stderr)
            same.add(key)
    if full.get("loss.ic") == 0:
        same.add("no_dense")  # CMAAM without any loss: that is aug_ipcam
    return [key for key in ROWS if key not in same]


def tried(row: str, *settings: str) -> tuple[str, Row]:
    """The row of a `--try`: its key, which names its run folders, and what it does."""
    if row not in ROWS or not settings or any("=" not in setting for setting in settings):
        raise InputError(
            f"expected --try ROW a.b=c ..., with ROW one of {', '.join(ROWS)}; got {' '.join((row, *settings))}"
        )
    for setting in settings:
        if setting.partition("=")[0] in ("run", "seed", "data.shards") or "/" in setting:
            raise InputError(
                f"--try: expected settings other than run, seed and data.shards, and no path, since a row's name has"
                f" them, got {setting}; use --seeds, --benchmarks, or --set for all rows"
            )
    usual = ROWS[row]
    text = f"{usual.text}, {', '.join(settings)}"
    return "+".join((row, *settings)), Row(text, (*usual.settings, *settings), (row, *usual.against))


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    return ablate(parse(argv))
