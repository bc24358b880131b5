"""From a protocol and the user's choices to trials: which rows ask, which answer, what is excluded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tacaf.evaluation import gallery_draws as gallery_draws
from tacaf.evaluation.features import LARGE_BYTES, FeatureSet, read_rows, same_features
from tacaf.evaluation.image_lists import ImageList
from tacaf.evaluation.protocols import LISTED, PROTOCOLS, Exclusion, Layout, Protocol, Search
from tacaf.evaluation.rank_streamed import rank_streamed
from tacaf.evaluation.ranking import Ranks, rank_features
from tacaf.evaluation.rerank import Rerank, rank_reranked
from tacaf.files import shown
from tacaf.vocabulary import InputError, Modality

MOST_TRIALS = 10_000


@dataclass(frozen=True)
class Setting:
    """A protocol with every choice made."""

    protocol: Protocol
    search_name: str
    shots: int | None
    gallery_draw: str | None
    unique_pids: bool
    permutations: np.ndarray | None = None
    exclusion: Exclusion = Exclusion.NONE
    locations: Mapping[int, int] = field(default_factory=dict)  # camid -> location
    query_list: ImageList | None = None
    gallery_list: ImageList | None = None

    @property
    def search(self) -> Search:
        return self.protocol.searches[self.search_name]


@dataclass(frozen=True)
class Trial:
    """Rows of one trial in its feature set, and the keys whose equality takes a gallery image out (None: none out).

    warnings: what makes its scores doubtful, a sentence each.
    """

    features: FeatureSet
    query_rows: np.ndarray
    gallery_rows: np.ndarray
    exclusion: tuple[np.ndarray, np.ndarray] | None
    warnings: tuple[str, ...] = ()

    def rank(self, metric: str, unique_pids: bool, rerank: Rerank | None = None, device: str = "cpu") -> Ranks:
        """Ranks of the trial's queries. A gallery of more than LARGE_BYTES is streamed, and so is any for a GPU."""
        f, q, g = self.features, self.query_rows, self.gallery_rows
        query_QD = read_rows(f.features, q)
        facts = (f.pid[q], f.pid[g], metric, unique_pids, self.exclusion)
        if rerank is not None:
            return rank_reranked(query_QD, read_rows(f.features, g), *facts, rerank)
        if device != "cpu" or len(g) * f.width * f.features.itemsize > LARGE_BYTES:
            return rank_streamed(query_QD, f.features, g, *facts, device)
        return rank_features(query_QD, read_rows(f.features, g), *facts)


def choose_setting(
    protocol: str,
    mode: str | None = None,
    direction: str | None = None,
    shots: int = 1,
    gallery_draw: str | None = None,
    splits: Path | None = None,
    unique_ids: bool | None = None,
    exclude: str | None = None,
    locations: Mapping[int, int] | None = None,
    query_list: Path | None = None,
    gallery_list: Path | None = None,
    read: bool = True,
) -> Setting:
    """Fill in the defaults and refuse what the protocol does not define (InputError). Arguments as in `score`.

    `read`: read the permutations and lists. Without it, only the choices are checked, and their files may be absent.
    """
    table = PROTOCOLS.get(protocol)
    if table is None:
        raise InputError(f"expected protocol {_one_of(PROTOCOLS)}, got {protocol!r}; choose one of them")
    if query_list and gallery_list and direction is None:
        direction = LISTED
    search = _choose_search(table, mode, direction)
    if shots not in (table.shots or (1,)):
        raise InputError(f"expected shots {_one_of(table.shots or (1,))} under {protocol}, got {shots}; change shots")
    if unique_ids is not None and unique_ids != table.unique_pids and not table.unique_pids_optional:
        raise InputError(f"expected unique ids {table.unique_pids} under {protocol}, got {unique_ids}; leave it out")
    draw, path = _choose_draw(table, gallery_draw, splits, read)
    permutations = gallery_draws.load_permutations(path) if read and path else None
    exclusion, places = _choose_exclusion(table, exclude, locations)
    return Setting(
        table,
        search,
        shots if table.draws else None,
        draw,
        table.unique_pids if unique_ids is None else unique_ids,
        permutations,
        exclusion,
        places,
        *_read_lists(table, search, query_list, gallery_list, read),
    )


