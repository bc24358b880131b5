"""The plan of the GPU suite: the parts of each call, what they need, and the time they may take.

A part is one command, or several that run at the same time. An early part of a call may use the time that others leave,
but not the least time that later parts need.
"""

from dataclasses import dataclass, field

Command = tuple[str, ...]
# {out} is the folder of the parts' own files, {part} the part's name, {limit_s} the seconds
# it may take, {set} the folder of the set that call 4 trains on
JSON = ("--json", "{out}/{part}.json")
IN_TIME = ("--limit-s", "{limit_s}")


@dataclass(frozen=True)
class Part:
    """One part of a call.

    commands: modules with their arguments, run side by side.
    needs: packages that must be importable, or files of the source tree (with a slash).
    least_s, most_s: seconds kept for it from the parts before it, and seconds after which it is stopped.
    rehearsal: arguments added in a rehearsal, which make it small; only the first command is rehearsed.
    fake: whether a rehearsal runs it with the fake GPU; if not, it runs on the CPU.
    unless_passed: a part that measures the same better; if that part passed, this one is left out.
    """

    name: str
    commands: tuple[Command, ...]
    least_s: float
    most_s: float
    needs: tuple[str, ...] = ()
    rehearsal: Command = ()
    fake: bool = True
    unless_passed: str | None = None


@dataclass(frozen=True)
class Call:
    """One call: its purpose, its limit in seconds, its parts in order, and the packages it needs."""

    purpose: str
    limit_s: float
    parts: tuple[Part, ...]
    packages: tuple[str, ...] = field(default=())


TEST_PROCESSES = 12  # each compiles its own share of the kernels; the machine has 16 cores
DTYPES = ("bf16", "fp16", "fp32")
KERNELS = "perf.bench_kernels"
QUICK_KERNELS = ("--rehearse", "--images", "4", "--seconds", "0.001")
SMALL_KERNELS = (*QUICK_KERNELS, "--op", "gem_pyramid")
TRAIN = "perf.bench_train"
SMALL_TRAIN = ("--small", "--groups", "1", "--rounds", "1")
FAST = "whole, kernels, channels-last, fused, cudnn.benchmark"


def _kernels(images: int, least_s: float, most_s: float) -> Part:
    command = (KERNELS, "--images", str(images), *IN_TIME, *JSON)
    return Part(f"kernels_{images}", (command,), least_s, most_s, rehearsal=SMALL_KERNELS, fake=False)


def _op(op: str, images: int, least_s: float, most_s: float) -> Part:
    """One op, checked and timed at one number of images, which its cases must have."""
    command = (KERNELS, "--op", op, "--images", str(images), *IN_TIME, *JSON)
    return Part(op, (command,), least_s, most_s, rehearsal=QUICK_KERNELS, fake=False)


def _check(images: int, dtypes: tuple[str, ...], least_s: float, most_s: float) -> Part:
    commands = tuple(
        (
            KERNELS,
            "--check",
            "--images",
            str(images),
            "--dtype",
            dtype,
            *IN_TIME,
            "--json",
            f"{{out}}/{{part}}.{dtype}.json",
        )
        for dtype in dtypes
    )
    return Part(f"check_{images}", commands, least_s, most_s, rehearsal=SMALL_KERNELS, fake=False)


def _tests() -> Part:
    slices = range(TEST_PROCESSES)
    commands = tuple(
        ("perf.calls.kernel_tests", "--slice", f"{k}/{TEST_PROCESSES}", "--json", f"{{out}}/tests.{k}.json")
        for k in slices
    )
    return Part("tests", commands, 60, 110, needs=("pytest",), rehearsal=("--small",))


def _train(name: str, least_s: float, most_s: float, variants: Command, rehearsed: Command) -> Part:
    command = (TRAIN, "--rounds", "20", "--variants", *variants, *JSON)
    return Part(
        name, (command,), least_s, most_s, needs=("pydantic",), rehearsal=(*SMALL_TRAIN, "--variants", *rehearsed)
    )


def _data(device: str, *cores: str) -> Part:
    command = (
        "perf.bench_data",
        "--shards",
        "{set}/shards",
        "--device",
        device,
        "--repeats",
        "1",
        "--step-ms",
        "40",
        "--cores",
        *cores,
        *JSON,
    )
    small = ("--batches", "1", "--cores", "1", "--device", "cpu")
    return Part(f"data_{device}", (command,), 15, 50, needs=("pydantic", "nvidia.dali"), rehearsal=small, fake=False)


