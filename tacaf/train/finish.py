"""Evaluation after an epoch, and the end of a run: its model, scores and report."""

import shutil

import numpy as np

from tacaf import distributed
from tacaf.data.index import ShardIndex
from tacaf.datasets import own_test_split
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.results import write_results
from tacaf.evaluation.score import score_all, score_setting
from tacaf.evaluation.text import result_tables
from tacaf.evaluation.trials import make_trials
from tacaf.files import shown, whole_path
from tacaf.model.file import MODEL, load_model, write_model
from tacaf.report.pictures import ScoredImages, make_pictures
from tacaf.report.report import write_report
from tacaf.run_files import BEST_MODEL_FILE, FEATURES_FILE, RESULTS_FOLDER
from tacaf.train.config import Config
from tacaf.train.engine import whole_model, whole_state
from tacaf.train.leak import check_protocol, refuse_leak
from tacaf.train.new_model import model_facts
from tacaf.train.run import Run
from tacaf.train.scoring import Extraction, circumstances_of, embed_identities
from tacaf.train.state import TrainState


def scored_split(config: Config, index: ShardIndex) -> str:
    """The split scored at the end: `evaluation.split`, or test_3 for a model of the numbered split train_3."""
    own = own_test_split(config.data.split)
    name = config.evaluation.split if own == "test" else own
    index.pids_of(name)
    return name


def check_scoring(config: Config, index: ShardIndex) -> None:
    """Raise InputError before the training if its model could not be scored: split, cameras, gallery, validation."""
    check_protocol(index, config.evaluation.protocol)
    splits = [scored_split(config, index)] + (
        ["val"] if validates(config, index) or config.train.choose == "validation" else []
    )
    for split in splits:
        rows = index.rows_of(index.pids_of(split))
        columns = {name: np.asarray(index.columns[name][rows]) for name in ("pid", "camid", "modality", "number")}
        features = FeatureSet(np.arange(1, len(rows) + 1, dtype=np.float32)[:, None], **columns)
        settings = config.evaluation.for_split(split)
        for setting in settings.settings():
            make_trials(features, setting, 1)


def validates(config: Config, index: ShardIndex) -> bool:
    """Whether there are validation identities to choose the model by."""
    return config.data.split == "train" and "val" in index.splits


def evaluate_epoch(run: Run, state: TrainState) -> TrainState:
    """Score the model after an epoch, on validation identities if there are any, otherwise on the test identities.

    Keeps the best model on validation identities. Returns the state with this evaluation recorded.
    """
    config, index = run.config, run.data.index
    due = config.evaluation.every and state.epoch % config.evaluation.every == 0
    last = state.epoch == config.train.epochs
    held_out = validates(config, index)
    state = state._replace(evaluated=state.epoch)
    # Without validation identities, `finish` scores the last epoch's model on the same identities.
    if not (held_out if last else due):
        return state
    split = "val" if held_out else scored_split(config, index)
    distributed.average_batchnorm_statistics(run.engine.module)
    extraction = Extraction.of(config.data.augment.height, config.data.augment.width, config.evaluation)
    model, pids = whole_model(run.engine, config), index.pids_of(split)
    features, _ = embed_identities(model, index, pids, extraction, run.place, run.watched)
    settings = config.evaluation.for_split(split)
    result = score_setting(features, settings.setting(settings.asked()[0]), settings.scoring)
    run.log.evaluated(state, split, result)
    reached = result.mean[config.train.best_by]
    if split == "val" and reached > state.best:
        state = state._replace(best=reached, best_epoch=state.epoch)
        save_model(run, BEST_MODEL_FILE, f"validation, epoch {state.epoch}")
    return state


def save_model(run: Run, name: str, chosen: str) -> None:
    """Write the model into the run folder. Every rank must call this; rank 0 writes."""
    tensors = whole_state(run.engine)
    if run.place.rank == 0:
        facts = model_facts(run.config, run.data.identities, run.data.index, chosen)
        write_model(run.folder / name, tensors, facts)


def finish(run: Run, state: TrainState) -> None:
    """Write model.safetensors, score it under every setting of the config, write the report and print the table."""
    config, index, folder = run.config, run.data.index, run.folder
    distributed.average_batchnorm_statistics(run.engine.module)
    if config.train.choose == "last":
        save_model(run, MODEL, f"last epoch ({state.epoch})")
    elif run.place.rank == 0:
        with whole_path(folder / MODEL) as made:
            shutil.copyfile(folder / BEST_MODEL_FILE, made)
    distributed.barrier()
    model, card = load_model(folder / MODEL)
    split = scored_split(config, index)
    pids = index.pids_of(split)
    refuse_leak(index, card.trained_on, pids)
    extraction = Extraction.of(card.height, card.width, config.evaluation)
    features, rows = embed_identities(model.to(run.place.device), index, pids, extraction, run.place, run.watched)
    with distributed.together():
        if run.place.rank == 0:
            settings = config.evaluation.for_split(split)
            known = circumstances_of(card, split, extraction, index)
            results = score_all(features, settings.settings(), settings.scoring, known)
            run.log.evaluated(state, split, results[0])
            run.log.close()
            write_results(results, folder / RESULTS_FOLDER)
            features.save(folder / RESULTS_FOLDER / FEATURES_FILE)
            scored, size = ScoredImages(features, index, rows), (card.height, card.width)
            pictures = make_pictures(scored, settings, config.seed, model=model.eval(), size=size)
            report = write_report(folder, settings, pictures)
            print(result_tables(results))
            print(f"report: {shown(report)}")
