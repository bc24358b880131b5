"""The protocols as tables (method §7): queries, gallery, what is left out, how the gallery is drawn.

Scoring uses the fields of these tables and never depends on a protocol's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tacaf.datasets import LLCM, REGDB, SYSU_MM01, SYSU_MM01_INDOOR
from tacaf.vocabulary import Modality

LISTED = "listed"
VISIBLE, INFRARED = Modality.VISIBLE, Modality.INFRARED


class Exclusion(Enum):
    """Which gallery images are left out of a query's list."""

    NONE = "none"  # except the query image itself, if it is in the gallery
    CAMERA = "same camera"  # of any pid
    LOCATION = "same location"  # of any pid
    PID_AND_CAMERA = "same pid and camera"

    @property
    def word(self) -> str:
        """The word that users type."""
        return self.name.lower()


class Layout(Enum):
    """How a data set's cameras and modalities are related, which reveals features of another data set."""

    ANY = "any"
    ONE_A_MODALITY = "one camera a modality"
    SHARED = "cameras of both modalities"


@dataclass(frozen=True)
class Search:
    """Queries and gallery. Cameras None: every camera. Modalities None: lists of images determine them."""

    query: Modality | None
    gallery: Modality | None
    gallery_cameras: tuple[int, ...] | None = None

    @property
    def direction(self) -> str:
        return f"{self.query}_to_{self.gallery}" if self.query else LISTED

    @property
    def crosses(self) -> bool:
        """Whether queries and gallery have different modalities."""
        return self.query is not self.gallery


@dataclass(frozen=True)
class Protocol:
    """One row of method §7's table. The first search and the first draw are the defaults."""

    name: str
    selector: str  # what the searches are named by: "mode" or "direction"
    searches: Mapping[str, Search]
    exclusion: Exclusion
    unique_pids: bool  # each pid counts once in the CMC
    unique_pids_optional: bool = False
    draws: tuple[str, ...] = ()  # empty: every image is in the gallery
    shots: tuple[int, ...] = ()
    one_file_per_split: bool = False  # a trial is a split with its own model and feature file
    cameras: Mapping[Modality, tuple[int, ...]] = field(default_factory=dict)  # the data set's, to detect another one
    layout: Layout = Layout.ANY
    location_of_camera: Mapping[int, int] = field(default_factory=dict)  # cameras not named are their own location
    open: bool = False  # whether users choose the exclusion and lists of images

    @property
    def default_searches(self) -> tuple[str, ...]:
        """The searches that are scored by default: all from one modality to the other."""
        return tuple(name for name, search in self.searches.items() if search.crosses)


BOTH_DIRECTIONS = {
    "visible_to_infrared": Search(VISIBLE, INFRARED),
    "infrared_to_visible": Search(INFRARED, VISIBLE),
}
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name=SYSU_MM01.name,
            selector="mode",
            searches={
                "all_search": Search(INFRARED, VISIBLE, SYSU_MM01.cameras[VISIBLE]),
                "indoor_search": Search(INFRARED, VISIBLE, SYSU_MM01_INDOOR),
            },
            exclusion=Exclusion.LOCATION,
            unique_pids=True,
            draws=("official", "literature"),
            shots=(1, 10),
            cameras=SYSU_MM01.cameras,
            location_of_camera={
                camid: location for camid, location in SYSU_MM01.locations.items() if camid != location
            },
        ),
        Protocol(
            name=REGDB.name,
            selector="direction",
            searches=BOTH_DIRECTIONS,
            exclusion=Exclusion.NONE,
            unique_pids=False,
            unique_pids_optional=True,
            one_file_per_split=True,
            layout=Layout.ONE_A_MODALITY,
        ),
        Protocol(
            name=LLCM.name,
            selector="direction",
            searches=dict(reversed(BOTH_DIRECTIONS.items())),
            exclusion=Exclusion.PID_AND_CAMERA,
            unique_pids=True,
            draws=("literature",),
            shots=(1,),
            layout=Layout.SHARED,
        ),
        Protocol(
            name="generic",
            selector="direction",
            searches={
                **dict(reversed(BOTH_DIRECTIONS.items())),
                "visible_to_visible": Search(VISIBLE, VISIBLE),
                "infrared_to_infrared": Search(INFRARED, INFRARED),
                LISTED: Search(None, None),
            },
            exclusion=Exclusion.NONE,
            unique_pids=False,
            unique_pids_optional=True,
            open=True,
        ),
    )
}