def _choose_draw(table: Protocol, asked: str | None, splits: Path | None, read: bool) -> tuple[str | None, Path | None]:
    """The gallery draw and, for the official one, the file of the authors' permutations."""
    if asked is not None and asked not in table.draws:
        raise InputError(
            f"expected gallery draw {_one_of(table.draws) or 'none'} under {table.name}, got {asked!r}; change it"
        )
    if splits is not None and "official" not in table.draws:
        raise InputError(f"expected no splits under {table.name}, which has no official draw, got {shown(splits)}")
    if not table.draws:
        return None, None
    path = gallery_draws.find_permutations(splits) if read else splits
    draw = asked or ("official" if path else "literature")
    if draw != "official":
        return draw, None
    if path is None:
        raise InputError(
            f"expected {gallery_draws.PERMUTATIONS_FILE} for the official draw, got no splits; give --splits "
            "with the folder that holds it (from the data set authors' evaluation program), or use the literature draw"
        )
    return draw, path


def _choose_exclusion(
    table: Protocol, asked: str | None, locations: Mapping[int, int] | None
) -> tuple[Exclusion, Mapping[int, int]]:
    """What is left out of a query's list, and where the cameras stand."""
    if not table.open:
        if asked is not None or locations:
            raise InputError(
                f"expected no --exclude and no --locations under {table.name}, which leaves out: "
                f"{table.exclusion.value}; leave them out, or use generic"
            )
        return table.exclusion, table.location_of_camera
    words = {exclusion.word: exclusion for exclusion in Exclusion}
    exclusion = table.exclusion if asked is None else words.get(asked)
    if exclusion is None:
        raise InputError(f"expected exclude {_one_of(words)}, got {asked!r}; choose one of them")
    if (exclusion is Exclusion.LOCATION) != bool(locations):
        raise InputError(
            f"expected --exclude location and the cameras' --locations together, got exclude {exclusion.word} and "
            f"{'locations' if locations else 'none'}; give both or neither"
        )
    return exclusion, dict(locations or {})


def _read_lists(
    table: Protocol, search: str, query_list: Path | None, gallery_list: Path | None, read: bool
) -> tuple[ImageList | None, ImageList | None]:
    if not table.open and (query_list or gallery_list):
        raise InputError(f"expected no lists of images under {table.name}; leave them out, or use generic")
    if search == LISTED and not (query_list and gallery_list):
        raise InputError("expected a query list and a gallery list for direction listed; give both, or a direction")
    asking, answering = (ImageList.read(path) if read and path else None for path in (query_list, gallery_list))
    return asking, answering


def make_trials(features: FeatureSet | Sequence[FeatureSet], setting: Setting, trials: int = 10) -> list[Trial]:
    """The trials of a setting: one per gallery draw, or per feature file, or a single one where nothing varies."""
    sets = [features] if isinstance(features, FeatureSet) else list(features)
    if len(sets) != 1 and not (sets and setting.protocol.one_file_per_split):
        raise InputError(f"expected one feature file under {setting.protocol.name}, got {len(sets)}; give one")
    if trials < 1:
        raise InputError(f"expected at least 1 trial, got {trials}; raise trials")
    if trials > MOST_TRIALS:
        raise InputError(f"expected at most {MOST_TRIALS} trials, got {trials}; lower trials")
    draws = range(trials) if setting.gallery_draw else range(1)
    # zero_rows checks the sets, once: a large one is read for it
    warnings = [(*_about_zeros(one, one.zero_rows()), *_about_cameras(one, setting.protocol)) for one in sets]
    _refuse_twins(sets)
    return [
        replace(_make_trial(one, setting, draw), warnings=said)
        for one, said in zip(sets, warnings, strict=True)
        for draw in draws
    ]


def _about_zeros(features: FeatureSet, zero: np.ndarray) -> tuple[str, ...]:
    """A sentence if these rows are zero throughout."""
    if not zero.size:
        return ()
    row = int(zero[0])
    return (
        f"{zero.size} of {len(features)} images have features that are all zero (first row {row}: pid"
        f" {features.pid[row]}, camera {features.camid[row]}, number {features.number[row]}); where they stand in a"
        " list means nothing",
    )


