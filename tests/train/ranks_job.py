"""One rank of test_ranks.py's trainings: python tests/train/ranks_job.py train|regroup|nonfinite SHARDS OUT

train      five steps under every ZeRO stage; rank 0 saves losses and whole parameters; two ranks save checkpoints
regroup    in one process: every checkpoint of two ranks is loaded whole, saved, and made whole again
nonfinite  under every ZeRO stage an infinite gradient, then a finite one
"""

import filecmp
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from tacaf import distributed
from tacaf.data.config import ReadingConfig
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.data.training_pipeline import TrainingPipeline
from tacaf.data.training_source import TrainingSource
from tacaf.losses.total import TacafLoss
from tacaf.optim import build_optimizer
from tacaf.train.config import Config, load_config
from tacaf.train.engine import build_engine, prepare_deepspeed, whole_state
from tacaf.train.forward import forward
from tacaf.train.new_model import build_model
from tacaf.train.processes import Place, start_distributed, stop_distributed
from tacaf.train.regroup import load_regrouped, regrouped
from tacaf.train.saving import save
from tacaf.train.update import update

STEPS = 5
STAGES = (0, 1, 2, 3)
KINDS = {1: "adamw", 2: "sgd", 3: "adamw"}  # whose states are regrouped, by stage
SETTINGS = [
    "model.backbone={width: 8, blocks: [1, 1, 1, 1]}",
    "model.ipcam={node_width: 16, attention_width: 8, pair_width: 8}",
    "model.cmaam.consistency=true",  # all there is
    "loss.ic=0.3",
    "data.plan={identities_per_batch: 8, images_per_identity: 2}",
    "optim.clip_norm=0",  # clipping would hide a gradient of the wrong scale
    "optim.new_rate=2e-5",
    "optim.backbone_rate=2e-5",
]


def build(shards: str, stage: int, kind: str, place: Place) -> tuple[Config, Any, ShardIndex, Plan]:
    settings = [f"data.shards={shards}", "run=unused", f"optim.kind={kind}", *SETTINGS]
    config = load_config(Path("launch/configs/demo.yaml"), [*settings, f"deepspeed.zero_optimization.stage={stage}"])
    index = ShardIndex.open(config.data.shards, config.data.remote)
    plan = Plan(select_training(index, config.data.split), config.data.plan, config.seed)
    model, _ = build_model(config, plan.training_set.identities)
    optimizer = build_optimizer(
        config.optim, model.backbone_parameters(), model.new_parameters(), config.data.plan.images_per_modality
    )
    return config, build_engine(config, model, optimizer, plan.images // place.world_size), index, plan


def batches_of(config: Config, index: ShardIndex, plan: Plan, place: Place) -> TrainingPipeline:
    source = TrainingSource(plan, config.data.augment, STEPS, rank=place.rank, ranks=place.world_size)
    return TrainingPipeline(index, source, ReadingConfig(threads=1, prefetch=1))


def train(shards: str, out: Path, place: Place) -> None:
    found: dict[Any, dict] = {}
    saved = [(stage, kind) for stage, kind in KINDS.items() if kind == "adamw" and place.world_size == 2]
    for stage, kind in [(stage, "sgd") for stage in STAGES] + saved:
        config, engine, index, plan = build(shards, stage, kind, place)
        batches = batches_of(config, index, plan, place)
        criterion, steps = TacafLoss(config.loss), []
        if stage == 0:
            found["start"] = {name: value.detach().clone() for name, value in engine.module.named_parameters()}
        engine.module.train()
        for _ in range(STEPS):
            batch = next(batches)
            loss, terms = criterion(forward(engine, batch, config), batch.label_B)
            ranks = distributed.numbers_of_ranks([float(value) for value in (loss.detach(), *terms.values())])
            mean, *means = torch.tensor(ranks, dtype=torch.float64).mean(0).tolist()
            norm = update(engine, loss, clip_norm=0.0)
            steps.append({"loss": mean, "terms": dict(zip(terms, means, strict=True)), "gradient_norm": float(norm)})
        if place.world_size == 2 and (stage, kind) in KINDS.items():
            save(engine, out / f"{kind}-{stage}-2", STEPS, {"ranks": 2}, keep=1)
        distributed.average_batchnorm_statistics(engine.module)
        state = {name: tensor.clone() for name, tensor in whole_state(engine).items()}
        found[stage, kind] = {"steps": steps, "state": state}
    if place.rank == 0:
        torch.save(found, out / f"ranks-{place.world_size}.pt")


def nonfinite(shards: str, out: Path, place: Place) -> None:
    for stage in STAGES:
        config, engine, index, plan = build(shards, stage, "sgd", place)
        batches, criterion = batches_of(config, index, plan, place), TacafLoss(config.loss)
        engine.module.train()
        states = []
        for factor in (float("inf"), 1.0):
            states.append(parameters_of(engine))
            batch = next(batches)
            loss, _ = criterion(forward(engine, batch, config), batch.label_B)
            norm = update(engine, loss * factor, clip_norm=0.0)
            print(f"stage {stage}: loss times {factor}, norm finite: {norm.isfinite().item()}")
        states.append(parameters_of(engine))
        kept, moved = (any(not a.equal(b) for a, b in zip(*pair, strict=True)) for pair in pairwise(states))
        print(f"stage {stage}: moved by the infinite: {kept}, by the finite: {moved}")


def parameters_of(engine: Any) -> list[torch.Tensor]:
    whole = whole_state(engine)
    return [whole[name].clone() for name, _ in engine.module.named_parameters() if name in whole]


def regroup(shards: str, out: Path, place: Place) -> None:
    for stage, kind in KINDS.items():
        first = regrouped(out / f"{kind}-{stage}-2" / f"step-{STEPS:08d}", stage)
        _, engine, _, _ = build(shards, stage, kind, place)
        engine._config.load_universal_checkpoint = True
        hyper = [{**group, "params": None} for group in engine.optimizer.optimizer.param_groups]
        assert load_regrouped(engine, first)["facts"] == {"ranks": 2}
        assert [{**group, "params": None} for group in engine.optimizer.optimizer.param_groups] == hyper
        save(engine, out / f"{kind}-{stage}-again", STEPS, {"ranks": 1}, keep=1)
        second = regrouped(out / f"{kind}-{stage}-again" / f"step-{STEPS:08d}", stage)
        names = sorted(str(path.relative_to(first)) for path in (first / "zero").rglob("*.pt"))
        names = [name for name in names if "optimizer_state" not in name]
        assert len(names) > 100
        differing = [name for name in names if not same(first / name, second / name)]
        differing += [name for name, value in buffers_of(first).items() if not value.equal(buffers_of(second)[name])]
        print(f"stage {stage} {kind}: {len(names)} tensors, {len(differing)} differ: {differing[:3]}")


def buffers_of(folder: Path) -> dict[str, torch.Tensor]:
    module = torch.load(min(folder.glob("*model_states.pt")), weights_only=False)["module"]
    return {name: value for name, value in module.items() if "running" in name or "tracked" in name}


def same(first: Path, second: Path) -> bool:
    if filecmp.cmp(first, second, shallow=False):
        return True
    values = [torch.load(path, weights_only=False) for path in (first, second)]
    tensors = [value["param"] if isinstance(value, dict) else torch.as_tensor(value) for value in values]
    return torch.equal(*tensors)


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = start_distributed()
    prepare_deepspeed()
    {"train": train, "regroup": regroup, "nonfinite": nonfinite}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), here)
    stop_distributed()
