"""The kernel benchmark at small shapes, for a rehearsal: takes the arguments of perf/bench_kernels.py."""

import sys

from perf import bench_kernels, cases

LENGTH, CHANNELS = 9, 16


def small_cases(_: str) -> list[cases.Case]:
    """Every op once, for each number of images that the suite asks for; the images themselves are few."""
    built = [
        build(4, LENGTH, CHANNELS) for build in (cases.soft_align_case, cases.align_distance_case, cases.both_case)
    ]
    return [*built, cases.gem_pyramid_case(2), cases.ring_aggregate_case(2)]


def without(argv: list[str], option: str) -> list[str]:
    """The arguments without an option and its value."""
    place = argv.index(option) if option in argv else len(argv)
    return argv[:place] + argv[place + 2 :]


def main(argv: list[str] | None = None) -> int:
    bench_kernels.cases = small_cases  # its real shapes take minutes on a CPU
    words = without(sys.argv[1:] if argv is None else argv, "--images")
    return bench_kernels.main([*words, *([] if "--check" in words else ["--seconds", "0"])])


if __name__ == "__main__":
    sys.exit(main())
