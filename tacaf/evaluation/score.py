"""`score`: the result of scoring features under one setting of a protocol. The protocols are in `protocols.py`."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from tacaf.evaluation.circumstances import Circumstances
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.gallery_draws import MULTI_SHOT_NOTE
from tacaf.evaluation.protocols import Exclusion
from tacaf.evaluation.ranking import MEASURES, chance_rank1, measures
from tacaf.evaluation.rerank import Rerank
from tacaf.evaluation.results import Measures, Result, Spreads
from tacaf.evaluation.setting import TRIALS, Choices, Scoring, Setting, choose_setting
from tacaf.evaluation.trials import Trial, make_trials
from tacaf.provenance import versions

PACKAGES = ("tacaf", "numpy", "scipy")  # that the scores of given features depend on
Features = FeatureSet | Sequence[FeatureSet]


def score(
    features: Features,
    protocol: str,
    *,
    metric: str = "cosine",
    trials: int = TRIALS,
    rerank: Rerank | None = None,
    device: str = "cpu",
    circumstances: Mapping[str, Any] | None = None,
    **choices: Unpack[Choices],
) -> Result:
    """Score features under a protocol: `score(features, "sysu_mm01", mode="indoor_search", shots=10)`.

    features: one set; for RegDB one per split, from the model that was trained on it. choices: see `Choices`; metric,
    trials, rerank, device: see `Scoring`; circumstances: facts that the features do not contain, by the names of
    `Circumstances`. Raises InputError for choices that the protocol does not have and features that do not fit it.
    """
    scoring = Scoring(metric=metric, trials=trials, rerank=rerank, device=device)
    known = Circumstances.of(circumstances)
    return score_setting(features, choose_setting(protocol, **choices), scoring, known)


def score_all(
    features: Features, settings: Sequence[Setting], scoring: Scoring, circumstances: Circumstances | None = None
) -> list[Result]:
    """One result for each setting."""
    return [score_setting(features, setting, scoring, circumstances) for setting in settings]


def score_setting(
    features: Features, setting: Setting, scoring: Scoring, circumstances: Circumstances | None = None
) -> Result:
    """Like `score`, with every choice made."""
    known = circumstances or Circumstances()
    made = make_trials(features, setting, scoring.trials)
    ranks = [trial.rank(scoring.metric, setting.unique_pids, scoring.rerank, scoring.device) for trial in made]
    rows = [measures(one) for one in ranks]
    return Result(
        protocol=setting.protocol.name,
        mode=setting.search_name if setting.protocol.selector == "mode" else None,
        direction=setting.search.direction,
        split=known.split,
        shots=setting.shots,
        gallery_draw=setting.gallery_draw,
        gallery_draw_note=_draw_note(setting),
        metric=scoring.metric,
        unique_ids=setting.unique_pids,
        exclusion=_exclusion(setting, made[0]),
        locations={str(camera): location for camera, location in setting.locations.items()} or None,
        query_list=None if setting.query_list is None else setting.query_list.facts_for_results,
        gallery_list=None if setting.gallery_list is None else setting.gallery_list.facts_for_results,
        embedding=known.embedding,
        embedding_width=known.embedding_width or made[0].features.width,
        part_weight=known.part_weight,
        flip=known.flip,
        rerank=scoring.rerank.facts if scoring.rerank else False,
        trained_on=known.trained_on,
        scored_on=known.scored_on,
        seed=known.seed,
        trials=[Measures(**row) for row in rows],
        mean=Measures(**{name: float(np.mean([row[name] for row in rows])) for name in MEASURES}),
        std=Spreads(**{name: _spread([row[name] for row in rows]) for name in MEASURES}),
        queries=_same([len(trial.query_rows) for trial in made]),
        valid_queries=_same([int(np.count_nonzero(one.matches_Q)) for one in ranks]),
        gallery=_same([len(trial.gallery_rows) for trial in made]),
        chance_rank1=float(np.mean([chance_rank1(one) for one in ranks])),
        warnings=list(dict.fromkeys(text for trial in made for text in trial.warnings)),
        versions={**versions(PACKAGES), **(known.versions or {})},
    )


def _exclusion(setting: Setting, trial: Trial) -> str:
    """The exclusion in words. Without a rule, a query image in the gallery is still left out of its own list."""
    itself = setting.exclusion is Exclusion.NONE and trial.exclusion is not None
    return "the query image itself" if itself else setting.exclusion.value


def _draw_note(setting: Setting) -> str | None:
    multi_shot = setting.gallery_draw == "literature" and setting.shots is not None and setting.shots > 1
    return MULTI_SHOT_NOTE if multi_shot else None


def _spread(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _same(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values
