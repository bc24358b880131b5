"""One data set's table: pack, train the ablation's rows, score, and set the figures beside the published ones.

    python launch/reproduce.py sysu_mm01|regdb|llcm --root RAW --out DIR [--set train.weights=resnet50-0676ba61.pth]

What is finished is kept: the same command goes on after an interruption. The table is written anew after every
training (DIR/table.md, .html, .json) and says of each row that is not whole what it lacks.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("launch.reproduce")

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.evaluate import joined
from launch.study.comparison import Measured, write_comparison
from launch.study.trainings import Training, run_all
from shards.__main__ import DATA_SETS
from shards.verify import verify
from tacaf.command import EXIT_STOPPED, Parser, entry, to_path
from tacaf.data.index import ShardIndex
from tacaf.evaluation.features import load_features
from tacaf.evaluation.results import on_own_set, read_result
from tacaf.evaluation.score import score
from tacaf.files import shown
from tacaf.provenance import git_commit, versions
from tacaf.vocabulary import InputError

CONFIGS = Path(__file__).parent / "configs"
REGDB_SPLITS = tuple(range(1, 11))


class Row(NamedTuple):
    """A row of the ablation: its words in the table, and what it sets."""

    text: str
    settings: tuple[str, ...]


_WITHOUT = {
    "augmentation": "data.plan.channel_augment=false",
    "ipcam": "model.ipcam.enabled=false",
    "cmaam": "model.cmaam.enabled=false",
}
# The paper's Table 1 (baseline, IPCAM, CMAAM, both). It does not say whether its baseline has the augmentation, so the
# baseline stands here with and without it.
ROWS = {
    "plain": Row("baseline without channel augmentation", tuple(_WITHOUT.values())),
    "baseline": Row("baseline", (_WITHOUT["ipcam"], _WITHOUT["cmaam"])),
    "ipcam": Row("baseline + IPCAM", (_WITHOUT["cmaam"],)),
    "cmaam": Row("baseline + CMAAM", (_WITHOUT["ipcam"],)),
    "full": Row("baseline + IPCAM + CMAAM", ()),
}


class Cell(NamedTuple):
    """One training of the table: a row with a seed and, on RegDB, a split."""

    row: str
    seed: int
    split: int | None
    training: Training


def cells(wanted: argparse.Namespace) -> list[Cell]:
    """All trainings of the table: seeds outermost, so that every row stands once before any is repeated."""
    splits = wanted.regdb_splits if wanted.data_set == "regdb" else (None,)
    common = [*wanted.set, f"data.shards={wanted.out / 'shards'}", f"evaluation.protocol={wanted.data_set}"]
    common += [f"evaluation.splits={wanted.splits}"] if wanted.splits else []
    found = []
    for seed in wanted.seeds:
        for split in splits:
            own = [*common, f"seed={seed}", *([f"data.split=train_{split}"] if split else [])]
            for row in wanted.rows:
                name = "-".join([row, *([f"split{split}"] if split else []), f"seed{seed}"])
                training = Training(wanted.out / "runs" / name, wanted.config, (*own, *ROWS[row].settings))
                found.append(Cell(row, seed, split, training))
    return found


def reproduce(wanted: argparse.Namespace) -> int:
    """Pack, train what is not trained, write the table; 1 if a training failed, 75 if one was asked to stop."""
    wanted.out.mkdir(parents=True, exist_ok=True)
    pack(wanted)
    table = cells(wanted)
    for cell in table:
        cell.training.refuse_other_settings()
    failures: dict[Training, str] = {}

    def write() -> list[Path]:
        return write_comparison(wanted.out, wanted.data_set, table_rows(wanted, table, failures), facts_of(wanted))

    def ended(one: Training, status: int) -> None:
        if status not in (0, EXIT_STOPPED):
            failures[one] = f"its training ended with status {status}"
        write()

    todo = [cell.training for cell in table if not cell.training.finished()]
    print(f"{len(table) - len(todo)} of {len(table)} trainings are finished", flush=True)
    if not run_all(todo, ended, ranks=wanted.ranks):
        print("asked to stop; the same command goes on from there", flush=True)
        return EXIT_STOPPED
    paths = write()
    print(paths[0].read_text())
    print("written: " + ", ".join(map(shown, paths)))
    return 1 if failures else 0


def pack(wanted: argparse.Namespace) -> None:
    """Pack and verify, unless that was done."""
    shards = wanted.out / "shards"
    if (shards / "index.json").exists():
        return
    print(DATA_SETS[wanted.data_set][1](wanted.root, shards).summary(), flush=True)
    problems = verify(shards)
    if problems:
        raise InputError(f"{shards}: expected sound shards, got {len(problems)} problems, first: {problems[0]}")


def table_rows(wanted: argparse.Namespace, table: Sequence[Cell], failures: dict[Training, str]) -> list[Measured]:
    """Every row as far as it is measured; what is missing is said in its place."""
    found = []
    for row in wanted.rows:
        own = [cell for cell in table if cell.row == row]
        done = [cell for cell in own if cell.training.finished()]
        failed = [cell.training for cell in own if cell.training in failures]
        lacks = [f"{training.folder.name}: {failures[training]}" for training in failed]
        waiting = len(own) - len(done) - len(lacks)
        lacks += [f"{waiting} of {len(own)} trainings not finished"] if waiting else []
        seeds = [results_of(wanted, [cell for cell in done if cell.seed == seed]) for seed in wanted.seeds]
        found.append(Measured(row, ROWS[row].text, [results for results in seeds if results], lacks))
    return found


def results_of(wanted: argparse.Namespace, done: Sequence[Cell]) -> list[dict]:
    """What the trainings of one seed scored. On RegDB the splits' features are scored together: a trial is a split."""
    if not done:
        return []
    folders = [cell.training.folder / "results" for cell in done]
    stored = [
        [result for path in sorted(folder.glob("*.json")) if _of_training(result := read_result(path), cell)]
        for folder, cell in zip(folders, done, strict=True)
    ]
    if wanted.data_set != "regdb":
        return stored[0]
    features = [load_features(folder / "features.npz") for folder in folders]
    told = ("split", "embedding", "flip", "trained_on", "scored_on", "seed")
    return [
        score(
            features,
            "regdb",
            direction=same[0]["direction"],
            metric=same[0]["metric"],
            circumstances=joined([{name: result[name] for name in told} for result in same]),
        )
        for same in zip(*stored, strict=True)
    ]


