"""Reproduce a data set's table: pack it, train the ablation's rows, score them, and compare with published numbers.

    python launch/reproduce.py sysu_mm01|regdb|llcm --root RAW --out DIR [--set train.weights=resnet50-0676ba61.pth]

Finished trainings are kept, so the same command resumes after an interruption. The table (DIR/table.md, .html, .json)
is rewritten after every training and names what each row lacks.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.reproduce")

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.study.comparison import write_comparison
from launch.study.reproduction import Reproduction
from launch.study.rows import CORE, ROWS, choose_rows
from launch.study.trainings import Training, run_all
from shards.packers import PACKERS
from tacaf.command import EXIT_STOPPED, Parser, entry, to_path
from tacaf.datasets import REGDB
from tacaf.files import shown
from tacaf.vocabulary import InputError

CONFIGS = Path(__file__).parent / "configs"
REGDB_SPLITS = REGDB.numbered_splits


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return reproduce(study_of(args), args.ranks)


def study_of(args: argparse.Namespace) -> Reproduction:
    """The study that the command line describes."""
    config = args.config or CONFIGS / f"{args.data_set}.yaml"
    return Reproduction(
        data_set=args.data_set,
        raw=args.root,
        out=args.out,
        config=config,
        settings=tuple(args.set),
        rows=choose_rows(args.rows, config, args.set),
        seeds=tuple(dict.fromkeys(args.seeds)),
        regdb_splits=tuple(dict.fromkeys(args.regdb_splits)),
        camera_draws=args.splits,
    )


def reproduce(study: Reproduction, ranks: int) -> int:
    """Pack the data set, run the missing trainings and write the table.

    Returns 1 if a training failed, 75 if the command was told to stop, otherwise 0.
    """
    study.out.mkdir(parents=True, exist_ok=True)
    study.pack()
    cells = study.cells()
    for cell in cells:
        cell.training.refuse_other_settings()
    failures: dict[Training, str] = {}

    def write() -> list[Path]:
        return write_comparison(study.out, study.data_set, study.measured(cells, failures), study.facts())

    def ended(training: Training, status: int) -> None:
        if status not in (0, EXIT_STOPPED):
            failures[training] = f"its training ended with status {status}"
        write()

    todo = [cell.training for cell in cells if not cell.training.finished()]
    print(f"{len(cells) - len(todo)} of {len(cells)} trainings are finished", flush=True)
    if not run_all(todo, ended, ranks=ranks):
        print("stopped; run the same command again to resume", flush=True)
        return EXIT_STOPPED
    paths = write()
    print(paths[0].read_text())
    print("written: " + ", ".join(map(shown, paths)))
    return 1 if failures else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data_set", choices=tuple(PACKERS))
    add("--root", type=to_path, required=True, help="folder of the raw data set")
    add("--out", type=to_path, required=True, help="folder for the shards, the runs and the table")
    add("--config", type=to_path, help="configuration of the trainings; default: launch/configs/<data set>.yaml")
    add("--set", action="append", default=[], metavar="a.b=c", help="override one setting of every training")
    # The paper's Table 1 has a baseline, IPCAM, CMAAM and both. It does not state whether its baseline has the
    # augmentation, so the default rows include a baseline without it and one with it.
    add("--rows", nargs="+", choices=(*ROWS, "core"), default=["core"], help=f"default: core ({' '.join(CORE)})")
    add("--seeds", type=int, nargs="+", default=[0], help="train each row with each of these seeds; default: 0")
    add(
        "--regdb-splits",
        type=int,
        nargs="+",
        choices=REGDB_SPLITS,
        default=REGDB_SPLITS,
        metavar="N",
        help="train and score a model on each of these splits of RegDB; default: all ten",
    )
    add(
        "--splits",
        type=to_path,
        help="folder with rand_perm_cam.mat, for SYSU-MM01's official draw; default: the literature's draw",
    )
    add("--ranks", type=int, default=1, help="ranks (GPUs) of each training; default: 1")
    args = parser.parse_args(argv)
    if args.ranks < 1:
        raise InputError(f"expected at least 1 rank, got {args.ranks}; raise --ranks")
    return args
