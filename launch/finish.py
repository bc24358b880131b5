"""What happens beside the steps: evaluation after an epoch; the model, the scores and the report at the end."""

import shutil
from pathlib import Path
from typing import Any

from launch import engine as deepspeed_engine
from launch.config import Config
from launch.engine import Place
from launch.evaluate import circumstances_of, embed_identities, refuse_leak, score_settings, show, write_results
from launch.model_file import load_model, save_model
from launch.ranked import ranked_lists
from launch.state import TrainState, Watcher
from tacaf import distributed
from tacaf.data.index import ShardIndex
from tacaf.evaluation.report import write_report

BEST = "best.safetensors"
MODEL = "model.safetensors"


def scored_split(config: Config, index: ShardIndex) -> str:
    """The identities scored at the end: `test`, or for a numbered split such as train_3 its own test_3."""
    name = config.data.split.replace("train", "test") if config.data.split.startswith("train_") else "test"
    index.pids_of(name)  # an InputError now rather than after the training
    return name


def evaluate_epoch(
    config: Config,
    state: TrainState,
    engine: Any,
    index: ShardIndex,
    place: Place,
    run: Path,
    watcher: Watcher,
    identities: int,
) -> TrainState:
    """Score every so many epochs: held-out validation identities, else the test identities, to watch only."""
    due = config.evaluation.every and state.epoch % config.evaluation.every == 0
    last = state.epoch == config.train.epochs
    validates = config.data.split == "train" and len(index.pids_of("val")) > 0
    if not due and not (last and validates):
        return state
    if last and not validates:
        return state  # `finish` scores the same model on the same identities
    split = "val" if validates else scored_split(config, index)
    distributed.average_batchnorm_statistics(engine.module)
    size = (config.data.augment.height, config.data.augment.width)
    features, _ = embed_identities(engine.module, index, index.pids_of(split), *size, config.evaluation, place)
    settings = config.evaluation.model_copy(
        update={"modes": config.evaluation.modes[:1], "shots": config.evaluation.shots[:1]}
    )
    if split == "val":
        settings = settings.model_copy(
            update={"gallery_draw": "literature"}
        )  # the authors' permutations serve the test
    result = score_settings(features, config.evaluation.protocol, settings, {})[0]
    watcher.evaluated(state, split, result)
    if split == "val" and result["mean"]["mAP"] > state.best:
        state = state._replace(best=result["mean"]["mAP"], best_epoch=state.epoch)
        tensors = deepspeed_engine.whole_state(engine)
        if place.rank == 0:
            save_model(run / BEST, tensors, config, identities, index, f"validation, epoch {state.epoch}")
    return state


def finish(
    config: Config,
    state: TrainState,
    engine: Any,
    index: ShardIndex,
    place: Place,
    run: Path,
    watcher: Watcher,
    identities: int,
) -> None:
    """Write model.safetensors, score it by every setting of the config, write the report, print the table."""
    distributed.average_batchnorm_statistics(engine.module)
    tensors = deepspeed_engine.whole_state(engine)
    if place.rank == 0:
        if config.train.choose == "validation":
            shutil.copyfile(run / BEST, run / MODEL)
        else:
            save_model(run / MODEL, tensors, config, identities, index, f"last epoch ({state.epoch})")
    distributed.barrier()
    model, card = load_model(run / MODEL)
    split = scored_split(config, index)
    pids = index.pids_of(split)
    refuse_leak(index, card.trained_on, pids)
    features, rows = embed_identities(
        model.to(place.device), index, pids, card.height, card.width, config.evaluation, place
    )
    if place.rank == 0:
        results = score_settings(
            features, config.evaluation.protocol, config.evaluation, circumstances_of(config.evaluation, card, split)
        )
        watcher.evaluated(state, split, results[0])
        watcher.close()
        write_results(results, run / "results")
        features.save(run / "results" / "features.npz")
        report = write_report(run, ranked_lists(features, rows, index, config))
        print(show(results))
        print(f"report: {report}")
    distributed.barrier()
