"""Describes what CMAAM's person masks of trained models select, in the images of any set.

    python perf/checks/mask_contents.py --run RUN [RUN ...] --shards SET [--split val] [--identities 100] [--json FILE]

It is for images whose silhouettes are not known, or that show no person at all. All figures are rank correlations
(Spearman) over the cells of a map, means over images:

- brightness, contrast: of the mask with the mean and the deviation of the grey values in a cell;
- inside: of the mask with a cell's distance from the edge of the map;
- same, other: of an identity's mean mask in visible images with its own, or the next identity's, in infrared images. If
  `same` is not larger than `other`, the masks select a place in the map, and nothing that both sensors see.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.checks.mask_contents")

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

from tacaf.command import Parser, entry, to_path
from tacaf.data.index import ShardIndex
from tacaf.data.photo import prepare
from tacaf.data.reader import ShardReader
from tacaf.files import write_json
from tacaf.model.cmaam import MaskKind, person_mask
from tacaf.model.correspondence import layer_maps
from tacaf.model.pooling import rows_BHWC
from tacaf.provenance import environment
from tacaf.search.embedder import Embedder
from tacaf.vocabulary import InputError, Modality

FEWEST = 2  # identities, so that every one has another
BATCH = 64


def correlation(one_L: np.ndarray, other_L: np.ndarray) -> float:
    """Spearman's rank correlation; NaN if one of the two is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(one_L, other_L).statistic)


def cell_values(grey_BHW: torch.Tensor, height: int, width: int) -> dict[str, torch.Tensor]:
    """What is known of every cell of a map of this size without a model, each B x L."""
    grey_B1HW = grey_BHW[:, None]
    mean = F.adaptive_avg_pool2d(grey_B1HW, (height, width))
    square = F.adaptive_avg_pool2d(grey_B1HW.square(), (height, width))
    rows, columns = (torch.minimum(torch.arange(n), n - 1 - torch.arange(n)) for n in (height, width))
    inside = torch.minimum(rows[:, None], columns[None, :]).float().expand(len(grey_BHW), 1, height, width)
    values = {"brightness": mean, "contrast": (square - mean.square()).clamp_min(0).sqrt(), "inside": inside}
    return {name: value.flatten(1) for name, value in values.items()}


def choose(index: ShardIndex, split: str, most: int) -> dict[Modality, tuple[np.ndarray, np.ndarray]]:
    """Rows and pids of all images of the first `most` identities of the split that have both modalities."""
    columns, pids = index.columns, set(index.splits.get(split, ()))
    seen = [pids.intersection(columns["pid"][columns["modality"] == modality.code].tolist()) for modality in Modality]
    chosen = sorted(set.intersection(*seen))[:most]
    if len(chosen) < FEWEST:
        raise InputError(
            f"{index.name}, split {split!r}: expected at least {FEWEST} identities with images of both"
            f" modalities, got {len(chosen)}; choose another --split"
        )
    found = {}
    for modality in Modality:
        rows = np.flatnonzero((columns["modality"] == modality.code) & np.isin(columns["pid"], chosen))
        found[modality] = rows, columns["pid"][rows]
    return found


def measure(
    embedder: Embedder, reader: ShardReader, chosen: dict[Modality, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    """Layer -> kind of mask -> modality -> figure, and `same` and `other` beside the modalities."""
    assert embedder.model is not None
    found: dict[str, Any] = {}
    means: dict[tuple[str, str, Modality], np.ndarray] = {}
    for modality, (rows, pids) in chosen.items():
        pixels = [reader.pixels(int(row)) for row in rows]
        images_BCHW = torch.stack([prepare(each, embedder.height, embedder.width) for each in pixels])
        grey_BHW = images_BCHW.mean(1)
        parts = [layer_maps(embedder.model, part, modality) for part in images_BCHW.split(BATCH)]
        for layer in parts[0]:
            maps_BCHW = torch.cat([part[layer] for part in parts])
            cells = cell_values(grey_BHW, *maps_BCHW.shape[2:])
            features_BLC = rows_BHWC(maps_BCHW).flatten(1, 2)
            for kind in get_args(MaskKind):
                mask_BL = person_mask(features_BLC, len(rows) if modality is Modality.VISIBLE else 0, kind).numpy()
                figures = {
                    name: float(
                        np.nanmean([correlation(*pair) for pair in zip(mask_BL, value_BL.numpy(), strict=True)])
                    )
                    for name, value_BL in cells.items()
                }
                found.setdefault(f"layer {layer}", {}).setdefault(kind, {})[str(modality)] = figures
                means[f"layer {layer}", kind, modality] = np.stack(
                    [mask_BL[pids == pid].mean(0) for pid in np.unique(pids)]
                )
    for name, kinds in found.items():
        for kind, figures in kinds.items():
            visible_IL, infrared_IL = (means[name, kind, modality] for modality in Modality)
            pairs = {"same": infrared_IL, "other": np.roll(infrared_IL, -1, axis=0)}
            for which, other_IL in pairs.items():
                figures[which] = float(np.nanmean([correlation(*p) for p in zip(visible_IL, other_IL, strict=True)]))
    return found


def show(run: str, found: dict[str, Any]) -> str:
    """A line for each layer, kind of mask and modality."""
    lines = [run]
    for layer, kinds in found.items():
        for kind, figures in kinds.items():
            both = f"same {figures['same']:5.2f}  other {figures['other']:5.2f}"
            for modality in map(str, Modality):
                values = "  ".join(f"{name} {value:5.2f}" for name, value in figures[modality].items())
                lines.append(f"  {layer}  {kind:9}  {modality:8}  {values}  {both}")
    return "\n".join(lines)


def measure_run(run: Path, index: ShardIndex, split: str, most: int) -> dict[str, Any]:
    embedder = Embedder.load(run)
    masks = measure(embedder, ShardReader(index), choose(index, split, most))
    return {"run": run.name, "trained_on": embedder.card.trained_on, "masks": masks}


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=to_path, nargs="+", required=True, help="finished runs of launch/train.py")
    parser.add_argument("--shards", type=to_path, required=True, help="a packed set")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument("--identities", type=int, default=100, help="at most; default: %(default)s")
    parser.add_argument("--json", type=to_path)
    args = parser.parse_args(argv)
    if args.identities < FEWEST:
        raise InputError(f"expected --identities of at least {FEWEST}, got {args.identities}; raise it")
    index = ShardIndex.open(args.shards)
    runs = [measure_run(run, index, args.split, args.identities) for run in args.run]
    if args.json:
        facts = {"set": index.name, "split": args.split, "identities": args.identities}
        write_json(args.json, {"environment": environment(1), **facts, "runs": runs})
    print("\n".join(show(one["run"], one["masks"]) for one in runs))
    return 0
