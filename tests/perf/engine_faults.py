"""What perf/calls/engine_step.py says of an engine with a fault: python -m tests.perf.engine_faults FAULT ...

none         as it is
doubled      gradients of twice the size, as those of two ranks that are added up and not averaged
no_decay     the optimiser decays no weight
no_momentum  the optimiser has no momentum
no_update    nothing is updated
rounding     no fault: the engine's images differ by a millionth, which stands for a GPU's other order of sums

Prints a JSON object for each fault and ZeRO stage.
"""

import json
import sys
from typing import Any
from unittest import mock

import torch

from perf.calls import engine_step
from tacaf.interfaces import Batch, ModelOutput
from tacaf.model.tacafnet import TacafNet
from tacaf.train.engine import build_engine, prepare_deepspeed
from tacaf.train.forward import forward
from tacaf.train.processes import start_distributed, stop_distributed
from tacaf.train.update import update

FAULTS = ("none", "doubled", "no_decay", "no_momentum", "no_update", "rounding")


def rows_with(fault: str, stage: int, device: torch.device) -> list[dict[str, Any]]:
    def faulty_engine(config: Any, model: Any, optimizer: torch.optim.Optimizer, images: int) -> Any:
        for group in optimizer.param_groups:
            if fault == "no_decay":
                group["weight_decay"] = 0.0
            if fault == "no_momentum":
                group["momentum"], group["nesterov"] = 0.0, False
            if fault == "no_update":
                group["lr"] = 0.0
        return build_engine(config, model, optimizer, images)

    def faulty_update(engine: Any, loss: torch.Tensor, *, clip_norm: float) -> Any:
        return update(engine, 2 * loss if fault == "doubled" else loss, clip_norm=clip_norm)

    def other_forward(model: Any, batch: Batch, config: Any) -> ModelOutput:
        if fault == "rounding" and not isinstance(model, TacafNet):
            noise = torch.randn(batch.images_BCHW.shape, generator=torch.Generator().manual_seed(1))
            batch = batch._replace(images_BCHW=batch.images_BCHW * (1 + 1e-6 * noise))
        return forward(model, batch, config)

    with (
        mock.patch.object(engine_step, "forward", other_forward),
        mock.patch.object(engine_step, "build_engine", faulty_engine),
        mock.patch.object(engine_step, "update", faulty_update),
    ):
        return engine_step.compare(stage, device)


def main(faults: list[str]) -> None:
    torch.set_num_threads(1)
    start_distributed()
    prepare_deepspeed()
    device = torch.device("cpu", 0)  # not equal to the CPU, as a GPU is
    for fault in faults:
        for stage in (0, 1):
            for row in rows_with(fault, stage, device):
                print(json.dumps({"fault": fault, **row}), flush=True)
    stop_distributed()


if __name__ == "__main__":
    main(sys.argv[1:])
