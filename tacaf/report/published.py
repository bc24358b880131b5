"""Numbers from published papers (method §8), to be shown next to a result. None of them was measured here."""

from typing import NamedTuple

from tacaf.datasets import LLCM, REGDB, SYSU_MM01

NOT_MEASURED = (
    "No run on SYSU-MM01, RegDB or LLCM exists in this project: the data sets are licensed and were not at hand."
)
# The table's check marks name IPCAM in rows two to four; the third row is presumably CMAAM, the fourth both.
PAPER_TABLE_1 = (
    ("baseline", "50.00/52.65"),
    ("+ IPCAM", "54.84/56.77"),
    ("+ CMAAM (presumably)", "69.69/71.61"),
    ("+ both (presumably)", "77.08/80.61"),
)
LLCM_NOTE = (
    "LLCM's public program, for visible queries, searches all visible images with the drawn infrared ones; published"
    " visible-to-infrared figures may come from it, and are then not comparable with ours."
)
TABLE_1_NOTE = (
    "Table 1 of the TACAFNet paper (50.00/52.65, then 54.84/56.77, 69.69/71.61 and 77.08/80.61) contradicts its "
    "section 5.2 and looks like indoor search."
)


class Published(NamedTuple):
    """Rank-1/mAP in per cent, single shot, as printed; None if not listed here. Its fields are COLUMNS."""

    method: str
    sysu_all: str | None = None
    sysu_indoor: str | None = None
    regdb_visible_to_infrared: str | None = None
    regdb_infrared_to_visible: str | None = None
    # under LLCM's first program; see LLCM_NOTE
    llcm_visible_to_infrared: str | None = None
    llcm_infrared_to_visible: str | None = None


class Column(NamedTuple):
    """A search of a public data set, with its heading."""

    data_set: str
    search: str
    title: str


# By field of Published.
COLUMNS = {
    "sysu_all": Column(SYSU_MM01.name, "all_search", "SYSU-MM01 all"),
    "sysu_indoor": Column(SYSU_MM01.name, "indoor_search", "SYSU-MM01 indoor"),
    "regdb_visible_to_infrared": Column(REGDB.name, "visible_to_infrared", "RegDB visible→infrared"),
    "regdb_infrared_to_visible": Column(REGDB.name, "infrared_to_visible", "RegDB infrared→visible"),
    "llcm_visible_to_infrared": Column(LLCM.name, "visible_to_infrared", "LLCM visible→infrared"),
    "llcm_infrared_to_visible": Column(LLCM.name, "infrared_to_visible", "LLCM infrared→visible"),
}
assert ("method", *COLUMNS) == Published._fields


def field_of(data_set: str, search: str, shots: int | None) -> str | None:
    """The field of `Published` that corresponds to a result; None if no published figure was scored this way."""
    if shots not in (1, None):
        return None
    return next((name for name, column in COLUMNS.items() if column[:2] == (data_set, search)), None)


PUBLISHED = (
    Published("TACAFNet (section 5.2)", "75.98/70.55", "79.28/84.62", "92.05/89.23", "94.30/90.12"),
    Published("LbA", "55.4/54.1", None, None, None, "50.8/55.6", "43.8/53.1"),
    Published("CAJ", "69.9/66.9", "76.3/80.4", "85.0/79.1", "84.8/77.8", "56.5/59.8", "48.8/56.6"),
    Published("MPANet", "70.6/68.2", "76.7/81.0", "83.7/80.9", "82.8/80.7"),
    Published("DEEN", "74.7/71.8", "80.3/83.3", "91.1/85.1", "89.5/83.4", "62.5/65.8", "54.9/62.9"),
    Published("MUN", "76.2/73.8", "79.4/82.1", "95.2/87.2", "91.9/85.0"),
    Published("PartMix", "77.8/74.6", "81.5/84.4", "85.7/82.3", "84.9/82.5"),
    Published("PDM", "79.3/76.3", "88.7/89.8"),
    Published("MFEN", "80.9/76.6", "87.9/88.1"),
)
