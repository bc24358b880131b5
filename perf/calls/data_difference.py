"""Compares batches from DALI on GPU and CPU: python -m perf.calls.data_difference --shards SHARDS --json FILE

Plan, crops, flips, erasing and pairs must be the same. Pixels differ because the JPEG decoders and resizing differ; the
rows give these differences in levels of 255.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from perf.calls.rows import RowsFile
from tacaf.command import Parser, entry, to_path
from tacaf.data.augment import AugmentConfig
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan, PlanConfig
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.images import STD
from tacaf.interfaces import Batch

LEVELS = (0.5, 1.5, 2.5, 4.5, 8.5, 16.5)
MOST_DIFFERING = 0.01  # the share of numbers that may differ by more than 16 levels: edges, not other crops


def first_batch(index: ShardIndex, device_id: int | None, augment: AugmentConfig) -> Batch:
    """The first batch of a training on this device."""
    plan = Plan(select_training(index, "trainval"), PlanConfig(), seed=0)
    return next(iter(TrainingPipeline(index, TrainingSource(plan, augment), device_id=device_id)))


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=to_path, required=True)
    parser.add_argument("--json", type=to_path)
    args = parser.parse_args(argv)
    index, augment = ShardIndex.open(args.shards), AugmentConfig()
    device_id = 0 if torch.cuda.is_available() else None
    ours, theirs = first_batch(index, device_id, augment), first_batch(index, None, augment)
    scale = 255 * torch.from_numpy(STD).float().view(3, 1, 1)
    difference = (ours.images_BCHW.cpu() - theirs.images_BCHW).abs() * scale
    file = RowsFile(args.json, images=len(theirs.row_B), device_id=device_id)
    for level in LEVELS:
        file.add(levels=level, share_above=(difference > level).float().mean().item())
    file.add(levels="largest", share_above=difference.max().item())
    file.write(complete=True)
    same = all(
        torch.equal(getattr(ours, name).cpu(), getattr(theirs, name)) for name in ("row_B", "label_B", "position_B")
    )
    if not same or file.rows[len(LEVELS) - 1]["share_above"] > MOST_DIFFERING:
        raise SystemExit(f"expected the same batch on both devices, got another plan or pixels; same plan: {same}")
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
