"""Choosing the setting of a protocol: the user's choices and defaults, with contradictory choices refused."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from tacaf.evaluation.gallery_draws import PERMUTATIONS_FILE, find_permutations, load_permutations
from tacaf.evaluation.image_lists import ImageList
from tacaf.evaluation.protocols import LISTED, PROTOCOLS, Exclusion, Protocol, Search
from tacaf.evaluation.rerank import Rerank
from tacaf.files import shown
from tacaf.vocabulary import InputError

TRIALS = 10  # gallery draws, as the authors of SYSU-MM01 make


class Choices(TypedDict, total=False):
    """What a protocol leaves to the user. A choice that is None or missing has the protocol's default.

    mode: `all_search` or `indoor_search` under sysu_mm01. direction: `visible_to_infrared` or `infrared_to_visible`
    elsewhere; under generic also `visible_to_visible`, `infrared_to_infrared`, or `listed`, the default with both a
    query list and a gallery list. shots: gallery images of each identity and camera. gallery_draw: `official` if the
    authors' permutations are found in `splits` (the .mat, its folder, or the folder that contains `exp`), otherwise
    `literature`, which is not defined for more than one shot; a note in the result says so. unique_ids: count each
    identity once in rank-k, if the protocol leaves that open.

    Under generic only: exclude, `none`, `camera`, `location` (with locations, camid to location) or `pid_and_camera`;
    query_list and gallery_list, files of image keys (`image_lists`), which restrict the direction's images.
    """

    mode: str | None
    direction: str | None
    shots: int
    gallery_draw: str | None
    splits: Path | None
    unique_ids: bool | None
    exclude: str | None
    locations: Mapping[int, int] | None
    query_list: Path | None
    gallery_list: Path | None


@dataclass(frozen=True)
class Setting:
    """A protocol with every choice made. `shots` and `gallery_draw` are None if the gallery is not drawn."""

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


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How features are compared under any protocol. device: `cuda` multiplies on the GPU (`rank_streamed`)."""

    metric: str = "cosine"
    trials: int = TRIALS  # gallery draws; without a draw there is one trial per feature set
    rerank: Rerank | None = None
    device: str = "cpu"


def choose_setting(protocol: str, *, read: bool = True, **choices: Unpack[Choices]) -> Setting:
    """Fill in the defaults and read the named files. Raises InputError for choices that the protocol does not have.

    `read`: read the permutations and lists. Without it, only the choices are checked, and the files may be missing.
    """
    table = PROTOCOLS.get(protocol)
    if table is None:
        raise InputError(f"expected protocol {one_of(PROTOCOLS)}, got {protocol!r}; choose one of them")
    search = _choose_search(table, choices)
    shots, unique_ids = choices.get("shots", 1), choices.get("unique_ids")
    if shots not in (table.shots or (1,)):
        raise InputError(f"expected shots {one_of(table.shots or (1,))} under {protocol}, got {shots}; change shots")
    if unique_ids is not None and unique_ids != table.unique_pids and not table.unique_pids_optional:
        raise InputError(f"expected unique ids {table.unique_pids} under {protocol}, got {unique_ids}; leave it out")
    draw, path = _choose_draw(table, choices.get("gallery_draw"), choices.get("splits"), read)
    exclusion, locations = _choose_exclusion(table, choices.get("exclude"), choices.get("locations"))
    query_list, gallery_list = _choose_lists(table, search, choices)
    return Setting(
        protocol=table,
        search_name=search,
        shots=shots if table.draws else None,
        gallery_draw=draw,
        unique_pids=table.unique_pids if unique_ids is None else unique_ids,
        permutations=load_permutations(path) if read and path else None,
        exclusion=exclusion,
        locations=locations,
        query_list=ImageList.read(query_list) if read and query_list else None,
        gallery_list=ImageList.read(gallery_list) if read and gallery_list else None,
    )


def _choose_search(table: Protocol, choices: Choices) -> str:
    mode, direction = choices.get("mode"), choices.get("direction")
    if choices.get("query_list") and choices.get("gallery_list") and direction is None:
        direction = LISTED
    name = (mode if table.selector == "mode" else direction) or next(iter(table.searches))
    if name not in table.searches:
        raise InputError(
            f"expected {table.selector} {one_of(table.searches)} under {table.name}, got {name!r}; change it"
        )
    if table.selector != "mode" and mode is not None:
        raise InputError(f"expected no mode under {table.name}, got {mode!r}; leave it out")
    search = table.searches[name]
    if direction not in (None, search.direction):
        raise InputError(f"expected direction {search.direction} under {table.name}, got {direction!r}; leave it out")
    return name


def _choose_draw(
    table: Protocol, chosen: str | None, splits: Path | None, read: bool
) -> tuple[str | None, Path | None]:
    """The gallery draw and, for the official one, the file of the authors' permutations."""
    if chosen is not None and chosen not in table.draws:
        raise InputError(
            f"expected gallery draw {one_of(table.draws) or 'none'} under {table.name}, got {chosen!r}; change it"
        )
    if splits is not None and "official" not in table.draws:
        raise InputError(f"expected no splits under {table.name}, which has no official draw, got {shown(splits)}")
    if not table.draws:
        return None, None
    path = find_permutations(splits) if read else splits
    draw = chosen or ("official" if path else "literature")
    if draw != "official":
        return draw, None
    if path is None:
        raise InputError(
            f"expected {PERMUTATIONS_FILE} for the official draw, got no splits; give --splits with the folder that"
            " contains it (from the data set authors' evaluation program), or use the literature draw"
        )
    return draw, path


def _choose_exclusion(
    table: Protocol, chosen: str | None, locations: Mapping[int, int] | None
) -> tuple[Exclusion, Mapping[int, int]]:
    """The rule for what is left out of a query's list, and the cameras' locations."""
    if not table.open:
        if chosen is not None or locations:
            raise InputError(
                f"expected no --exclude and no --locations under {table.name}, which leaves out: "
                f"{table.exclusion.value}; leave them out, or use generic"
            )
        return table.exclusion, table.location_of_camera
    words = {exclusion.word: exclusion for exclusion in Exclusion}
    exclusion = table.exclusion if chosen is None else words.get(chosen)
    if exclusion is None:
        raise InputError(f"expected exclude {one_of(words)}, got {chosen!r}; choose one of them")
    if (exclusion is Exclusion.LOCATION) != bool(locations):
        raise InputError(
            f"expected --exclude location and the cameras' --locations together, got exclude {exclusion.word} and "
            f"{'locations' if locations else 'none'}; give both or neither"
        )
    return exclusion, dict(locations or {})


def _choose_lists(table: Protocol, search: str, choices: Choices) -> tuple[Path | None, Path | None]:
    """The files of the query list and of the gallery list."""
    query_list, gallery_list = choices.get("query_list"), choices.get("gallery_list")
    if not table.open and (query_list or gallery_list):
        raise InputError(f"expected no lists of images under {table.name}; leave them out, or use generic")
    if search == LISTED and not (query_list and gallery_list):
        raise InputError("expected a query list and a gallery list for direction listed; give both, or a direction")
    return query_list, gallery_list


def one_of(values: Iterable[object]) -> str:
    return " or ".join(str(value) for value in values)
