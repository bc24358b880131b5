"""Compares CMAAM's person masks of trained models with the silhouettes of known people.

    python perf/checks/person_masks.py --run RUN [RUN ...] [--benchmark plain_1] [--people 100] [--json FILE]

The people are procedural, in no benchmark, and recorded by a benchmark's cameras without occlusion, so the share of
person in every cell of a map is known. The figure is the probability that a cell that is mostly person has a higher
mask value than one that is not (area under the ROC curve, mean over images): at 0.5 the mask is uninformative, below
that it prefers the background.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.checks.person_masks")

import argparse
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F

from perf.checks.known_people import CAMERAS, pictures
from shards.pedestrians.benchmarks import BENCHMARKS, Benchmark
from tacaf.command import Parser, entry, to_path
from tacaf.files import write_json
from tacaf.model.cmaam import MaskKind, person_mask
from tacaf.model.correspondence import LAYERS, layer_maps
from tacaf.model.pooling import rows_BHWC
from tacaf.provenance import environment
from tacaf.search.embedder import Embedder
from tacaf.vocabulary import InputError, Modality


def ranked_above(mask_L: torch.Tensor, is_person_L: torch.Tensor) -> float | None:
    """The probability that a person's cell has the higher mask value; ties count half. None if a kind is missing."""
    person, other = mask_L[is_person_L][:, None], mask_L[~is_person_L][None, :]
    if not person.numel() or not other.numel():
        return None
    return float(((person > other).float() + 0.5 * (person == other).float()).mean())


def measure(embedder: Embedder, benchmark: Benchmark, people: int) -> dict[str, Any]:
    """Modality -> layer -> kind of mask -> mean over one image of each person."""
    assert embedder.model is not None
    found: dict[str, Any] = {}
    for modality in CAMERAS:
        known = pictures(benchmark, modality, people)
        images_BCHW = torch.stack([embedder.read(pixels_HWC, modality) for pixels_HWC, _ in known])
        for layer, maps_BCHW in layer_maps(embedder.model, images_BCHW, modality).items():
            cells = (maps_BCHW.shape[2], maps_BCHW.shape[3])
            shares = [F.adaptive_avg_pool2d(torch.from_numpy(cut_HW)[None], cells) for _, cut_HW in known]
            is_person_BL = torch.stack(shares).flatten(1) > 0.5
            features_BLC = rows_BHWC(maps_BCHW).flatten(1, 2)
            visible = people if modality is Modality.VISIBLE else 0
            for kind in get_args(MaskKind):
                mask_BL = person_mask(features_BLC, visible, kind)
                values = [ranked_above(*one) for one in zip(mask_BL, is_person_BL, strict=True)]
                mean = float(np.mean([value for value in values if value is not None]))
                found.setdefault(str(modality), {}).setdefault(f"layer {layer}", {})[kind] = mean
    return found


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=to_path, nargs="+", required=True, help="finished runs of launch/train.py")
    parser.add_argument("--benchmark", choices=tuple(BENCHMARKS), default="plain_1")
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--json", type=to_path)
    args = parser.parse_args(argv)
    benchmark = BENCHMARKS[args.benchmark]
    runs = []
    if args.people < 2:
        raise InputError(f"expected --people of at least 2, got {args.people}; raise it")
    for run in args.run:
        embedder = Embedder.load(run)
        masks = measure(embedder, benchmark, args.people)
        runs.append({"run": run.name, "trained_on": embedder.card.trained_on, "masks": masks})
    if args.json:
        content = {
            "environment": environment(1),
            "benchmark": benchmark.set_name,
            "people": args.people,
            "runs": runs,
        }
        write_json(args.json, content)
    for one in runs:
        print(one["run"])
        for modality, layers in one["masks"].items():
            for layer in LAYERS:
                kinds = layers[f"layer {layer}"]
                print(f"  {modality:9} layer {layer}  " + "  ".join(f"{kind} {kinds[kind]:.2f}" for kind in kinds))
    return 0