def _of_training(result: dict, cell: Cell) -> bool:
    """Whether the training scored it, and not somebody afterwards with other options."""
    own = cell.training.config().evaluation
    kind = (result["embedding"], bool(result["rerank"]), result["metric"])
    right = kind == (own.embedding, own.rerank is not None, own.metric) and not result["flip"]
    return right and on_own_set(result)


def facts_of(wanted: argparse.Namespace) -> dict[str, Any]:
    """What stands under the table."""
    index = ShardIndex.open(str(wanted.out / "shards"))
    config = cells(wanted)[0].training.config()
    return {
        "set": index.name,
        "sha256": index.sha256,
        "identities": len(index.pids_of(config.data.split)),
        "seeds": list(wanted.seeds),
        "settings": list(wanted.set),
        "config": wanted.config.name,
        "metric": config.evaluation.metric,
        "embedding": config.evaluation.embedding,
        "epochs": config.train.epochs,
        "versions": versions(),
        "commit": git_commit(),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", choices=tuple(DATA_SETS))
    parser.add_argument("--root", type=to_path, required=True, help="the data set's folder")
    parser.add_argument("--out", type=to_path, required=True, help="shards, runs and table go there")
    parser.add_argument("--config", type=to_path, help="default: launch/configs/<data set>.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="for every training")
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each row once with every seed")
    parser.add_argument("--regdb-splits", type=int, nargs="+", choices=REGDB_SPLITS, default=REGDB_SPLITS, metavar="N")
    parser.add_argument("--splits", type=to_path, help="folder with rand_perm_cam.mat, for SYSU-MM01's official draw")
    parser.add_argument("--ranks", type=int, default=1, help="processes (GPUs) a training uses")
    wanted = parser.parse_args(argv)
    wanted.config = wanted.config or CONFIGS / f"{wanted.data_set}.yaml"
    for name in ("rows", "seeds", "regdb_splits"):
        setattr(wanted, name, tuple(dict.fromkeys(getattr(wanted, name))))
    if wanted.ranks < 1:
        raise InputError(f"expected at least 1 rank, got {wanted.ranks}; raise --ranks")
    return wanted


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    return reproduce(parse(argv))
