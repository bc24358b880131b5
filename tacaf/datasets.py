"""Facts of the public data sets, each written once: cameras, locations, splits, and the published counts.

Sources: for SYSU-MM01, its README and evaluation program, and its rand_perm_cam.mat, from which the counts of images
were computed; for RegDB and LLCM, their papers and split files. Our synthetic sets have the same layouts, but not these
counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tacaf.vocabulary import Modality, Split


class ImageCount(NamedTuple):
    """How many images the published set has in these splits together. Modality None counts both modalities."""

    splits: tuple[str, ...]
    modality: Modality | None
    images: int


@dataclass(frozen=True)
class DataSet:
    """A public data set as its authors published it. Its protocol and its shard set have the same `name`."""

    name: str
    identities: Mapping[str, int]  # by split; for RegDB, in each of its numbered splits
    images: tuple[ImageCount, ...]
    cameras: Mapping[Modality, tuple[int, ...]] = field(default_factory=dict)  # empty if the set does not name them
    locations: Mapping[int, int] = field(default_factory=dict)  # camera -> location; empty if unknown
    numbered_splits: tuple[int, ...] = ()  # train_1 and test_1, ...; each needs its own model
    test_queries: int | None = None  # of every search of a test split; None if it depends on the search

    @property
    def modality_of_camera(self) -> dict[int, Modality]:
        """Camera -> modality, ascending by camera, for a set whose cameras see one modality each."""
        return dict(sorted((camid, modality) for modality, cameras in self.cameras.items() for camid in cameras))

    @property
    def training_identities(self) -> tuple[int, ...]:
        """The possible numbers of training identities: train and val together, or train alone."""
        train, val = self.identities["train"], self.identities.get("val")
        return (train + val, train) if val else (train,)


SYSU_MM01_QUERIES = 3_803  # infrared images of the test identities
SYSU_MM01_INDOOR = (1, 2)  # the visible cameras indoors
SYSU_MM01 = DataSet(
    name="sysu_mm01",
    identities={"train": 296, "val": 99, "test": 96},
    images=(
        ImageCount(("train", "val"), Modality.VISIBLE, 22_258),
        ImageCount(("train", "val"), Modality.INFRARED, 11_909),
        ImageCount(("test",), Modality.INFRARED, SYSU_MM01_QUERIES),
    ),
    cameras={Modality.VISIBLE: (1, 2, 4, 5), Modality.INFRARED: (3, 6)},
    locations={1: 1, 2: 2, 3: 2, 4: 4, 5: 5, 6: 6},  # cameras 2 and 3 look at the same room
    test_queries=SYSU_MM01_QUERIES,
)
REGDB = DataSet(
    name="regdb",
    identities={"train": 206, "test": 206},
    images=(
        ImageCount(("train", "test"), Modality.VISIBLE, 4_120),
        ImageCount(("train", "test"), Modality.INFRARED, 4_120),
    ),
    numbered_splits=tuple(range(1, 11)),
    test_queries=2_060,  # 206 identities with ten images of each modality
)
LLCM = DataSet(
    name="llcm",
    identities={"train": 713, "test": 351},
    images=(ImageCount(("train", "test"), None, 46_767),),
    cameras={  # every camera except 3 sees both modalities
        Modality.VISIBLE: tuple(range(1, 10)),
        Modality.INFRARED: (1, 2, 4, 5, 6, 7, 8, 9),
    },
)
PUBLIC = {data_set.name: data_set for data_set in (SYSU_MM01, REGDB, LLCM)}


def own_test_split(training_split: str) -> str:
    """The split that a model is scored on: test, or test_3 for a model of the numbered split train_3."""
    return training_split.replace("train", "test", 1) if training_split.startswith("train_") else Split.TEST.value
