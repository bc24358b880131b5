"""From a protocol and the user's choices to trials: which rows ask, which answer, what is excluded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tacaf.evaluation import gallery as gallery_draws
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.ranking import Ranks, rank_features
from tacaf.evaluation.tables import PROTOCOLS, Exclusion, Protocol, Search
from tacaf.vocabulary import InputError, Modality


@dataclass(frozen=True)
class Setting:
    """A protocol with every choice made."""

    protocol: Protocol
    search_name: str
    shots: int | None
    gallery_draw: str | None
    unique_pids: bool
    permutations: np.ndarray | None = None

    @property
    def search(self) -> Search:
        return self.protocol.searches[self.search_name]


@dataclass(frozen=True)
class Trial:
    """Rows of one trial in its feature set, and the keys whose equality takes a gallery image out (None: none out)."""

    features: FeatureSet
    query_rows: np.ndarray
    gallery_rows: np.ndarray
    exclusion: tuple[np.ndarray, np.ndarray] | None

    def rank(self, metric: str, unique_pids: bool) -> Ranks:
        """Ranks of the trial's queries."""
        f, q, g = self.features, self.query_rows, self.gallery_rows
        return rank_features(f.features[q], f.features[g], f.pid[q], f.pid[g], metric, unique_pids, self.exclusion)


def choose_setting(
    protocol: str,
    mode: str | None = None,
    direction: str | None = None,
    shots: int = 1,
    gallery_draw: str | None = None,
    splits: Path | None = None,
    unique_ids: bool | None = None,
) -> Setting:
    """Fill in the defaults and refuse what the protocol does not define (InputError). Arguments as in `score`."""
    table = PROTOCOLS.get(protocol)
    if table is None:
        raise InputError(f"expected protocol {_one_of(PROTOCOLS)}, got {protocol!r}; choose one of them")
    search = _choose_search(table, mode, direction)
    if shots not in (table.shots or (1,)):
        raise InputError(f"expected shots {_one_of(table.shots or (1,))} under {protocol}, got {shots}; change shots")
    if unique_ids is not None and unique_ids != table.unique_pids and not table.unique_pids_optional:
        raise InputError(f"expected unique ids {table.unique_pids} under {protocol}, got {unique_ids}; leave it out")
    unique_pids = table.unique_pids if unique_ids is None else unique_ids
    if gallery_draw is not None and gallery_draw not in table.draws:
        raise InputError(
            f"expected gallery draw {_one_of(table.draws) or 'none'} under {protocol}, got {gallery_draw!r}; change it"
        )
    if not table.draws:
        return Setting(table, search, None, None, unique_pids)
    path = gallery_draws.find_permutations(splits) if "official" in table.draws else None
    draw = gallery_draw or ("official" if path else "literature")
    if draw != "official":
        return Setting(table, search, shots, draw, unique_pids)
    if path is None:
        raise InputError(
            f"expected {gallery_draws.PERMUTATIONS_FILE} for the official draw, got splits {splits}; give --splits "
            "with the folder that holds it (from the data set authors' evaluation program), or use the literature draw"
        )
    return Setting(table, search, shots, draw, unique_pids, gallery_draws.load_permutations(path))


def make_trials(features: FeatureSet | Sequence[FeatureSet], setting: Setting, trials: int = 10) -> list[Trial]:
    """The trials of a setting: one per gallery draw, or per feature file, or a single one where nothing varies."""
    sets = [features] if isinstance(features, FeatureSet) else list(features)
    if len(sets) != 1 and not (sets and setting.protocol.one_file_per_split):
        raise InputError(f"expected one feature file under {setting.protocol.name}, got {len(sets)}; give one")
    if trials < 1:
        raise InputError(f"expected at least 1 trial, got {trials}; raise trials")
    draws = range(trials) if setting.gallery_draw else range(1)
    return [_make_trial(one, setting, draw) for one in sets for draw in draws]


def _choose_search(table: Protocol, mode: str | None, direction: str | None) -> str:
    given = {"mode": mode, "direction": direction}
    name = given[table.selector] or next(iter(table.searches))
    if name not in table.searches:
        raise InputError(
            f"expected {table.selector} {_one_of(table.searches)} under {table.name}, got {name!r}; change it"
        )
    if table.selector != "mode" and mode is not None:
        raise InputError(f"expected no mode under {table.name}, got {mode!r}; leave it out")
    search = table.searches[name]
    if direction not in (None, search.direction):
        raise InputError(f"expected direction {search.direction} under {table.name}, got {direction!r}; leave it out")
    return name


def _make_trial(features: FeatureSet, setting: Setting, draw: int) -> Trial:
    features.check()
    search = setting.search
    for modality, cameras in setting.protocol.cameras.items():
        _check_cameras(features, setting.protocol.name, modality, cameras)
    query_rows = np.flatnonzero(features.modality == search.query.code)
    in_gallery = features.modality == search.gallery.code
    if search.gallery_cameras is not None:
        in_gallery &= np.isin(features.camid, search.gallery_cameras)
    gallery_rows = np.flatnonzero(in_gallery)
    if not gallery_rows.size:
        raise InputError(
            f"expected {search.gallery} images of cameras {search.gallery_cameras} for {setting.search_name}, got "
            "none; check camid in the feature file"
        )
    if setting.gallery_draw is not None:
        gallery_rows = _draw(features, gallery_rows, setting, draw)
    return Trial(features, query_rows, gallery_rows, _exclusion(features, query_rows, gallery_rows, setting.protocol))


def _draw(features: FeatureSet, rows: np.ndarray, setting: Setting, draw: int) -> np.ndarray:
    folders = gallery_draws.folders(rows, features.pid, features.camid, features.number)
    shots = setting.shots or 1
    if setting.permutations is not None:
        return gallery_draws.draw_official(folders, features.number, setting.permutations, draw, shots)
    return gallery_draws.draw_literature(folders, draw, shots)


def _exclusion(
    features: FeatureSet, query_rows: np.ndarray, gallery_rows: np.ndarray, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray] | None:
    """A key per image; a gallery image with the query's key is out of its list."""
    if protocol.exclusion is Exclusion.NONE:
        return None
    key = features.camid.copy()
    if protocol.exclusion is Exclusion.LOCATION:
        for camera, location in protocol.location_of_camera.items():
            key[features.camid == camera] = location
    else:
        _, key = np.unique(np.stack([features.pid, features.camid], axis=1), axis=0, return_inverse=True)
    return key[query_rows], key[gallery_rows]


def _check_cameras(features: FeatureSet, protocol: str, modality: Modality, cameras: tuple[int, ...]) -> None:
    wrong = (features.modality == modality.code) & ~np.isin(features.camid, cameras)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"expected {modality} images from cameras {_one_of(cameras)} under {protocol}, got camera "
            f"{features.camid[row]} in row {row}; check camid and modality, or use another protocol"
        )


def _one_of(values: Iterable) -> str:
    return " or ".join(str(value) for value in values)