def _refuse_twins(sets: Sequence[FeatureSet]) -> None:
    """InputError for the same features twice, whatever the order of their rows or their type: one split, not two."""
    for place, one in enumerate(sets):
        for other in range(place):
            if same_features(one, sets[other]):
                raise InputError(
                    f"expected one feature file a split, each of its own model, got the same features as number"
                    f" {other + 1} and number {place + 1}; leave one out"
                )


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
    query_rows = _side(features, setting, setting.search.query, setting.query_list)
    gallery_rows = _side(features, setting, setting.search.gallery, setting.gallery_list)
    for modality, own in setting.protocol.cameras.items():
        _check_cameras(features, setting.protocol.name, modality, own)
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
    return Trial(features, query_rows, gallery_rows, _exclusion(features, query_rows, gallery_rows, setting))


def _side(features: FeatureSet, setting: Setting, modality: Modality | None, listed: ImageList | None) -> np.ndarray:
    """The rows that ask, or answer, before any draw."""
    if listed is not None:
        return listed.rows(features, modality)
    assert modality is not None, "direction listed has both lists"
    rows = np.flatnonzero(features.modality == modality.code)
    if not rows.size:
        raise InputError(
            f"expected {modality} images for {setting.search.direction}, got no {modality} one among "
            f"{len(features)}; add them to the set, or choose another direction"
        )
    return rows


def _draw(features: FeatureSet, rows: np.ndarray, setting: Setting, draw: int) -> np.ndarray:
    folders = gallery_draws.folders(rows, features.pid, features.camid, features.number)
    shots = setting.shots or 1
    if setting.permutations is not None:
        return gallery_draws.draw_official(folders, features.number, setting.permutations, draw, shots)
    return gallery_draws.draw_literature(folders, draw, shots)


def _exclusion(
    features: FeatureSet, query_rows: np.ndarray, gallery_rows: np.ndarray, setting: Setting
) -> tuple[np.ndarray, np.ndarray] | None:
    """A key per image; a gallery image with the query's key is out of its list. An image has its own key always, so
    whatever is left out, no query finds itself.
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
    lost = np.setdiff1d(features.camid[rows], list(locations))
    if lost.size:
        raise InputError(
            f"expected a location for every camera, got none for camera {lost[0]}; add it to --locations as "
            f"{lost[0]}=LOCATION"
        )


def _check_cameras(features: FeatureSet, protocol: str, modality: Modality, cameras: tuple[int, ...]) -> None:
    wrong = (features.modality == modality.code) & ~np.isin(features.camid, cameras)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"expected {modality} images from cameras {_one_of(cameras)} under {protocol}, got camera "
            f"{features.camid[row]} in row {row}; check camid and modality, or use another protocol"
        )


def _about_cameras(features: FeatureSet, protocol: Protocol) -> tuple[str, ...]:
    """A sentence for a set whose cameras cannot be those of the protocol's data set, whatever their numbers."""
    visible, infrared = (
        np.unique(features.camid[features.modality == modality.code]).tolist()
        for modality in (Modality.VISIBLE, Modality.INFRARED)
    )
    if protocol.layout is Layout.ONE_A_MODALITY and max(len(visible), len(infrared)) > 1:
        wanted = "one camera a modality"
    elif protocol.layout is Layout.SHARED and visible and infrared and not set(visible) & set(infrared):
        wanted = "cameras of which each gives images of both modalities"
    else:
        return ()
    return (
        f"these features are not of the data set {protocol.name}, which has {wanted}: the visible images come from"
        f" cameras {_listed(visible)}, the infrared ones from {_listed(infrared)}; do not compare the figures with"
        f" results of {protocol.name}",
    )


def _listed(cameras: Sequence[int]) -> str:
    return ", ".join(map(str, cameras[:10])) + (", ..." if len(cameras) > 10 else "")


def _one_of(values: Iterable) -> str:
    return " or ".join(str(value) for value in values)
