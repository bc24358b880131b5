"""launch/train.py on the fake GPU's graphs: python -m tests.train.graphed_training ARGUMENTS...

The engine and the model are on the CPU; streams and graphs are the fake GPU's. Says how many graphs were replayed.
"""

import contextlib
import sys

import torch

import launch.train
from perf.parts.fake_gpu import FakeGraph, fake_gpu


class CountedGraph(FakeGraph):
    replays = 0

    def replay(self) -> None:
        super().replay()
        CountedGraph.replays += 1


def main(argv: list[str]) -> int:
    prepare = launch.train.prepare_deepspeed
    with contextlib.ExitStack() as stack:

        def prepare_and_fake() -> None:
            prepare()  # which finds a CPU
            stack.enter_context(fake_gpu())
            torch.cuda.CUDAGraph = CountedGraph  # type: ignore[misc]

        launch.train.prepare_deepspeed = prepare_and_fake
        status = launch.train.main(argv)
    print(f"replays: {CountedGraph.replays}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
