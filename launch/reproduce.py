"""One data set's table: pack, train the ablation's rows, score, and set the figures beside the published ones.

    python launch/reproduce.py sysu_mm01|regdb|llcm --root RAW --out DIR [--set train.weights=resnet50-0676ba61.pth]

What is finished is kept: the same command goes on after an interruption. The table is written anew after every
training (DIR/table.md, .html, .json) and says of each row that is not whole what it lacks.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from launch.config import Config, load_config
from launch.stop import EXIT_CODE
from shards.__main__ import DATA_SETS
from shards.verify import verify
from tacaf.data.index import ShardIndex
from tacaf.evaluation.comparison import Measured, write_comparison
from tacaf.evaluation.features import load_features
from tacaf.evaluation.protocols import score
from tacaf.logs import git_commit, versions
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


class Training(NamedTuple):
    """One training of the table: a row with a seed and, on RegDB, a split."""

    row: str
    seed: int
    split: int | None
    folder: Path

    def settings(self, wanted: argparse.Namespace) -> list[str]:
        """What it sets above the configuration file, the user's own values last but for what makes it this training."""
        own = [f"run={self.folder}", f"seed={self.seed}", f"data.shards={wanted.out / 'shards'}"]
        own += [f"evaluation.protocol={wanted.data_set}"]
        own += [f"evaluation.splits={wanted.splits}"] if wanted.splits else []
        own += [f"data.split=train_{self.split}"] if self.split else []
        return [*wanted.set, *own, *ROWS[self.row].settings]

    def finished(self) -> bool:
        """Whether nothing is left to do: the report is the last file a training writes."""
        return (self.folder / "report.html").exists()


def trainings(wanted: argparse.Namespace) -> list[Training]:
    """All trainings of the table: seeds outermost, so that every row stands once before any is repeated."""
    splits = wanted.regdb_splits if wanted.data_set == "regdb" else (None,)
    found = []
    for seed in wanted.seeds:
        for split in splits:
            for row in wanted.rows:
                name = "-".join([row, *([f"split{split}"] if split else []), f"seed{seed}"])
                found.append(Training(row, seed, split, wanted.out / "runs" / name))
    return found


def reproduce(wanted: argparse.Namespace) -> int:
    """Pack, train what is not trained, write the table; 1 if a training failed, 75 if one was asked to stop."""
    wanted.out.mkdir(parents=True, exist_ok=True)
    pack(wanted)
    todo = trainings(wanted)
    configs = {one: load_config(wanted.config, one.settings(wanted)) for one in todo}
    for one in todo:
        refuse_other_settings(one, configs[one])
    failures: dict[Training, str] = {}
    for number, one in enumerate(todo, 1):
        if not one.finished():
            print(f"[{number}/{len(todo)}] {one.folder.name}", flush=True)
            status = train(one, wanted)
            if status == EXIT_CODE:
                print("asked to stop; the same command goes on from there", flush=True)
                return EXIT_CODE
            if status != 0:
                failures[one] = f"its training ended with status {status}"
        paths = write_comparison(wanted.out, wanted.data_set, table_rows(wanted, todo, failures), facts_of(wanted))
    print(paths[0].read_text())
    print("written: " + ", ".join(map(str, paths)))
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


def refuse_other_settings(one: Training, config: Config) -> None:
    """InputError if an earlier command made this training with other values: one table, one recipe."""
    path = one.folder / "config.yaml"
    if not path.exists():
        return
    before, now = (_flat(load_config(path, [])), _flat(config))
    other = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if other:
        name = other[0]
        raise InputError(
            f"{one.folder}: expected {name} = {before.get(name)}, with which this training was made, got"
            f" {now.get(name)}; set it back, or give another --out"
        )


def _flat(config: Config) -> dict[str, Any]:
    def walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, below in value.items():
                yield from walk(below, f"{name}.{key}" if name else str(key))
        else:
            yield name, value

    return dict(walk(config.model_dump(mode="json"), ""))


