"""Counts what a rank fetches from a server, with and without data lanes, from the plan alone, without images.

    python perf/data_lanes.py [--json FILE]

For every step of an epoch, the plan tells which shards the rank's cache should have, as it does for the reader. The
cache begins with the shards of the end of the previous epoch and contains only these shards, so the count is the most
that a rank with a cache of this size fetches. Each rank has a cache of its own: for a node of eight ranks, read the
line with an eighth as many ranks. The batches of a plan are the same on every number of ranks.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.data_lanes")

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tacaf.command import Parser, entry, to_path
from tacaf.data.index import TrainingSet
from tacaf.data.plan import Plan, PlanConfig
from tacaf.files import write_json
from tacaf.provenance import environment

IMAGE_BYTES = 25_000
SHARD_BYTES = 2**28
IDENTITIES = 5_000_000  # of ten images in each modality on average: 100 million images
BATCH = 4096  # identities
LANES = 512
WINDOW = 1024  # shards, in all lanes together
RANKS = (1, 8, 64, 512)
EPOCH = 1  # an epoch in the middle of a run
RANKS_TRIED = 4  # of each number of ranks, evenly spaced


class SizedSet(NamedTuple):
    """A training set without images, and the number of bytes of each shard."""

    training_set: TrainingSet
    bytes_N: np.ndarray


class Fetching(NamedTuple):
    """What ranks fetch in an epoch and keep in their caches, in GB (10^9 bytes); means are over the ranks tried."""

    ranks: int
    plan: str
    shown_gb: float  # images of the rank's batches, counted every time they are in a batch
    fetched_gb: float  # mean
    most_fetched_gb: float
    cache_gb: float  # the largest at any step and rank


def sized_set(identities: int, shard_bytes: int = SHARD_BYTES) -> SizedSet:
    """Identities of 2 to 18 images in each modality, 10 on average, packed in shards as `shards pack` cuts them."""
    counts_2I = np.random.default_rng(0).integers(2, 19, (2, identities))
    stop_2I = np.cumsum(counts_2I.T.ravel()).reshape(-1, 2).T
    bytes_I = counts_2I.sum(axis=0) * IMAGE_BYTES
    shard_I = ((np.cumsum(bytes_I) - bytes_I) // shard_bytes).astype(np.int32)
    no_cameras = np.broadcast_to(np.int16(0), int(counts_2I.sum()))
    training_set = TrainingSet(np.arange(identities), stop_2I - counts_2I, stop_2I, (), no_cameras, shard_I)
    return SizedSet(training_set, np.bincount(shard_I, weights=bytes_I))


def plans(batch: int, lanes: int, window: int) -> dict[str, PlanConfig]:
    """The plans that are compared, by name. `window` is in shards, of all lanes together."""
    return {
        "no lanes, windows": PlanConfig(identities_per_batch=batch, window_shards=window),
        "lanes, windows": PlanConfig(identities_per_batch=batch, lanes=lanes, window_shards=window // lanes),
        "lanes, no windows": PlanConfig(identities_per_batch=batch, lanes=lanes),
    }


def count(name: str, plan: Plan, bytes_N: np.ndarray, ranks: int) -> Fetching:
    """Count an epoch for the first, the last and some other ranks."""
    tried = np.unique(np.linspace(0, ranks - 1, RANKS_TRIED if plan.config.lanes > 1 else 1).astype(int)).tolist()
    found = [count_rank(plan, bytes_N, rank, ranks) for rank in tried]
    fetched = [fetched for fetched, _ in found]
    shown = 2 * plan.config.images_per_modality * plan.steps_per_epoch * IMAGE_BYTES / ranks
    return Fetching(
        ranks,
        name,
        shown / 1e9,
        float(np.mean(fetched)) / 1e9,
        max(fetched) / 1e9,
        max(held for _, held in found) / 1e9,
    )


def count_rank(plan: Plan, bytes_N: np.ndarray, rank: int, ranks: int) -> tuple[float, float]:
    """Bytes that one rank fetches in an epoch, and the most that its cache holds."""
    steps = plan.steps_per_epoch
    held = np.zeros(len(bytes_N), dtype=bool)
    held[plan.shards_ahead(EPOCH - 1, steps - 1, steps, rank, ranks)] = True
    fetched = largest = 0.0
    for step in range(steps):
        wanted = plan.shards_ahead(EPOCH, step, steps, rank, ranks)
        fetched += bytes_N[wanted[~held[wanted]]].sum()
        largest = max(largest, float(bytes_N[wanted].sum()))
        held[:] = False
        held[wanted] = True
    return float(fetched), largest


def table(rows: Sequence[Fetching]) -> str:
    """The rows as Markdown."""
    head = ("ranks", "plan", "shown, GB per rank", "fetched, GB per rank", "by all ranks, TB", "largest cache, GB")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        in_all = row.fetched_gb * row.ranks / 1000
        numbers = (f"{number:,.1f}" for number in (row.shown_gb, row.fetched_gb, in_all, row.cache_gb))
        lines.append(f"| {row.ranks} | {row.plan} | {' | '.join(numbers)} |")
    return "\n".join(lines)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=to_path)
    args = parser.parse_args(argv)
    training_set, bytes_N = sized_set(IDENTITIES)
    configs = plans(BATCH, LANES, WINDOW)
    rows = []
    for name, config in configs.items():
        plan = Plan(training_set, config, seed=0)
        rows += [count(name, plan, bytes_N, ranks) for ranks in RANKS]
    rows.sort(key=lambda row: row.ranks)
    case = {
        "identities": training_set.identities,
        "images": sum(training_set.images),
        "shards": len(bytes_N),
        "set_gb": float(bytes_N.sum()) / 1e9,
        "steps_per_epoch": plan.steps_per_epoch,
        "steps_per_cycle": plan.steps_per_cycle,
        "plans": {name: config.model_dump(mode="json") for name, config in configs.items()},
    }
    if args.json:
        result = {"environment": environment(1), "case": case, "rows": [row._asdict() for row in rows]}
        write_json(args.json, result)
    print(table(rows))
    return 0
