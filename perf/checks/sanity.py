"""Runs four checks of the method that do not depend on how hard the benchmark is, each with a rule and a result.

    python perf/checks/sanity.py --run RUN [RUN ...] --shards SHARDS --raw RAW --out WORK [--checks ...] [--json FILE]

RUN: finished runs of launch/train.py on the benchmark packed in SHARDS, whose raw folders are RAW. Two checks train
models of their own with the first run's configuration; finished ones in WORK are used again. The exit status is 1 if a
check does not hold.

correspondence  on pairs with a known shift (known_people.py), the share of a person's positions whose best match under
                CMAAM's similarity is within one cell of the truth; before and after training, against chance and
                against the unshifted position
modality        how well a linear probe predicts the modality from the embedding of unseen identities, before and after
                training
shuffled        a training with shuffled labels must not beat the untrained network; with the queries' identities
                permuted, a trained network must be at chance
overfit         a network trained on 8 identities must find these 8 without a mistake
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.checks.sanity")

import argparse
import csv
import io
import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from launch.study.trainings import Training
from perf.checks.known_people import CAMERAS, moved_pair, pictures
from perf.checks.matching import SHIFT, finds_more, right_shares, spread
from shards.pedestrians.benchmarks import BENCHMARKS, Benchmark
from shards.sources import manifest
from tacaf.command import Parser, entry, to_path
from tacaf.data.index import ShardIndex, select_training
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.score import score
from tacaf.files import write_json, write_whole
from tacaf.model.correspondence import LAYERS, correspondences
from tacaf.model.file import MODEL, load_model
from tacaf.model.norm import BatchNorm1d, BatchNorm2d
from tacaf.model.pooling import gem
from tacaf.model.tacafnet import TacafNet
from tacaf.provenance import environment, git_commit
from tacaf.run_files import CONFIG_FILE
from tacaf.search.embedder import Embedder
from tacaf.train.config import Config, dump_config, load_config
from tacaf.train.leak import refuse_other_set
from tacaf.train.new_model import build_model
from tacaf.train.processes import Place
from tacaf.train.scoring import Extraction, embed_identities
from tacaf.vocabulary import INDEX_FILE, InputError, Modality

HALVES, PERMUTATIONS, IDENTITIES, OVERFIT_STEPS = 10, 100, 8, 300
CHECKS = ("correspondence", "modality", "shuffled", "overfit")


class Subject(NamedTuple):
    """A finished run, with its model before and after the training, both in evaluation mode."""

    run: Path
    config: Config
    before: TacafNet
    after: TacafNet


def load_subject(run: Path, index: ShardIndex, benchmark: Benchmark, people: int) -> Subject:
    """Load a run and its models. Raises InputError unless the run is finished."""
    if not (run / MODEL).exists():
        raise InputError(f"{run} is not a finished run, because it has no {MODEL}; resume its training")
    config = load_config(run / CONFIG_FILE, [])
    refuse_other_set(run, load_model(run / MODEL)[1], index)
    embedder = Embedder.load(run)
    assert embedder.model is not None
    before, _ = build_model(config, select_training(index, config.data.split).identities)
    settle(before, *(read(embedder, pictures(benchmark, modality, people), modality) for modality in CAMERAS))
    return Subject(run, config, before, embedder.model)


def read(embedder: Embedder, known: list[tuple[np.ndarray, np.ndarray]], modality: Modality) -> torch.Tensor:
    return torch.stack([embedder.read(pixels_HWC, modality) for pixels_HWC, _ in known])


@torch.no_grad()
def settle(model: TacafNet, visible_BCHW: torch.Tensor, infrared_BCHW: torch.Tensor) -> None:
    """Give a new model the running statistics of these images, without which its features are not comparable."""
    for part in model.modules():
        if isinstance(part, BatchNorm1d | BatchNorm2d):
            part.momentum = 1.0
    model.train()
    _, layer4_BCHW = model.backbone(torch.cat([visible_BCHW, infrared_BCHW]), len(visible_BCHW))
    levels = model.config.ipcam.levels if model.ipcam else (1,)
    stripes = gem(layer4_BCHW, levels).split(list(levels), dim=1)
    model.head.neck(stripes[0].squeeze(1))
    if model.ipcam:
        model.ipcam(stripes)
    model.eval()


def correspondence(subjects: list[Subject], benchmark: Benchmark, people: int) -> dict[str, Any]:
    """The check of how often the best match is right, before and after training."""
    pairs = [moved_pair(benchmark, number, SHIFT) for number in range(people)]
    found: dict[str, Any] = {"pairs": people, "shift": SHIFT, "runs": {}}
    verdicts = []
    for subject in subjects:
        embedder = Embedder.load(subject.run)
        visible, infrared = (
            read(embedder, [pair[side] for pair in pairs], modality) for side, modality in enumerate(Modality)
        )
        own: dict[str, Any] = {"beta": subject.config.model.cmaam.beta}
        found["runs"][subject.run.name] = own
        for time, model in (("before", subject.before), ("after", subject.after)):
            seen = correspondences(model, visible, Modality.VISIBLE, infrared, Modality.INFRARED)
            own |= {f"layer {layer}, {time}": spread(right_shares(seen[layer], pairs)) for layer in LAYERS}
        verdicts += [finds_more(own[f"layer {layer}, before"], own[f"layer {layer}, after"]) for layer in LAYERS]
    found["rule"] = "after training: within one cell more often than before, than chance and than where it was"
    found["holds"] = all(verdicts)
    return found


def embedded(model: TacafNet, index: ShardIndex, split: str, config: Config) -> FeatureSet:
    size = config.data.augment
    place = Place(0, 1, torch.device("cpu"))
    extraction = Extraction.of(size.height, size.width, config.evaluation)
    return embed_identities(model, index, index.pids_of(split), extraction, place)[0]


def probe(features: FeatureSet, generator: np.random.Generator) -> float:
    """Balanced accuracy of a ridge regression for the modality, fitted on half of the identities, on the others."""
    pids = np.unique(features.pid)
    own = np.isin(features.pid, generator.permutation(pids)[: len(pids) // 2])
    values = np.asarray(features.features, np.float64)
    values = (values - values[own].mean(0)) / (values[own].std(0) + 1e-6)
    answer = np.where(features.modality == Modality.VISIBLE.code, 1.0, -1.0)
    fitted, penalty = values[own], 0.01 * own.sum()
    weight = np.linalg.solve(fitted.T @ fitted + penalty * np.eye(values.shape[1]), fitted.T @ answer[own])
    said = values @ weight
    middle = (said[own & (answer > 0)].mean() + said[own & (answer < 0)].mean()) / 2
    right = (said > middle) == (answer > 0)
    return float(np.mean([right[~own & (answer == kind)].mean() for kind in (1, -1)]))


def modality(subjects: list[Subject], index: ShardIndex) -> dict[str, Any]:
    found: dict[str, Any] = {"chance": 0.5, "halves": HALVES, "runs": {}}
    for subject in subjects:
        own = found["runs"][subject.run.name] = {}
        for time, model in (("before", subject.before), ("after", subject.after)):
            features = embedded(model, index, "val", subject.config)
            values = [probe(features, np.random.default_rng(seed)) for seed in range(HALVES)]
            own[time] = (float(np.mean(values)), float(np.std(values, ddof=1)))
    found["rule"] = "after training: a lower balanced accuracy than before"
    found["holds"] = all(own["after"][0] < own["before"][0] for own in found["runs"].values())
    return found


def shuffled(subject: Subject, index: ShardIndex, raw: Path, out: Path) -> dict[str, Any]:
    """The checks with shuffled training labels, and with permuted identities of the queries."""
    rows = listed(raw)
    generator = np.random.default_rng(0)
    for modality in Modality:
        own = [row for row in rows if row["split"] == "train" and row["modality"] == modality]
        pids = generator.permutation([row["pid"] for row in own])
        for row, pid in zip(own, pids, strict=True):
            row["pid"] = int(pid)
    run = train(subject, pack(rows, raw, out / "shuffled"), out / "shuffled-run", "evaluation.every=0")
    scores = {}
    for name, model in (
        ("untrained", subject.before),
        ("shuffled labels", Embedder.load(run).model),
        ("trained", subject.after),
    ):
        assert model is not None
        scores[name] = rank1(embedded(model, index, "val", subject.config))
    whole = embedded(subject.after, index, "val", subject.config)
    permuted = [rank1(permuted_queries(whole, np.random.default_rng(seed)))[0] for seed in range(PERMUTATIONS)]
    chance = score(whole, "sysu_mm01")["chance_rank1"]
    error = float(np.std(permuted, ddof=1) / len(permuted) ** 0.5)
    found = {
        "chance": chance,
        "rank1": scores,
        "rank1 with permuted queries": (float(np.mean(permuted)), error),
        "rule": "shuffled labels: no better than untrained; permuted queries: chance within 3 standard errors",
        "holds": learned_nothing(scores["shuffled labels"][0], scores["untrained"][0]) and at_chance(permuted, chance),
    }
    return found


def learned_nothing(shuffled_rank1: float, untrained_rank1: float) -> bool:
    return shuffled_rank1 <= untrained_rank1


def at_chance(values: list[float], chance: float) -> bool:
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return bool(abs(np.mean(values) - chance) <= 3 * error)


def permuted_queries(features: FeatureSet, generator: np.random.Generator) -> FeatureSet:
    """Rename the identities of the infrared images at random; images of one identity keep a common name."""
    pids = np.unique(features.pid)
    named = generator.permutation(pids)
    other = named[np.searchsorted(pids, features.pid)]
    return replace(features, pid=np.where(features.modality == Modality.INFRARED.code, other, features.pid))


def rank1(features: FeatureSet) -> tuple[float, float]:
    """Mean and standard deviation over the trials of all_search, single shot."""
    result = score(features, "sysu_mm01")
    assert result.std.rank1 is not None, "several trials"
    return result.mean.rank1, result.std.rank1


def overfit(subject: Subject, raw: Path, out: Path) -> dict[str, Any]:
    rows = listed(raw)
    kept = sorted({row["pid"] for row in rows if row["split"] == "train"})[:IDENTITIES]
    rows = [row for row in rows if row["pid"] in kept or row["split"] == "val"]
    shards = pack(rows, raw, out / "overfit")
    length = ("train.epochs=1", f"train.steps_per_epoch={OVERFIT_STEPS}", "evaluation.every=0")
    run = train(subject, shards, out / "overfit-run", *length)
    model = Embedder.load(run).model
    assert model is not None
    features = embedded(model, ShardIndex.open(shards), "train", subject.config)
    value = score(features, "generic", direction="infrared_to_visible").mean.rank1
    return {
        "identities": IDENTITIES,
        "steps": OVERFIT_STEPS,
        "rank1": value,
        "rule": "every infrared image of the 8 finds its person first",
        "holds": value == 1,
    }


def listed(raw: Path) -> list[dict[str, Any]]:
    """The training and validation images of a raw set in SYSU-MM01's layout, as lines of a manifest."""
    kinds = {camid: kind for kind, cameras in CAMERAS.items() for camid in cameras}
    return [
        {"path": str(path.relative_to(raw)), "pid": pid, "modality": kinds[camid], "camid": camid, "split": split}
        for split in ("train", "val")
        for pid in map(int, (raw / "exp" / f"{split}_id.txt").read_text().split(","))
        for camid in sorted(kinds)
        for path in sorted((raw / f"cam{camid}" / f"{pid:04d}").glob("*.jpg"))
    ]


