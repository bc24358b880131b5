"""`tacaf COMMAND ...`, also as `python -m tacaf COMMAND ...`: every command of the project, from any folder.

    tacaf search --run RUN --gallery DIR --query DIR --html found.html

does what `python launch/search.py --run RUN ...` does. `main` below handles everything that is not a command: `--help`,
`--version`, and unknown words.
"""

from tacaf.commands import COMMANDS, run

if __name__ == "__main__":
    run()

import argparse
from collections.abc import Sequence

from tacaf import __version__
from tacaf.command import Parser, entry
from tacaf.files import shown
from tacaf.provenance import git_commit
from tacaf.vocabulary import InputError, did_you_mean


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = [f"  {name.ljust(width)}  {command.text}" for name, command in COMMANDS.items()]
    parser = Parser(
        prog="tacaf",
        usage="tacaf [--help] [--version] COMMAND ...",
        description="Train, score and use models for visible-infrared person re-identification.",
        epilog="\n".join(["commands:", *commands, "", "`tacaf COMMAND --help` prints the options of a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and the commit, and stop")
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND", help="one of the commands below, followed by its options"
    )
    return parser


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.version:
        print(f"tacaf {__version__}, commit {git_commit() or 'unknown'}")
        return 0
    command = args.words[0] if args.words else None
    got = "none" if command is None else repr(shown(command)[:60])
    advice = did_you_mean(command or "", COMMANDS) or "see `tacaf --help`"
    raise InputError(f"expected a command of {', '.join(COMMANDS)}, got {got}; {advice}")