# A training of 1,000 steps from scratch, with the optimiser that the demo uses for that
SCORE_SETTINGS = (
    "data.split=train",
    "evaluation.split=val",
    "evaluation.every=1",
    "evaluation.modes=[all_search]",
    "evaluation.shots=[1]",
    "evaluation.gallery_draw=literature",
    "train.epochs=4",
    "train.steps_per_epoch=250",
    "optim.kind=adamw",
    "optim.new_rate=0.001",
    "optim.backbone_rate=0.001",
    "optim.scale_rate=false",
    "optim.clip_norm=1",
    "optim.schedule=one_cycle",
    "optim.warmup_epochs=1",
)
SETTINGS = tuple(word for setting in SCORE_SETTINGS for word in ("--set", setting))
# The slowest way and the fastest; a training with kernels and without a graph took 104 ms per step on an H200.
WAYS = ("--ways", "definitions", "graph")
ACCURACY = ("perf.bench_accuracy", "--shards", "{set}/shards", "--out", "{out}/{part}", *WAYS, *SETTINGS, *JSON)
SMALL_ACCURACY = (
    "--ways",
    "definitions",
    "kernels",
    "--config",
    "launch/configs/demo.yaml",
    "--set",
    "train.epochs=1",
    "--set",
    "train.steps_per_epoch=2",
    "--set",
    "optim.warmup_epochs=0",
    "--set",
    "data.threads=1",
)

CALLS = {
    1: Call(
        "correctness, ceilings, batch_norm and gem_pyramid",
        300,
        (
            Part("compile", (("perf.calls.compile_kernels", *JSON),), 0, 60, rehearsal=("--small",)),
            _tests(),
            _check(64, DTYPES, 35, 80),
            _op("batch_norm", 96, 40, 70),  # which has no case of another number of images
            _op("gem_pyramid", 64, 30, 50),
            Part("ceilings", (("perf.calls.ceilings", *JSON),), 10, 30, rehearsal=("--small",)),
            Part("graphs", (("perf.calls.graphs", *JSON),), 15, 30, rehearsal=("--small",)),
            _check(512, ("bf16",), 25, 60),
            Part("memcheck", (("perf.calls.memcheck", *JSON),), 25, 60, needs=("pytest",), rehearsal=("--small",)),
        ),
    ),
    2: Call(
        "kernels and tuning",
        560,
        (
            Part("compile", (("perf.calls.compile_kernels", *JSON),), 0, 60, rehearsal=("--small",)),
            _kernels(64, 90, 180),
            Part(
                "tune",
                (("perf.tune_alignment", *IN_TIME, *JSON),),
                100,
                200,
                needs=("perf/tune_alignment.py",),
                rehearsal=("--small",),
            ),
            _kernels(512, 60, 120),
            _kernels(96, 40, 90),
            Part(
                "kernel_times",
                ((KERNELS, "--images", "64", *IN_TIME, "--profile", "{out}/{part}.json"),),
                20,
                60,
                rehearsal=SMALL_KERNELS,
                fake=False,
            ),
        ),
    ),
    3: Call(
        "the training step",
        340,
        (
            # with the fused norm and the graphs of both; the compiled graph follows
            _train(
                "train", 60, 110, ("baseline*", "whole, definitions", "whole, kernels*"), ("baseline, kernels", FAST)
            ),
            _train("train_compiled", 160, 200, (FAST, "*compile*"), ("*compile*",)),
            Part(
                "engine",
                (("perf.calls.engine_step", *JSON),),
                35,
                60,
                needs=("pydantic", "deepspeed"),
                rehearsal=("--small",),
                fake=False,
            ),
            Part(
                "profile",
                (("perf.calls.profile_step", *JSON),),
                40,
                60,
                needs=("pydantic",),
                rehearsal=("--small", "--steps", "1"),
            ),
        ),
        packages=("pydantic", "deepspeed"),
    ),
    4: Call(
        "data on the GPU and a training to a score",
        560,
        (
            Part(
                "people",
                (("perf.calls.people", "--into", "{set}"),),
                20,
                90,
                needs=("pydantic",),
                rehearsal=("--small",),
                fake=False,
            ),
            Part(
                "data_difference",
                (("perf.calls.data_difference", "--shards", "{set}/shards", *JSON),),
                10,
                30,
                needs=("pydantic", "nvidia.dali"),
                fake=False,
            ),
            _data("cuda", "1", "4", "16"),
            _data("cpu", "16"),
            Part(
                "accuracy",
                (ACCURACY,),
                # both trainings and their scores; the one with kernels took 190 s on an H200, start included
                380,
                450,
                needs=("pydantic", "deepspeed", "nvidia.dali"),
                rehearsal=SMALL_ACCURACY,
                fake=False,
            ),
            Part(
                "score",
                (("perf.calls.score", "--shards", "{set}/shards", *IN_TIME, *JSON),),
                0,
                330,
                needs=("pydantic",),
                rehearsal=("--small",),
                fake=False,
                unless_passed="accuracy",
            ),
        ),
        packages=("pydantic", "deepspeed", "webdataset", "dali"),
    ),
}
