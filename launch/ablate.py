"""Measure what each part of the method adds, on the project's benchmarks or on packed sets, with several seeds.

    python launch/ablate.py --out DIR [--benchmarks plain_1 ...] [--rows ...] [--seeds 0 1 2] [--parallel 2]
    python launch/ablate.py --out DIR --shards SET [SET ...] [--config launch/configs/laptop.yaml]
    python launch/ablate.py --out DIR --rows aug --try aug_cmaam loss.dt=2 --try aug_cmaam loss.dt=4 --name tries

Models are scored on validation identities; once all choices are made, `--test` scores the finished ones on the test
identities. `--try` adds a row with other settings, in a separate table, so that failed attempts are recorded too.

A packed set needs the splits train, val and test. It is scored under the protocol `generic` in its first direction,
infrared to visible, unless `--set evaluation...` changes that: `--set evaluation.protocol=sysu_mm01` for SYSU-MM01.

Finished trainings are kept, so the same command resumes after an interruption. The folder --results gets the scores of
every training, in one file per set, so that a training need not be repeated even if its run is deleted. The tables are
written to --tables; they are rewritten after every training and name what is missing.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.ablate")

import argparse
from collections.abc import Sequence

from launch.study.ablation import Ablation, write_tables
from launch.study.ablation_cell import AblationCell
from launch.study.rows import CORE, ROWS, choose_rows, varied_row
from launch.study.study_sets import choose_sets
from launch.study.trainings import SCRIPT, Training, run_all
from shards.pedestrians import benchmarks
from tacaf.command import EXIT_STOPPED, Parser, entry, to_path
from tacaf.vocabulary import InputError

CONFIG = SCRIPT.parent / "configs" / "ablation.yaml"


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return ablate(study_of(args), args.parallel, only_tables=args.only_tables)


def study_of(args: argparse.Namespace) -> Ablation:
    """The study that the command line describes."""
    tries = {row.name: row for row in (varied_row(*words) for words in args.tries)}
    if "/" in args.name or (tries and not args.name):
        raise InputError(
            f"expected a name without '/' in --name, for the tables of --try, got {args.name!r}; give such a name"
        )
    names = args.benchmarks or ([] if args.shards else list(benchmarks.BENCHMARKS)[:1])
    sets = choose_sets(names, args.shards, args.out)
    below = [setting for one in sets for setting in one.settings]  # rows are the same for every set
    results = args.results or args.out / "results"
    return Ablation(
        out=args.out,
        results=results,
        tables=args.tables or results,
        config=args.config,
        settings=tuple(args.set),
        sets=sets,
        rows=choose_rows(args.rows, args.config, [*below, *args.set]) | tries,
        seeds=tuple(dict.fromkeys(args.seeds)),
        split="test" if args.test else "val",
        name=args.name,
        resamplings=args.resamplings,
    )


def ablate(study: Ablation, parallel: int, only_tables: bool) -> int:
    """Make the sets, run the missing trainings and write the tables.

    Returns 1 if a training failed, 75 if the command was told to stop, otherwise 0. parallel: trainings at a time.
    only_tables: train and embed nothing.
    """
    cells = study.cells()
    for cell in cells:
        cell.check(study.split)
    collecting = Collecting(study, cells)
    missing = [cell for cell in cells if cell.scores(study.split) is None]
    untrained = sum(not cell.training.finished() for cell in missing)
    print(f"{len(cells) - untrained} of {len(cells)} trainings are finished", flush=True)
    if not only_tables:
        for study_set in dict.fromkeys(cell.study_set for cell in missing):
            study_set.make()
    todo = []
    for cell in missing:
        if cell.can_collect(study.split):
            collecting.ended(cell.training, 0)
        else:
            todo.append(cell.training)
    if not only_tables:
        threads = {"OMP_NUM_THREADS": "1"} if parallel > 1 else None
        then = collecting.embed_command if study.split == "test" else lambda _: None
        if not run_all(todo, collecting.ended, parallel, environment=threads, then=then):
            print("stopped; run the same command again to resume", flush=True)
            return EXIT_STOPPED
    for path in write_tables(study, cells, collecting.failures):
        print(path.read_text())
    return 1 if collecting.failures else 0


class Collecting:
    """Keeps the scores of every training that ends, and rewrites the tables each time."""

    def __init__(self, study: Ablation, cells: Sequence[AblationCell]) -> None:
        self.study = study
        self.cells = {cell.training: cell for cell in cells}
        self.failures: dict[Training, str] = {}  # why a training has no scores

    def embed_command(self, training: Training) -> list[str] | None:
        """The command that embeds and scores the test identities with this training's model, or None."""
        return self.cells[training].embed_command()

    def ended(self, training: Training, status: int) -> None:
        """Record a training, or the embedding of its test identities, that ended with this exit status."""
        outcome = "finished" if status == 0 else f"status {status}"
        try:
            if status == 0:
                self.cells[training].collect(self.study.split)
            elif status != EXIT_STOPPED:
                what = "the scoring of its test identities" if training.finished() else "its training"
                log = training.folder.with_name(f"{training.folder.name}.log")
                where = f", see {log.name}" if log.exists() else ""  # with --parallel 1 it was printed here
                self.failures[training] = f"{what} ended with status {status}{where}"
        except InputError as error:
            outcome = self.failures[training] = str(error)
        print(f"{training.folder.name}: {outcome}", flush=True)
        write_tables(self.study, list(self.cells.values()), self.failures)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = tuple(benchmarks.BENCHMARKS)
    add = parser.add_argument
    add("--out", type=to_path, required=True, help="folder for the sets and runs")
    add("--results", type=to_path, help="folder for the scores; default: OUT/results")
    add("--tables", type=to_path, help="folder for the tables; default: the folder of the scores")
    add("--benchmarks", nargs="+", choices=names, help=f"the project's; default: {names[0]}, or none with --shards")
    add("--shards", type=to_path, nargs="+", default=[], metavar="SET", help="folders of packed sets")
    add("--rows", nargs="+", choices=(*ROWS, "core", "all"), default=["core"], help=f"default: core ({' '.join(CORE)})")
    add(
        "--try",
        action="append",
        nargs="+",
        default=[],
        dest="tries",
        metavar=("ROW", "a.b=c"),
        help="add a row: ROW with these settings; may be given several times",
    )
    add("--name", default="", help="added to the names of the tables' files; required with --try")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--config", type=to_path, default=CONFIG, help="default: launch/configs/ablation.yaml")
    add("--set", action="append", default=[], metavar="a.b=c", help="override one setting of every training")
    add(
        "--parallel",
        type=int,
        default=1,
        help="trainings, or scorings of test identities at a time; with more than one, each has one thread; default: 1",
    )
    add("--test", action="store_true", help="score the test identities")
    add(
        "--only-tables", action="store_true", help="write the tables of what is finished, without training or embedding"
    )
    add("--resamplings", type=int, default=10_000, help="resamplings of the bootstrap; default: %(default)s")
    args = parser.parse_args(argv)
    for name in ("parallel", "resamplings"):
        if getattr(args, name) < 1:
            raise InputError(f"expected at least 1 in --{name}, got {getattr(args, name)}; raise it")
    return args
