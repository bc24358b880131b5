"""Training steps of a tiny model through DeepSpeed, run by test_update.py in a process of its own.

    python -m tests.train.engine_cases CASE-KIND-STAGE ...     # CASE: accumulate, fused, resume or split

Prints a JSON object a case: the largest difference of any tensor of the model's state in units of its bound, as
tests/tolerances.py sets it, and whether every bit is the same.
"""

import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tacaf.interfaces import Batch
from tacaf.losses.total import TacafLoss
from tacaf.model.classifier import ClassifierConfig
from tacaf.model.ranges import RangeClassifier
from tacaf.model.tacafnet import TacafNet
from tacaf.optim import build_optimizer, rate_factor, set_rates
from tacaf.train.config import Config, load_config
from tacaf.train.engine import build_engine, prepare_deepspeed, whole_state
from tacaf.train.forward import forward
from tacaf.train.processes import start_distributed, stop_distributed
from tacaf.train.ranges import Ranges
from tacaf.train.update import update
from tests.model.cases import tiny_batch, tiny_model
from tests.tolerances import ADAMW_SHARE, SHARE, State, worst_difference

DEMO = Path(__file__).parent.parent.parent / "launch" / "configs" / "demo.yaml"
SHARE_OF = {"sgd": SHARE, "adamw": ADAMW_SHARE}


def config_of(kind: str, stage: int, *values: str) -> Config:
    # The tiny model's own switches are the defaults, so the configuration need not describe it. Clipping would hide a
    # gradient of the wrong scale.
    return load_config(
        DEMO,
        [
            "run=unused",
            "data.shards=unused",
            f"optim.kind={kind}",
            "optim.clip_norm=0",
            f"deepspeed.zero_optimization.stage={stage}",
            "optim.scale_rate=false",
            "loss.ic=0.3",
            "optim.new_rate=0.01",
            "optim.backbone_rate=0.01",
            "train.steps_per_epoch=8",
            *values,
        ],
    )


class Run:
    """A tiny model, its optimiser and, but for the case by hand, the engine around them."""

    def __init__(self, config: Config, with_engine: bool = True) -> None:
        self.config, self.model = config, split_or_whole(config).train()
        self.optimizer = build_optimizer(
            config.optim, self.model.backbone_parameters(), self.model.new_parameters(), 32
        )
        self.ranges = Ranges.of_model(config, self.model, 32)
        self.engine: Any = build_engine(config, self.model, self.optimizer, 24) if with_engine else None

    def loss(self, batch: Batch) -> torch.Tensor:
        return TacafLoss(self.config.loss)(forward(self.engine or self.model, batch, self.config), batch.label_B)[0]

    def steps(self, first: int, last: int) -> State:
        for step in range(first, last):
            batch = tiny_batch(seed=step)._replace(step=step)
            if step % self.config.train.accumulate == 0:
                factor = rate_factor(self.config.optim, 0, step, 8, 2)
                set_rates(self.optimizer, factor)
                if self.ranges is not None:
                    set_rates(self.ranges.optimizer, factor)
            last = self.config.train.ends_update(step)
            update(self.engine, self.loss(batch), clip_norm=self.config.optim.clip_norm, last=last, ranges=self.ranges)
        return copy.deepcopy({**whole_state(self.engine), **weights_of_ranges(self.model)})


def weights_of_ranges(model: torch.nn.Module) -> State:
    """The weights of split classifiers by their names in a model whose classifiers are whole."""
    named = model.named_modules()
    return {f"{name}.0.weight": module.weight.detach() for name, module in named if isinstance(module, RangeClassifier)}


def split_or_whole(config: Config) -> TacafNet:
    """The tiny model. For the cases "split", the whole one begins with the weights of the split one (`begin_split`)."""
    if config.model.split:
        return tiny_model(classifier={"sharding": "identities"})
    model = tiny_model()
    if config.optim.clip_norm > 0:
        model.load_state_dict({**model.state_dict(), **begin_split()})
    return model


def begin_split() -> State:
    """The initial state of the split model, by the names of the whole one. Its other draws differ from that one's."""
    split = tiny_model(classifier={"sharding": "identities"})
    return {**split.state_dict(), **weights_of_ranges(split)}


def as_split(config: Config) -> Config:
    classifier = ClassifierConfig(sharding="identities")
    return config.model_copy(update={"model": config.model.model_copy(update={"classifier": classifier})})


def by_hand(config: Config) -> State:
    """One update from the mean of two batches' gradients, in plain PyTorch."""
    run = Run(config, with_engine=False)
    gradients = []
    for step in range(2):
        run.optimizer.zero_grad()
        run.loss(tiny_batch(seed=step)._replace(step=step)).backward()
        gradients.append([parameter.grad.clone() for parameter in run.model.parameters() if parameter.requires_grad])
    learning = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    for parameter, first, second in zip(learning, *gradients, strict=True):
        parameter.grad = (first + second) / 2
    set_rates(run.optimizer, rate_factor(config.optim, 0, 0, 8, 2))
    run.optimizer.step()
    return run.model.state_dict()


def resumed(config: Config) -> tuple[State, State]:
    """Four steps in one go, and the same with another engine that goes on from a checkpoint after two."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Run(config)
        whole.steps(0, 2)
        whole.engine.save_checkpoint(folder, tag="two")
        expected = whole.steps(2, 4)
        other = Run(config)
        other.engine.load_checkpoint(folder, tag="two")
        return expected, other.steps(2, 4)


def states_of(case: str, kind: str, stage: int) -> tuple[State, State]:
    if case == "accumulate":
        config = config_of(kind, stage, "train.accumulate=2")
        return by_hand(config), Run(config).steps(0, 2)
    if case == "fused":
        return tuple(Run(config_of(kind, stage, f"optim.fused={on}")).steps(0, 3) for on in ("false", "true"))  # type: ignore[return-value]
    if case == "split":
        config = config_of(kind, stage, "train.accumulate=2", "optim.clip_norm=1", "loss.label_smoothing=0.1")
        return Run(config).steps(0, 4), Run(as_split(config)).steps(0, 4)
    return resumed(config_of(kind, stage))


def main(cases: list[str]) -> None:
    torch.set_num_threads(1)
    start_distributed()
    prepare_deepspeed()
    start = {name: parameter.detach() for name, parameter in tiny_model().named_parameters()}
    for name in cases:
        case, kind, stage = name.split("-")
        expected, found = states_of(case, kind, int(stage))
        begin = {parameter: begin_split()[parameter] for parameter in start} if case == "split" else start
        ratio, tensor = worst_difference(begin, expected, found, SHARE_OF[kind])
        same_bits = all(value.equal(found[key]) for key, value in expected.items())
        print(json.dumps({"case": name, "in_bounds": ratio, "of": tensor, "same_bits": same_bits}), flush=True)
    stop_distributed()


if __name__ == "__main__":
    main(sys.argv[1:])
