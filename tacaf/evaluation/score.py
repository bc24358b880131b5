"""`score`: features in, the score JSON of one protocol setting out. The protocols themselves are in `tables`."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from tacaf.documents import Document, what_is_wrong
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.gallery_draws import MULTI_SHOT_NOTE
from tacaf.evaluation.protocols import Exclusion
from tacaf.evaluation.ranking import MEASURES, chance_rank1, measures
from tacaf.evaluation.rerank import Rerank
from tacaf.evaluation.trials import Setting, Trial, choose_setting, make_trials
from tacaf.vocabulary import InputError

Text = Annotated[str, Field(max_length=1000)]
Facts = dict[Text, Text | int | float | bool | None]
Origin = Text | Facts | Annotated[list[Facts], Field(min_length=1, max_length=1000)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Circumstances(Document):
    """Facts about the model that a feature file does not carry; the caller gives what it knows. A list: one a split."""

    split: Text | Whole | Annotated[list[Text], Field(min_length=1, max_length=1000)] | None = None
    embedding: Text | Whole | None = None
    embedding_width: Annotated[int, Field(ge=1, le=2**24)] | None = None
    flip: bool | None = None
    trained_on: Origin | None = None
    scored_on: Origin | None = None
    seed: Whole | Text | Annotated[list[Whole | None], Field(min_length=1, max_length=1000)] | None = None
    versions: dict[Text, Text | None] | None = None


CIRCUMSTANCES = tuple(Circumstances.model_fields)


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
    rerank: Rerank | None = None,
    exclude: str | None = None,
    locations: Mapping[int, int] | None = None,
    query_list: Path | None = None,
    gallery_list: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Score features under a protocol: the score JSON of house §3, numbers as fractions, null where it does not apply.

    features: one set; for RegDB one per split, each from the model trained on that split. mode: `all_search` (default)
    or `indoor_search` under sysu_mm01. direction: `visible_to_infrared` or `infrared_to_visible` elsewhere; under
    generic also `visible_to_visible`, `infrared_to_infrared`, or `listed`, which query_list and gallery_list stand for.
    gallery_draw: `official` where the permutation file is found in `splits` (the .mat, its folder, or the folder above
    `exp`), else `literature`; with more than one shot that has no definition (`gallery.draw_literature`), says a note.
    trials: gallery draws; without a draw there is one trial per feature set. circumstances: what the features do not
    carry, keys of CIRCUMSTANCES. unique_ids: count each pid once in the CMC, where the protocol leaves that open.
    rerank: re-rank by k-reciprocal neighbours (`rerank`). Under generic only: exclude, `none`, `camera`, `location`
    (with locations, camid to location) or `pid_and_camera`; query_list and gallery_list, files of image keys (`lists`),
    which narrow the direction's images. device: `cuda` multiplies on the GPU (`streaming`).
    `std` is the sample standard deviation over trials, null for one trial. `queries`, `valid_queries` and `gallery` are
    lists where the trials differ in them. `warnings`: sentences on what makes the scores doubtful. Raises InputError.
    """
    known = dict(circumstances or {})
    stray = set(known) - set(CIRCUMSTANCES)
    if stray:
        raise InputError(f"expected circumstances among {', '.join(CIRCUMSTANCES)}, got {min(stray)!r}; rename it")
    try:
        Circumstances.model_validate(known)
    except ValidationError as error:
        raise InputError(f"circumstances: {what_is_wrong(error)}") from None
    setting = choose_setting(
        protocol, mode, direction, shots, gallery_draw, splits, unique_ids, exclude, locations, query_list, gallery_list
    )
    made = make_trials(features, setting, trials)
    ranks = [trial.rank(metric, setting.unique_pids, rerank, device) for trial in made]
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
        "exclusion": _exclusion(setting, made[0]),
        "locations": {str(camera): place for camera, place in setting.locations.items()} or None,
        "query_list": setting.query_list and setting.query_list.facts_for_results,
        "gallery_list": setting.gallery_list and setting.gallery_list.facts_for_results,
        "embedding": None,
        "embedding_width": made[0].features.width,
        "flip": None,
        "rerank": rerank.facts if rerank else False,
        "trained_on": None,
        "scored_on": None,
        "seed": None,
        **known,
        "trials": rows,
        "mean": {name: float(np.mean([row[name] for row in rows])) for name in MEASURES},
        "std": {name: _spread([row[name] for row in rows]) for name in MEASURES},
        "queries": _same([len(trial.query_rows) for trial in made]),
        "valid_queries": _same([int(np.count_nonzero(one.matches_Q)) for one in ranks]),
        "gallery": _same([len(trial.gallery_rows) for trial in made]),
        "chance_rank1": float(np.mean([chance_rank1(one) for one in ranks])),
        "warnings": list(dict.fromkeys(text for trial in made for text in trial.warnings)),
        "versions": versions,
    }


def _exclusion(setting: Setting, trial: Trial) -> str:
    """In words; without a rule a query in the gallery still does not find itself."""
    itself = setting.exclusion is Exclusion.NONE and trial.exclusion is not None
    return "the query image itself" if itself else setting.exclusion.value


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
