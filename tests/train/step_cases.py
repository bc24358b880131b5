"""Steps through DeepSpeed with a bad one among them, run by test_step.py in a process of its own.

    python -m tests.train.step_cases CASE-KIND-STAGE[-clipped] ...     # CASE: first, later or waits

first, later   the first or the second of three steps has an infinite loss: how far parameters moved in that step, and
               how far they are in the end from those of a run in which it had no update
waits          what the host would wait for on a GPU in the third step: values read or sent, whole synchronisations

Prints a JSON object a case.
"""

import json
import sys
from typing import Any
from unittest import mock

import torch
from deepspeed.accelerator import get_accelerator

from tacaf.interfaces import Batch, DrawnPairs
from tacaf.losses.total import TacafLoss
from tacaf.train.engine import prepare_deepspeed, whole_state
from tacaf.train.forward import forward
from tacaf.train.processes import start_distributed, stop_distributed
from tacaf.train.step import stacked
from tacaf.train.update import poisoned, update
from tests.fake_gpu import Operators
from tests.model.cases import pairs_of, tiny_batch
from tests.train.engine_cases import Run, State, config_of

STEPS = 3


class Stepper(Run):
    """A tiny model in an engine, step by step."""

    def __init__(self, kind: str, stage: int, *values: str) -> None:
        super().__init__(config_of(kind, stage, *values))
        self.criterion = TacafLoss(self.config.loss)

    def losses(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.criterion(forward(self.engine, batch, self.config), batch.label_B)

    def step(self, batch: Batch, factor: float = 1.0) -> torch.Tensor | None:
        """As the training makes one; the loss times `factor`."""
        loss, terms = self.losses(batch)
        loss = loss * factor
        figures_F = stacked(loss, terms)
        return update(self.engine, poisoned(loss, figures_F), clip_norm=self.config.optim.clip_norm)

    def state(self) -> State:
        return {name: tensor.clone() for name, tensor in whole_state(self.engine).items()}


def batch_of(step: int) -> Batch:
    batch = tiny_batch(seed=step)._replace(step=step)
    return batch._replace(pairs=DrawnPairs(pairs_of(batch, 3), pairs_of(batch, 4)))


def with_bad_step(kind: str, stage: int, bad: int, *values: str) -> dict[str, Any]:
    run, moved = Stepper(kind, stage, *values), 0.0
    for step in range(STEPS):
        before = run.state()
        norm = run.step(batch_of(step), float("inf") if step == bad else 1.0)
        assert norm is not None
        assert bool(norm.isfinite()) == (step != bad)
        if step == bad:
            moved = apart(before, run.state(), run)
    expected = Stepper(kind, stage, *values)
    for step in range(STEPS):
        if step == bad:
            with torch.no_grad():  # moves running statistics and nothing else
                expected.losses(batch_of(step))
        else:
            expected.step(batch_of(step))
    return {"moved": moved, "difference": apart(run.state(), expected.state(), run)}


def apart(one: State, other: State, run: Run) -> float:
    """The largest difference of any parameter; NaN counts as one."""
    learned = [name for name, _ in run.model.named_parameters()]
    return max(float((one[name] - other[name]).abs().nan_to_num(nan=float("inf")).max()) for name in learned)


def waits(kind: str, stage: int, *values: str) -> dict[str, Any]:
    """What the host would wait for in a step of the engine, from the forward pass to the optimiser's step."""
    run = Stepper(kind, stage, *values)
    for step in range(STEPS):
        batch = batch_of(step)
        with (
            Operators() as operators,
            mock.patch.object(get_accelerator(), "synchronize") as whole,
            mock.patch.object(torch, "tensor", wraps=torch.tensor) as sent,  # to a GPU, a copy that is waited for
        ):
            run.step(batch)
    return {"waiting": operators.waiting, "synchronized": whole.call_count, "sent": sent.call_count}


def main(cases: list[str]) -> None:
    torch.set_num_threads(1)
    start_distributed()
    prepare_deepspeed()
    for name in cases:
        case, kind, stage = name.split("-")[:3]
        values = ("optim.clip_norm=0.5",) if name.endswith("clipped") else ()
        if case == "waits":
            found = waits(kind, int(stage), *values)
        else:
            found = with_bad_step(kind, int(stage), 0 if case == "first" else 1, *values)
        print(json.dumps({"case": name, **found}), flush=True)
    stop_distributed()


if __name__ == "__main__":
    main(sys.argv[1:])
