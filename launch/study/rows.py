"""The rows of an ablation and their settings. A row name means the same in every command.

`full` is the configuration as it is. Every other row disables or changes something, and names the rows that it is
compared with.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tacaf.train.config import load_config
from tacaf.vocabulary import InputError


class Row(NamedTuple):
    """A row of the table."""

    name: str
    text: str  # its name in the table
    settings: tuple[str, ...]  # `key=value` each, overriding the configuration
    against: tuple[str, ...]  # the names of the rows that it is compared with


_NO_AUG = "data.plan.channel_augment=false"
_NO_IPCAM = "model.ipcam.enabled=false"
_NO_CMAAM = "model.cmaam.enabled=false"
_FULL = ("full",)
_ALL = (
    Row("baseline", "baseline", (_NO_AUG, _NO_IPCAM, _NO_CMAAM), ()),
    Row("aug", "+ channel augmentation", (_NO_IPCAM, _NO_CMAAM), ("baseline",)),
    Row("aug_ipcam", "+ augmentation + IPCAM", (_NO_CMAAM,), ("aug", "baseline")),
    Row("aug_cmaam", "+ augmentation + CMAAM", (_NO_IPCAM,), ("aug", "baseline")),
    Row("full", "full (augmentation + IPCAM + CMAAM)", (), ("baseline", "aug", "aug_ipcam", "aug_cmaam")),
    Row("ipcam", "+ IPCAM, no augmentation", (_NO_AUG, _NO_CMAAM), ("baseline",)),
    Row("cmaam", "+ CMAAM, no augmentation", (_NO_AUG, _NO_IPCAM), ("baseline",)),
    Row("both", "+ IPCAM + CMAAM, no augmentation", (_NO_AUG,), ("baseline", "full")),
    Row("no_ring", "full without the ring", ("model.ipcam.ring=false",), _FULL),
    Row("no_self", "full without the self-connection", ("model.ipcam.self_connection=false",), _FULL),
    Row("no_pair", "full without the pair stage", ("model.ipcam.pair_stage=false",), _FULL),
    Row("consistency", "full with identity consistency at 0.3", ("loss.ic=0.3", "model.cmaam.consistency=true"), _FULL),
    Row("no_consistency", "full without identity consistency", ("loss.ic=0", "model.cmaam.consistency=false"), _FULL),
    Row("norm_mask", "full, person mask by the norm", ("model.cmaam.mask=norm",), _FULL),
    Row("no_dense", "full without the dense triplet", ("loss.dt=0",), _FULL),
    Row("one_way", "full, visible anchors only", ("model.cmaam.direction=visible_to_infrared",), _FULL),
)
ROWS = {row.name: row for row in _ALL}
CORE = ("baseline", "aug", "aug_ipcam", "aug_cmaam", "full")


def choose_rows(names: Sequence[str], file: Path, settings: Sequence[str]) -> dict[str, Row]:
    """The rows with these names, in the order of `ROWS`. `core` means CORE, and `all` means `distinct_rows`.

    file, settings: the configuration that the rows change.
    """
    chosen = {*names, *(CORE if "core" in names else ()), *(distinct_rows(file, settings) if "all" in names else ())}
    return {name: row for name, row in ROWS.items() if name in chosen}


def distinct_rows(file: Path, settings: Sequence[str]) -> list[str]:
    """The names of the rows that differ from `full` with this configuration, and `full` itself.

    A row that the configuration refuses is left out, with a note on standard error.
    """

    def effective(row: Row) -> Mapping[str, Any]:
        return load_config(file, [*settings, *row.settings, "run=unused"]).effective()

    full = effective(ROWS["full"])
    same = set()
    for name, row in ROWS.items():
        try:
            if name != "full" and effective(row) == full:
                same.add(name)
        except InputError as error:
            print(f"row {name} left out: {error}", file=sys.stderr)
            same.add(name)
    if full.get("loss.ic") == 0:
        same.add("no_dense")  # CMAAM without any loss equals the row aug_ipcam
    return [name for name in ROWS if name not in same]


def varied_row(name: str, *settings: str) -> Row:
    """The row of this name with more settings, which its name includes, because run folders are named after rows."""
    if name not in ROWS or not settings or any("=" not in setting for setting in settings):
        raise InputError(
            f"expected --try ROW a.b=c ..., with ROW one of {', '.join(ROWS)}, got {' '.join((name, *settings))}"
        )
    for setting in settings:
        if setting.partition("=")[0] in ("run", "seed", "data.shards") or "/" in setting:
            raise InputError(
                "--try: expected settings other than run, seed and data.shards, and without a path, since they become"
                f" part of the row's name, got {setting}; use --seeds, --benchmarks, or --set for all rows"
            )
    usual = ROWS[name]
    text = f"{usual.text}, {', '.join(settings)}"
    return Row("+".join((name, *settings)), text, (*usual.settings, *settings), (name, *usual.against))
