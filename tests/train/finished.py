"""A run folder as a training leaves it, without the training: a tiny model of random weights, scored."""

import json
from pathlib import Path

import torch

from tacaf.data.index import ShardIndex
from tacaf.evaluation.results import write_results
from tacaf.evaluation.score import score_all
from tacaf.model.file import load_model
from tacaf.model.file import write_model as write_model_file
from tacaf.train.config import Config, dump_config, load_config
from tacaf.train.new_model import build_model, model_facts
from tacaf.train.processes import Place
from tacaf.train.scoring import Extraction, circumstances_of, embed_identities

DEMO = Path(__file__).parent.parent.parent / "launch" / "configs" / "demo.yaml"
TINY = [
    "model.backbone={width: 4, blocks: [1, 1, 1, 1]}",
    "model.ipcam={node_width: 8, attention_width: 4, pair_width: 4, part_weight: 0.5}",  # so that no use forgets it
    "evaluation.ranked_lists=2",
    "evaluation.batch_size=16",
]


def write_model(run: Path, shards: Path, identities: int = 3, *settings: str) -> Config:
    """`run` with config.yaml and model.safetensors."""
    config = load_config(DEMO, [f"run={run}", f"data.shards={shards}", *TINY, *settings])
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    model, _ = build_model(config, identities)
    index = ShardIndex.open(shards)
    facts = model_facts(config, identities, index, "last epoch (0)")
    write_model_file(run / "model.safetensors", model.state_dict(), facts)
    return config


def write_scores(run: Path, config: Config) -> None:
    """Adds features and results of the identities of `evaluation.split`, and the log of one step."""
    model, card = load_model(run / "model.safetensors")
    index = ShardIndex.open(config.data.shards)
    place = Place(0, 1, torch.device("cpu"))
    settings = config.evaluation.for_split(config.evaluation.split)
    pids = index.pids_of(settings.split)
    extraction = Extraction.of(card.height, card.width, settings)
    features, _ = embed_identities(model, index, pids, extraction, place)
    known = circumstances_of(card, settings.split, extraction)
    write_results(score_all(features, settings.settings(), settings.scoring, known), run / "results")
    features.save(run / "results" / "features.npz")
    step = {"kind": "step", "epoch": 0, "step": 0, "global_step": 1, "loss": 2.0, "terms": {"identity": 2.0}}
    step |= {"lr": {"new": 0.1}, "images_per_s": 9.0, "data_wait_share": 0.1}
    (run / "metrics.jsonl").write_text(json.dumps(step) + "\n")
