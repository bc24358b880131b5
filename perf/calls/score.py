"""Trains to a score without DALI and DeepSpeed: python -m perf.calls.score --shards SHARDS --json FILE

Uses the project's model, losses, plan, augmentation, optimiser and evaluation in a plain loop, on images that were
decoded before (`images_on_device`). Trains with the kernels and with every op by its definition, with the same batches
and initial weights. Writes a row for every evaluation; seconds are those of the steps.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from perf.calls.images_on_device import ImagesOnDevice
from perf.calls.plan import SCORE_SETTINGS
from perf.calls.rows import RowsFile
from tacaf.child_processes import ROOT
from tacaf.command import Parser, entry, to_path
from tacaf.data.index import ShardIndex, select_training
from tacaf.data.plan import Plan
from tacaf.evaluation.extract import extract
from tacaf.evaluation.score import score_setting
from tacaf.evaluation.setting import Scoring
from tacaf.losses.total import TacafLoss
from tacaf.model.tacafnet import TacafNet
from tacaf.optim import build_optimizer, rate_factor, set_rates
from tacaf.train.config import Config, load_config
from tacaf.train.forward import forward
from tacaf.vocabulary import Modality

WAYS = {"kernels": "auto", "definitions": "reference"}  # way -> model.kernels


class Training:
    """One training, scored on identities that are not trained on."""

    def __init__(self, config: Config, index: ShardIndex, images: ImagesOnDevice, device: str) -> None:
        torch.manual_seed(config.seed)
        self.config, self.index, self.images, self.device = config, index, images, device
        training_set = select_training(index, config.data.split)
        self.plan = Plan(training_set, config.data.plan, config.seed)
        self.model = TacafNet(config.model, training_set.identities).to(device).train()
        parameters = (self.model.backbone_parameters(), self.model.new_parameters())
        self.optimizer = build_optimizer(config.optim, *parameters, config.data.plan.images_per_modality)
        self.criterion = TacafLoss(config.loss)

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast according to the configuration."""
        return torch.autocast(self.device, torch.bfloat16) if self.config.train.precision == "bf16" else nullcontext()

    def step(self, epoch: int, step: int) -> torch.Tensor:
        """Do one update. Returns its loss, on the device."""
        config, train = self.config, self.config.train
        set_rates(self.optimizer, rate_factor(config.optim, epoch, step, train.steps_per_epoch or 1, train.epochs))
        batch = self.images.batch(config, self.plan, epoch, step)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            loss = self.criterion(forward(self.model, batch, config), batch.label_B)[0]
        loss.backward()
        if config.optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def score(self, rows: np.ndarray) -> dict[str, float]:
        """rank-1 and mAP on these images under the configuration's protocol."""
        settings = self.config.evaluation

        def embed(images_BCHW: torch.Tensor, modality: Modality) -> torch.Tensor:
            with self.precision():
                return self.model.embed(images_BCHW, modality, settings.embedding)

        self.model.eval()
        features = extract(embed, self.images.whole(rows, settings.batch_size), self.index.columns, rows)
        self.model.train()
        result = score_setting(features, settings.setting(settings.asked()[0]), Scoring())
        return {"rank1": result.mean.rank1, "mAP": result.mean.mAP}


def epochs_of(training: Training, rows: np.ndarray, until: float) -> Iterator[dict[str, Any]]:
    """Train, and yield a row after every epoch, until the time is used up."""
    seconds, train = 0.0, training.config.train
    for epoch in range(train.epochs):
        began = time.perf_counter()
        for step in range(train.steps_per_epoch or 1):
            loss = training.step(epoch, step)
        value = loss.item()  # waits for the device
        seconds += time.perf_counter() - began
        done = (epoch + 1) * (train.steps_per_epoch or 1)
        yield {"step": done, "training_s": seconds, "step_ms": 1000 * seconds / done, "loss": value} | training.score(
            rows
        )
        if time.monotonic() > until:
            return


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=to_path, required=True)
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--limit-s", type=float, default=600, help="start no epoch after this many seconds")
    parser.add_argument("--small", action="store_true", help="the demo's model for two steps, for a rehearsal")
    args = parser.parse_args(argv)
    began, device = time.monotonic(), "cuda" if torch.cuda.is_available() else "cpu"
    name = "demo.yaml" if args.small else "sysu_mm01.yaml"
    short = ("train.epochs=1", "train.steps_per_epoch=2", "optim.warmup_epochs=0") if args.small else ()
    words = [f"data.shards={args.shards}", "run=unused", *SCORE_SETTINGS, *short]
    path = ROOT / "launch" / "configs" / name
    config = load_config(path, words)
    index = ShardIndex.open(args.shards)
    rows = index.rows_of(index.pids_of(config.evaluation.split))
    needed = np.concatenate([rows, index.rows_of(index.pids_of(config.data.split))])
    size = (config.data.augment.height, config.data.augment.width)
    images = ImagesOnDevice(index, needed, *size, device, os.cpu_count() or 1)
    file = RowsFile(args.json, images=len(images.rows), decoding_s=time.monotonic() - began, device=device)
    for place, (way, kernels) in enumerate(WAYS.items()):
        left_s = began + args.limit_s - time.monotonic()
        until = time.monotonic() + left_s / (len(WAYS) - place)
        torch.backends.cudnn.benchmark = True
        training = Training(load_config(path, [*words, f"model.kernels={kernels}"]), index, images, device)
        for row in epochs_of(training, rows, until):
            file.add(way=way, **row)
    file.write(complete=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
