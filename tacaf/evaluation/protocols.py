"""`score`: features in, the score JSON of one protocol setting out. The protocols themselves are in `tables`."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.gallery import MULTI_SHOT_NOTE
from tacaf.evaluation.ranking import MEASURES, chance_rank1, measures
from tacaf.evaluation.trials import Setting, choose_setting, make_trials
from tacaf.vocabulary import InputError

# Facts about the model that a feature file does not carry; the caller gives what it knows.
CIRCUMSTANCES = ("split", "embedding", "embedding_width", "flip", "rerank", "trained_on", "seed", "versions")


def score(
    features: FeatureSet | Sequence[FeatureSet],
    protocol: str,
    mode: str | None = None,
    direction: str | None = None,
    shots: int = 1,
    gallery_draw: str | None = None,
    splits: Path | None = None,
    metric: str = "cosine",
    trials: int = 10,
    circumstances: Mapping[str, Any] | None = None,
    unique_ids: bool | None = None,
) -> dict[str, Any]:
    """Score features under a protocol: the score JSON of house §3, numbers as fractions, null where it does not apply.

    features: one set; for RegDB one per split, each from the model trained on that split. mode: `all_search` (default)
    or `indoor_search` under sysu_mm01. direction: `visible_to_infrared` or `infrared_to_visible` elsewhere.
    gallery_draw: `official` where the permutation file is found in `splits` (the .mat, its folder, or the folder above
    `exp`), else `literature`; with more than one shot that has no definition (`gallery.draw_literature`), says a note.
    trials: gallery draws; without a draw there is one trial per feature set. circumstances: what the features do not
    carry, keys of CIRCUMSTANCES. unique_ids: count each pid once in the CMC, where the protocol leaves that open.
    `std` is the sample standard deviation over trials, null for one trial. `queries`, `valid_queries` and `gallery` are
    lists where the trials differ in them. Raises InputError.
    """
    known = dict(circumstances or {})
    stray = set(known) - set(CIRCUMSTANCES)
    if stray:
        raise InputError(f"expected circumstances among {', '.join(CIRCUMSTANCES)}, got {min(stray)!r}; rename it")
    setting = choose_setting(protocol, mode, direction, shots, gallery_draw, splits, unique_ids)
    made = make_trials(features, setting, trials)
    ranks = [trial.rank(metric, setting.unique_pids) for trial in made]
    rows = [measures(one) for one in ranks]
    versions = {**_versions(), **(known.pop("versions", None) or {})}
    return {
        "protocol": protocol,
        "mode": setting.search_name if setting.protocol.selector == "mode" else None,
        "direction": setting.search.direction,
        "split": None,
        "shots": setting.shots,
        "gallery_draw": setting.gallery_draw,
        "gallery_draw_note": _draw_note(setting),
        "metric": metric,
        "unique_ids": setting.unique_pids,
        "exclusion": setting.protocol.exclusion.value,
        "embedding": None,
        "embedding_width": made[0].features.width,
        "flip": None,
        "rerank": None,
        "trained_on": None,
        "seed": None,
        **known,
        "trials": rows,
        "mean": {name: float(np.mean([row[name] for row in rows])) for name in MEASURES},
        "std": {name: _spread([row[name] for row in rows]) for name in MEASURES},
        "queries": _same([len(trial.query_rows) for trial in made]),
        "valid_queries": _same([int(np.count_nonzero(one.matches_Q)) for one in ranks]),
        "gallery": _same([len(trial.gallery_rows) for trial in made]),
        "chance_rank1": float(np.mean([chance_rank1(one) for one in ranks])),
        "versions": versions,
    }


def _draw_note(setting: Setting) -> str | None:
    multi_shot = setting.gallery_draw == "literature" and setting.shots is not None and setting.shots > 1
    return MULTI_SHOT_NOTE if multi_shot else None


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("tacaf", "numpy", "scipy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _spread(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _same(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values
