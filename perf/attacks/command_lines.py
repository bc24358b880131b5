"""The command lines to attack: valid ones for every command, and hostile values for their options."""

from pathlib import Path
from typing import NamedTuple

LONG = "x" * 5000
# Values for an option that names a file or folder to read.
UNREADABLE = (
    "",
    "/nowhere/at/all",
    "a\0b",
    LONG,
    f"/tmp/{'d/' * 3000}f",
    "/proc/self/mem",
    "/dev/null",
    "/etc/passwd",
    "~nobody-here/x",
    "\u202etxt.exe",
    "\udcff.bin",
    "-",
    "file:///etc/passwd",
    "{FOLDER}",
    "{EMPTY}",
    "{GARBAGE}",
    "{FIFO}",
)
# Values for an option that names a file to write.
UNWRITABLE = (
    "a\0b",
    LONG,
    "/proc/nothing/here",
    "/proc/here",
    "/dev/full",
    "{FOLDER}",
    "{EMPTY}/below",
    "/sys/x",
    "",
    "~nobody-here/x",
    "{FIFO}",
    f"{LONG}.png",
    "/proc/here.png",
    "/sys/x.png",
    "{EMPTY}/below.png",
)
NUMBERS = ("-1", "0", "1e9", "9" * 400, "nan", "inf", "", "x", "0x10", "1_0", "٣", "true")
WORDS = ("", "x", "../x", "a\0b", LONG, "\u202e", "None", "meta", "cuda:99")


class Command(NamedTuple):
    """One command with valid arguments, and the options to attack, by the kind of their value."""

    module: str
    words: tuple[str, ...]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


def commands(workshop: Path) -> list[Command]:
    """Every command for which the workshop has valid arguments."""
    run, packed, features = (str(workshop / name) for name in ("run", "set", "features/features.npz"))
    raw, out = str(workshop / "raw"), str(workshop / "out")
    lists = workshop / "lists"
    return [
        Command(
            "tacaf.evaluation.__main__",
            (
                "score",
                "--features",
                features,
                "--protocol",
                "generic",
                "--direction",
                "infrared_to_visible",
                "--json",
                f"{out}/score.json",
            ),
            reads=("--features", "--splits", "--query-list", "--gallery-list"),
            writes=("--json",),
            numbers=("--shots", "--trials"),
            choices=(
                "--protocol",
                "--mode",
                "--direction",
                "--metric",
                "--device",
                "--state",
                "--locations",
                "--exclude",
            ),
        ),
        Command(
            "launch.search",
            (
                "--run",
                run,
                "--gallery",
                f"{raw}/cam1",
                "--query",
                f"{raw}/cam3",
                "--json",
                f"{out}/search.json",
                "--html",
                f"{out}/search.html",
                "--index",
                f"{out}/people.index",
            ),
            reads=("--run", "--gallery", "--query"),
            writes=("--json", "--html", "--index"),
            numbers=("--top",),
            choices=("--device", "--embedding", "--engine", "--query-modality", "--remove"),
        ),
        Command(
            "launch.export",
            ("--run", run, "--to", "safetensors", "--out", f"{out}/export"),
            reads=("--run", "--images"),
            writes=("--out",),
            choices=("--to",),
        ),
        Command("launch.report", ("--run", run), reads=("--run", "--shards", "--features")),
        Command(
            "launch.evaluate",
            ("--run", run, "--shards", packed, "--protocol", "sysu_mm01", "--json", f"{out}/result.json"),
            reads=("--run", "--shards", "--splits"),
            writes=("--json", "--features"),
            numbers=("--batch-size",),
            choices=("--protocol", "--mode"),
        ),
        Command(
            "launch.train",
            ("--config", f"{run}/config.yaml", "--dry-run", "--show-batch", f"{out}/batch.png"),
            reads=("--config",),
            writes=("--show-batch",),
            choices=("--set",),
        ),
        Command("shards.__main__", ("verify", packed), reads=("",)),
        Command(
            "shards.__main__",
            ("inspect", packed, "--html", f"{out}/sheet.html"),
            reads=("",),
            writes=("--html",),
            numbers=("--identities",),
        ),
        Command(
            "shards.__main__",
            ("pack", "sysu_mm01", "--root", raw, "--out", f"{out}/packed", "--overwrite"),
            reads=("--root",),
            writes=("--out",),
            numbers=("--shard-mib", "--workers"),
        ),
        Command(
            "shards.__main__",
            (
                "pack",
                "manifest",
                "--root",
                str(lists),
                "--csv",
                f"{lists}/list.csv",
                "--out",
                f"{out}/listed",
                "--overwrite",
            ),
            reads=("--root", "--csv"),
            writes=("--out",),
            numbers=("--test-share", "--seed"),
            choices=("--name",),
        ),
        Command(
            "shards.__main__",
            ("synth", "--out", f"{out}/drawn", "--identities", "8"),
            writes=("--out",),
            numbers=("--identities", "--seed", "--height", "--images-per-camera"),
            choices=("--layout", "--benchmark"),
        ),
    ]
