"""What happens beside the steps: evaluation after an epoch; the model, the scores and the report at the end."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tacaf import distributed
from tacaf.data.index import ShardIndex
from tacaf.datasets import own_test_split
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.results import write_results
from tacaf.evaluation.score import score_all, score_setting
from tacaf.evaluation.text import result_tables
from tacaf.evaluation.trials import make_trials
from tacaf.files import shown, whole_path
from tacaf.model.file import MODEL, load_model
from tacaf.report.pictures import make_pictures
from tacaf.report.report import write_report
from tacaf.train import engine as deepspeed_engine
from tacaf.train.config import Config
from tacaf.train.engine import Place
from tacaf.train.leak import check_protocol, refuse_leak
from tacaf.train.new_model import save_model
from tacaf.train.run_log import Watcher
from tacaf.train.scoring import Extraction, circumstances_of, embed_identities
from tacaf.train.state import TrainState

BEST = "best.safetensors"


def scored_split(config: Config, index: ShardIndex) -> str:
    """The identities scored at the end: `evaluation.split`, or for a numbered split such as train_3 its own test_3."""
    own = own_test_split(config.data.split)
    name = config.evaluation.split if own == "test" else own
    index.pids_of(name)
    return name


def check_scoring(config: Config, index: ShardIndex) -> None:
    """InputError before the training for what could not be scored after it: split, cameras, gallery, validation."""
    check_protocol(index, config.evaluation.protocol)
    splits = [scored_split(config, index)] + (
        ["val"] if validates(config, index) or config.train.choose == "validation" else []
    )
    for split in splits:
        rows = index.rows_of(index.pids_of(split))
        columns = {name: np.asarray(index.columns[name][rows]) for name in ("pid", "camid", "modality", "number")}
        features = FeatureSet(np.arange(1, len(rows) + 1, dtype=np.float32)[:, None], **columns)
        settings = settings_for(config, split)
        for setting in settings.settings():
            make_trials(features, setting, 1)


def settings_for(config: Config, split: str) -> EvaluationConfig:
    """The evaluation settings; the authors' permutations, made for the test identities, serve no others."""
    settings = config.evaluation
    official = settings.setting(settings.asked()[0]).gallery_draw == "official"
    return settings.model_copy(update={"gallery_draw": "literature"}) if split == "val" and official else settings


def validates(config: Config, index: ShardIndex) -> bool:
    """Whether identities are held out to choose the model by."""
    return config.data.split == "train" and "val" in index.splits


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
    held_out = validates(config, index)
    state = state._replace(evaluated=state.epoch)
    # without held-out identities `finish` scores the last epoch's model on the same ones
    if not (held_out if last else due):
        return state
    split = "val" if held_out else scored_split(config, index)
    distributed.average_batchnorm_statistics(engine.module)
    extraction = Extraction.of(config.data.augment.height, config.data.augment.width, config.evaluation)
    model = deepspeed_engine.whole_model(engine, config)
    features, _ = embed_identities(model, index, index.pids_of(split), extraction, place, watcher.stop)
    settings = settings_for(config, split)
    result = score_setting(features, settings.setting(settings.asked()[0]), settings.scoring)
    watcher.evaluated(state, split, result)
    reached = result.mean[config.train.best_by]
    if split == "val" and reached > state.best:
        state = state._replace(best=reached, best_epoch=state.epoch)
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
            with whole_path(run / MODEL) as made:
                shutil.copyfile(run / BEST, made)
        else:
            save_model(run / MODEL, tensors, config, identities, index, f"last epoch ({state.epoch})")
    distributed.barrier()
    model, card = load_model(run / MODEL)
    split = scored_split(config, index)
    pids = index.pids_of(split)
    refuse_leak(index, card.trained_on, pids)
    extraction = Extraction.of(card.height, card.width, config.evaluation)
    features, rows = embed_identities(model.to(place.device), index, pids, extraction, place, watcher.stop)
    with distributed.together():
        if place.rank == 0:
            settings = settings_for(config, split)
            known = circumstances_of(card, split, extraction, index)
            results = score_all(features, settings.settings(), settings.scoring, known)
            watcher.evaluated(state, split, results[0])
            watcher.close()
            write_results(results, run / "results")
            features.save(run / "results" / "features.npz")
            pictures = make_pictures(
                features, rows, index, config.evaluation, config.seed, model.eval(), (card.height, card.width)
            )
            report = write_report(run, config.evaluation, pictures)
            print(result_tables(results))
            print(f"report: {shown(report)}")