def train(one: Training, wanted: argparse.Namespace) -> int:
    """Run or go on with one training in processes of its own; its exit status. A signal to us is passed on to it."""
    script = str(Path(__file__).parent / "train.py")
    starter = [sys.executable, script]
    if wanted.ranks > 1:
        starter = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        starter += ["--nproc-per-node", str(wanted.ranks), script]
    words = ["--config", str(wanted.config)]
    for setting in one.settings(wanted):
        words += ["--set", setting]
    if (one.folder / "config.yaml").exists():
        words.append("--resume")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    asked = []
    with subprocess.Popen([*starter, *words], env=environment) as process:

        def pass_on(number: int, _: FrameType | None) -> None:
            asked.append(number)
            process.terminate()  # what every launcher passes on to its ranks; another signal would end torchrun alone

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            status = process.wait()
            return (
                EXIT_CODE if asked and status != 0 else status
            )  # torchrun gives its ranks' status a number of its own
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def table_rows(wanted: argparse.Namespace, todo: Sequence[Training], failures: dict[Training, str]) -> list[Measured]:
    """Every row as far as it is measured; what is missing is said in its place."""
    found = []
    for row in wanted.rows:
        own = [one for one in todo if one.row == row]
        done = [one for one in own if one.finished()]
        lacks = [f"{one.folder.name}: {failures[one]}" for one in own if one in failures]
        waiting = len(own) - len(done) - len(lacks)
        lacks += [f"{waiting} of {len(own)} trainings not finished"] if waiting else []
        seeds = [results_of(wanted, [one for one in done if one.seed == seed]) for seed in wanted.seeds]
        found.append(Measured(row, ROWS[row].text, [results for results in seeds if results], lacks))
    return found


def results_of(wanted: argparse.Namespace, done: Sequence[Training]) -> list[dict]:
    """The score JSONs of one seed. On RegDB the splits' features are scored together: a trial is a split."""
    if not done:
        return []
    stored = [[json.loads(path.read_text()) for path in sorted(one.folder.glob("results/*.json"))] for one in done]
    if wanted.data_set != "regdb":
        return stored[0]
    features = [load_features(one.folder / "results" / "features.npz") for one in done]
    told = ("embedding", "flip", "rerank", "seed")
    return [
        score(
            features, "regdb", direction=first["direction"], metric=first["metric"],
            circumstances={
                **{name: first[name] for name in told},
                "split": f"test_{', '.join(str(one.split) for one in done)}",
                "trained_on": f"each split's own training identities ({len(done)} models)",
            },
        )
        for first in stored[0]
    ]  # fmt: skip


def facts_of(wanted: argparse.Namespace) -> dict[str, Any]:
    """What stands under the table."""
    index = ShardIndex.open(str(wanted.out / "shards"))
    config = load_config(wanted.config, trainings(wanted)[0].settings(wanted))
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", choices=tuple(DATA_SETS))
    parser.add_argument("--root", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--out", type=Path, required=True, help="shards, runs and table go there")
    parser.add_argument("--config", type=Path, help="default: launch/configs/<data set>.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="for every training")
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each row once with every seed")
    parser.add_argument("--regdb-splits", type=int, nargs="+", choices=REGDB_SPLITS, default=REGDB_SPLITS, metavar="N")
    parser.add_argument("--splits", type=Path, help="folder with rand_perm_cam.mat, for SYSU-MM01's official draw")
    parser.add_argument("--ranks", type=int, default=1, help="processes (GPUs) a training uses")
    wanted = parser.parse_args(argv)
    wanted.config = wanted.config or CONFIGS / f"{wanted.data_set}.yaml"
    for name in ("rows", "seeds", "regdb_splits"):
        setattr(wanted, name, tuple(dict.fromkeys(getattr(wanted, name))))
    if wanted.ranks < 1:
        raise InputError(f"expected at least 1 rank, got {wanted.ranks}; raise --ranks")
    return wanted


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return reproduce(parse(argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