def pack(rows: list[dict[str, Any]], raw: Path, out: Path) -> Path:
    """Pack a shard set of these lines, unless it exists. Raises InputError if `out` is a set of other lines."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    lines = out.with_name(f"{out.name}.csv")
    if (out / INDEX_FILE).exists():
        if not lines.exists() or lines.read_text() != text.getvalue():
            raise InputError(f"{out}: expected the set of this run and raw folder, got another's; give another --out")
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(lines, text.getvalue())
    manifest.pack(raw, out, lines)
    return out


def train(subject: Subject, shards: Path, run: Path, *settings: str) -> Path:
    """Train the subject's recipe on another set, and return the run's folder.

    Raises InputError if the folder is a run of another recipe, or if the training fails.
    """
    file = run.with_name(f"{run.name}.yaml")
    write_whole(file, dump_config(subject.config))
    values = [f"data.shards={shards}", "data.split=train", "train.start_from=null", *settings]
    values += ["evaluation.protocol=generic", "evaluation.split=val", "evaluation.directions=[infrared_to_visible]"]
    values += ["evaluation.gallery_draw=null"]
    training = Training(run, file, tuple(values))
    training.refuse_other_settings()
    if not training.finished():
        status = subprocess.run(training.command(1), check=False).returncode
        if status != 0:
            raise InputError(f"the training {run} failed with exit status {status}; see its output above")
    return run


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=to_path, nargs="+", required=True)
    parser.add_argument("--shards", type=to_path, required=True)
    parser.add_argument("--raw", type=to_path, required=True)
    parser.add_argument(
        "--out", type=to_path, required=True, help="folder for the sets and runs of the checks that train"
    )
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=CHECKS)
    parser.add_argument("--benchmark", choices=tuple(BENCHMARKS), default="plain_1")
    parser.add_argument(
        "--people", type=int, default=200, help="for the correspondence and the statistics before training"
    )
    parser.add_argument("--json", type=to_path)
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> dict[str, Any]:
    """The results of the chosen checks, by name."""
    benchmark, index = BENCHMARKS[args.benchmark], ShardIndex.open(args.shards)
    if args.people < 2:
        raise InputError(f"expected at least 2 in --people, for a spread, got {args.people}; raise it")
    others = {one.set_name for one in BENCHMARKS.values()} - {benchmark.set_name}
    if index.name in others:
        raise InputError(f"expected shards of {benchmark.set_name}, got {index.name}; name it with --benchmark")
    if not (args.raw / "exp" / "val_id.txt").is_file():
        raise InputError(f"expected a benchmark's raw folders at {args.raw}, found no exp/val_id.txt; synth makes them")
    subjects = [load_subject(run, index, benchmark, args.people) for run in args.run]
    out = args.out.resolve()
    todo = {
        "correspondence": lambda: correspondence(subjects, benchmark, args.people),
        "modality": lambda: modality(subjects, index),
        "shuffled": lambda: shuffled(subjects[0], index, args.raw, out),
        "overfit": lambda: overfit(subjects[0], args.raw, out),
    }
    return {name: todo[name]() for name in args.checks}


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    found = check(args)
    if args.json:
        facts = {
            "benchmark": args.benchmark,
            "set": ShardIndex.open(args.shards).name,
            "runs": [run.name for run in args.run],
        }
        content = {**facts, "commit": git_commit(), "environment": environment(1), "checks": found}
        write_json(args.json, content)
    for name, one in found.items():
        print(f"{name}: {'holds' if one['holds'] else 'DOES NOT HOLD'} ({one['rule']})")
        print(json.dumps({key: value for key, value in one.items() if key not in ("rule", "holds")}, indent=1))
    return 0 if all(one["holds"] for one in found.values()) else 1
