"""The trials of a setting: the rows of queries and gallery, and what is left out of a query's list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tacaf.evaluation.check_features import check_cameras, refuse_twins, warnings_about
from tacaf.evaluation.features import LARGE_BYTES, FeatureSet, read_rows
from tacaf.evaluation.gallery_draws import draw_literature, draw_official, folders
from tacaf.evaluation.image_lists import ImageList
from tacaf.evaluation.protocols import Exclusion
from tacaf.evaluation.rank_streamed import rank_streamed
from tacaf.evaluation.ranking import Ranks, RankTask, rank_features
from tacaf.evaluation.rerank import Rerank, rank_reranked
from tacaf.evaluation.setting import TRIALS, Setting
from tacaf.vocabulary import InputError, Modality

MOST_TRIALS = 10_000


@dataclass(frozen=True)
class Trial:
    """Rows of one trial in its feature set, int64 [Q] and [G], each ascending or as drawn.

    exclusion: a key for each query and each gallery image; a gallery image with the query's key is left out of its
    list. None: nothing is left out. warnings: sentences about what makes the scores doubtful.
    """

    features: FeatureSet
    query_rows: np.ndarray
    gallery_rows: np.ndarray
    exclusion: tuple[np.ndarray, np.ndarray] | None
    warnings: tuple[str, ...] = ()

    def rank(self, metric: str, unique_pids: bool, rerank: Rerank | None = None, device: str = "cpu") -> Ranks:
        """The ranks of the trial's queries. A gallery of more than LARGE_BYTES is streamed, and so is any on a GPU."""
        f, q, g = self.features, self.query_rows, self.gallery_rows
        query_QD = read_rows(f.features, q)
        task = RankTask(
            query_pid=f.pid[q],
            gallery_pid=f.pid[g],
            metric=metric,
            unique_pids=unique_pids,
            exclusion=self.exclusion,
        )
        if rerank is not None:
            return rank_reranked(query_QD, read_rows(f.features, g), task, rerank)
        if device != "cpu" or len(g) * f.width * f.features.itemsize > LARGE_BYTES:
            return rank_streamed(query_QD, f.features, g, task, device)
        return rank_features(query_QD, read_rows(f.features, g), task)


def make_trials(features: FeatureSet | Sequence[FeatureSet], setting: Setting, trials: int = TRIALS) -> list[Trial]:
    """The trials of a setting: one per gallery draw, or per feature file, or a single one if nothing varies."""
    sets = [features] if isinstance(features, FeatureSet) else list(features)
    if len(sets) != 1 and not (sets and setting.protocol.one_file_per_split):
        raise InputError(f"expected one feature file under {setting.protocol.name}, got {len(sets)}; give one")
    if trials < 1:
        raise InputError(f"expected at least 1 trial, got {trials}; raise trials")
    if trials > MOST_TRIALS:
        raise InputError(f"expected at most {MOST_TRIALS} trials, got {trials}; lower trials")
    warnings = [warnings_about(one, setting.protocol) for one in sets]
    refuse_twins(sets)
    return [
        _make_trial(one, setting, draw, about)
        for one, about in zip(sets, warnings, strict=True)
        for draw in (range(trials) if setting.gallery_draw else range(1))
    ]


def _make_trial(features: FeatureSet, setting: Setting, draw: int, warnings: tuple[str, ...]) -> Trial:
    query_rows = _side(features, setting, setting.search.query, setting.query_list)
    gallery_rows = _side(features, setting, setting.search.gallery, setting.gallery_list)
    check_cameras(features, setting.protocol)
    cameras = setting.search.gallery_cameras
    if cameras is not None:
        gallery_rows = gallery_rows[np.isin(features.camid[gallery_rows], cameras)]
        if not gallery_rows.size:
            raise InputError(
                f"expected {setting.search.gallery} images of cameras {cameras} for {setting.search_name}, got none; "
                "check camid in the feature file"
            )
    if setting.gallery_draw is not None:
        gallery_rows = _draw(features, gallery_rows, setting, draw)
    exclusion = _exclusion(features, query_rows, gallery_rows, setting)
    return Trial(features, query_rows, gallery_rows, exclusion, warnings)


def _side(features: FeatureSet, setting: Setting, modality: Modality | None, listed: ImageList | None) -> np.ndarray:
    """The rows of the queries, or of the gallery before any draw."""
    if listed is not None:
        return listed.rows(features, modality)
    assert modality is not None, "direction listed has both lists"
    rows = np.flatnonzero(features.modality == modality.code)
    if not rows.size:
        raise InputError(
            f"expected {modality} images for {setting.search.direction}, got none among {len(features)} images; add "
            "them to the set, or choose another direction"
        )
    return rows


def _draw(features: FeatureSet, rows: np.ndarray, setting: Setting, draw: int) -> np.ndarray:
    """The gallery of draw 0, 1, ... among these rows."""
    gallery = folders(rows, features.pid, features.camid, features.number)
    shots = setting.shots or 1
    if setting.permutations is not None:
        return draw_official(gallery, features.number, setting.permutations, draw, shots)
    return draw_literature(gallery, draw, shots)


def _exclusion(
    features: FeatureSet, query_rows: np.ndarray, gallery_rows: np.ndarray, setting: Setting
) -> tuple[np.ndarray, np.ndarray] | None:
    """A key per query and gallery image; a gallery image with the query's key is left out of its list.

    The same image always has the same key, so under every rule a query image is left out of its own list.
    """
    if setting.exclusion is Exclusion.NONE:
        return (query_rows, gallery_rows) if np.isin(query_rows, gallery_rows).any() else None
    key = features.camid.copy()
    if setting.exclusion is Exclusion.LOCATION:
        if setting.protocol.open:
            _check_located(features, np.union1d(query_rows, gallery_rows), setting.locations)
        for camera, location in setting.locations.items():
            key[features.camid == camera] = location
    elif setting.exclusion is Exclusion.PID_AND_CAMERA:
        _, key = np.unique(np.stack([features.pid, features.camid], axis=1), axis=0, return_inverse=True)
    return key[query_rows], key[gallery_rows]


def _check_located(features: FeatureSet, rows: np.ndarray, locations: Mapping[int, int]) -> None:
    """Raise InputError if a camera has no location."""
    missing = np.setdiff1d(features.camid[rows], list(locations))
    if missing.size:
        raise InputError(
            f"expected a location for every camera, got none for camera {missing[0]}; add it to --locations as "
            f"{missing[0]}=LOCATION"
        )
