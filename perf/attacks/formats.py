"""The files to damage: makes a valid file of every format that the project reads, and names its reader."""

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import torch
from PIL import Image

from launch.export import main as export
from shards.pedestrians.synth import synthesise
from shards.sources import manifest_file, sysu_mm01
from shards.sources.layout import read_ids
from shards.verify import verify
from tacaf import checkpoint
from tacaf.data.index import ShardIndex
from tacaf.data.reader import ShardReader
from tacaf.evaluation.features import FeatureSet, load_features
from tacaf.evaluation.gallery_draws import load_permutations
from tacaf.evaluation.results import write_results
from tacaf.evaluation.score import score_all
from tacaf.files import write_json
from tacaf.images import PER_IMAGE, decode
from tacaf.model.file import load_model, write_model
from tacaf.provenance import environment
from tacaf.run_files import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    FEATURES_FILE,
    METRICS_FILE,
    RESULTS_FOLDER,
    read_metrics,
    read_starts,
)
from tacaf.search.catalogue import Catalogue
from tacaf.search.catalogue_file import open_catalogue, save_catalogue
from tacaf.search.embedder import Embedder
from tacaf.search.loaded_model import weights_sha256
from tacaf.train.config import Config, dump_config, load_config
from tacaf.train.new_model import build_model, model_facts
from tacaf.train.processes import Place
from tacaf.train.scoring import Extraction, circumstances_of, embed_identities
from tacaf.vocabulary import COLUMNS, InputError, Modality

CONFIG = Path(__file__).parents[2] / "launch" / "configs" / "demo.yaml"
TINY = [
    "data.plan.identities_per_batch=4",  # there are few identities to train on
    "model.backbone={width: 4, blocks: [1, 1, 1, 1]}",
    "model.ipcam={node_width: 8, attention_width: 4, pair_width: 4}",
]
IDENTITIES = 8


class Format(NamedTuple):
    """One file to damage, and a reader that must notice.

    `read` gets a folder with the damaged file and its valid neighbours, and returns something comparable. If `sealed`,
    every change of the content must be noticed, because a program and not a person writes the file.
    """

    name: str
    file: str  # below the folder
    read: Callable[[Path], Any]
    sealed: bool
    folder: str  # folder of the valid files, below the workshop


def make_sound(workshop: Path) -> None:
    """Make every valid file: a packed set, a run with a model, its export, features, a kept gallery, and lists."""
    raw, packed = workshop / "raw", workshop / "set"
    synthesise(raw, layout="sysu_mm01", identities=IDENTITIES, seed=0, images_per_camera=1, height=48, workers=1)
    sysu_mm01.pack(raw, packed, workers=1)
    _make_run(workshop / "run", packed)
    words = ["--run", str(workshop / "run"), "--to", "safetensors", "--out", str(workshop / "export")]
    with contextlib.redirect_stdout(io.StringIO()):
        if export(words):
            raise RuntimeError("the export of a sound run failed")
    for name, make in (
        ("features", _make_features),
        ("gallery", lambda folder: _make_gallery(folder, workshop / "run", raw)),
        ("checkpoints", _make_checkpoints),
        ("lists", _make_lists),
        ("images", _make_images),
    ):
        (workshop / name).mkdir()
        make(workshop / name)


def formats(workshop: Path) -> list[Format]:
    """Every file of the workshop to damage, with its reader."""
    found = []
    for path in sorted((workshop / "set").rglob("*")):
        if path.is_file():
            name = str(path.relative_to(workshop / "set"))
            kind = "index.json" if name == "index.json" else f"a set's {path.suffix}"
            found.append(Format(f"verify, {kind}", name, _verified, True, "set"))
            if path.suffix != ".idx":
                found.append(Format(f"training, {kind}", name, _trained_on, path.suffix != ".tar", "set"))
    found += [
        Format("model.safetensors", "model.safetensors", _model, True, "run"),
        Format("export, card.json", "card.json", _exported, True, "export"),
        Format("export, weights", "model.safetensors", _exported, True, "export"),
        Format("features", FEATURES_FILE, _features, True, "features"),
        Format("kept gallery", "people.index", _gallery, True, "gallery"),
        Format("checkpoint, manifest", "step-00000001/manifest.json", _checkpoint, True, "checkpoints"),
        Format("checkpoint, content", "step-00000001/weights.bin", _checkpoint, True, "checkpoints"),
        Format(METRICS_FILE, METRICS_FILE, _metrics, False, "run"),
        Format(ENVIRONMENT_FILE, ENVIRONMENT_FILE, _starts, False, "run"),
        Format("configuration", CONFIG_FILE, _configuration, False, "run"),
        Format("manifest, JSON lines", "list.jsonl", lambda folder: _listed(folder, True), False, "lists"),
        Format("manifest, CSV", "list.csv", lambda folder: _listed(folder, False), False, "lists"),
        Format("list of ids", "train_id.txt", lambda folder: read_ids(folder / "train_id.txt"), False, "lists"),
        Format("permutations", "rand_perm_cam.mat", _permutations, False, "lists"),
    ]
    for path in sorted((workshop / "images").iterdir()):
        found.append(Format(f"image, {path.suffix[1:]}", path.name, _image_reader(path.name), False, "images"))
    return found


def _make_run(run: Path, packed: Path) -> None:
    run.mkdir()
    config = load_config(CONFIG, [f"run={run}", f"data.shards={packed}", *TINY])
    (run / CONFIG_FILE).write_text(dump_config(config))
    model, _ = build_model(config, IDENTITIES)
    index = ShardIndex.open(packed)
    facts = model_facts(config, IDENTITIES, index, "last epoch (0)")
    write_model(run / "model.safetensors", model.state_dict(), facts)
    figures = {"loss": 2.0, "terms": {}, "lr": {"new": 0.1}, "images_per_s": 9.0, "data_wait_share": 0.1}
    steps = [{"kind": "step", "epoch": 0, "step": n, "global_step": n + 1, **figures} for n in range(8)]
    (run / METRICS_FILE).write_text("".join(json.dumps(step) + "\n" for step in steps))
    write_json(run / ENVIRONMENT_FILE, [environment(1)])
    _score(run, config, index)


def _score(run: Path, config: Config, index: ShardIndex) -> None:
    """Features and results of the test identities."""
    model, card = load_model(run / "model.safetensors")
    place = Place(0, 1, torch.device("cpu"))
    pids = index.pids_of("test")
    extraction = Extraction.of(card.height, card.width, config.evaluation)
    features, _ = embed_identities(model, index, pids, extraction, place)
    known = circumstances_of(card, "test", extraction)
    settings = config.evaluation
    write_results(score_all(features, settings.settings(), settings.scoring, known), run / RESULTS_FOLDER)
    features.save(run / RESULTS_FOLDER / FEATURES_FILE)


def _make_features(folder: Path) -> None:
    draw, count = np.random.default_rng(0), 16
    features = draw.normal(size=(count, 8)).astype(np.float32)
    pid, modality = np.arange(count) // 4, (np.arange(count) % 2).astype(np.uint8)
    camid = 1 + 2 * modality.astype(np.int64)
    FeatureSet(features, pid, camid, modality, 1 + np.arange(count) // 2).save(folder / FEATURES_FILE)


def _make_gallery(folder: Path, run: Path, raw: Path) -> None:
    embedder = Embedder.load(run)
    catalogue = Catalogue.new(embedder, Modality.VISIBLE)
    catalogue.add(embedder, raw / "cam1")
    save_catalogue(folder / "people.index", catalogue)


def _make_checkpoints(folder: Path) -> None:
    temporary = folder / checkpoint.temporary_tag(1)
    temporary.mkdir()
    torch.save({"weights": torch.arange(64.0)}, temporary / "weights.bin")
    checkpoint.commit(folder, 1, {"seed": 1, "world_size": 1, "state": {"epoch": 0, "step": 1}}, keep=2)


def _make_lists(folder: Path) -> None:
    rows = []
    for number in range(8):
        path = folder / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 4, 3), 30 * number, np.uint8)).save(path)
        modality = list(Modality)[number % 2]
        rows.append({"path": f"images/{path.name}", "pid": number // 2, "modality": modality, "camid": 1 + number % 2})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "train_id.txt").write_text("1,2,3,17,204\n")
    permutations = np.empty((6, 1), dtype=object)
    for camera in range(6):
        tables = np.empty((333, 1), dtype=object)
        for pid in range(333):
            tables[pid, 0] = (
                np.tile(np.arange(1, 4, dtype=np.uint8), (10, 1)) if pid < 4 else np.zeros((0, 0), np.uint8)
            )
        permutations[camera, 0] = tables
    scipy.io.savemat(folder / "rand_perm_cam.mat", {"rand_perm_cam": permutations})


def _make_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "bmp", "tif", "webp"):
        Image.fromarray(pixels).save(folder / f"colour.{suffix}")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 4 + 7000).save(folder / "wide.png")
    Image.fromarray(pixels[..., 0].astype(np.float32) / 7).save(folder / "float.tiff")


def _verified(folder: Path) -> str:
    problems = verify(folder, workers=1)
    if problems:
        raise InputError(problems[0])
    return "sound"


def _trained_on(folder: Path) -> Any:
    """What a training reads from a set, without the images' bytes, whose hashes only `verify` checks."""
    index = ShardIndex.open(folder)
    reader = ShardReader(index)
    for row in range(0, len(index), 7):
        reader.read(row)
    columns = {name: np.asarray(index.columns[name]).tolist() for name in COLUMNS}
    return index.name, index.splits, index.locations, columns, [shard.sha256 for shard in index.shards]


def _model(folder: Path) -> Any:
    model, card = load_model(folder / "model.safetensors")
    return weights_sha256(model), card


def _exported(folder: Path) -> Any:
    embedder = Embedder.load(folder)
    return embedder.model_sha256, embedder.card


def _features(folder: Path) -> Any:
    found = load_features(folder / FEATURES_FILE)
    return {name: np.asarray(values).tolist() for name, values in vars(found).items()}


def _gallery(folder: Path) -> Any:
    found = open_catalogue(folder / "people.index")
    return found.names, found.sha256, found.descriptors_GD.tolist(), found.modality, found.model_sha256


def _checkpoint(folder: Path) -> Any:
    said: list[str] = []
    path = checkpoint.newest_whole(folder, said.append)
    if path is None:
        raise InputError(said[-1] if said else "")
    return checkpoint.facts_of(path)


def _metrics(folder: Path) -> Any:
    return list(read_metrics(folder / METRICS_FILE))


def _starts(folder: Path) -> Any:
    return read_starts(folder / ENVIRONMENT_FILE)


def _configuration(folder: Path) -> Any:
    return load_config(folder / CONFIG_FILE, []).effective()


def _listed(folder: Path, jsonl: bool) -> Any:
    rows, _ = manifest_file.read(folder / ("list.jsonl" if jsonl else "list.csv"), folder, jsonl)
    return [(row.path, row.pid, row.modality, row.camid) for row in rows]


def _permutations(folder: Path) -> Any:
    """The first tables of the file, as scoring reads them."""
    found = load_permutations(folder / "rand_perm_cam.mat")
    return [repr(table) for table in found.ravel()[:8].tolist()]


def _image_reader(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        try:
            return decode((folder / name).read_bytes(), PER_IMAGE).tolist()
        except ValueError as error:  # ImageError, which every caller turns into an InputError that names the file
            raise InputError(str(error)) from None

    return read


def damaged_copy(sound: Path, into: Path, file: str, data: bytes) -> Path:
    """A copy of the folder `sound` in which one file has other bytes; the others are links."""
    shutil.copytree(sound, into, copy_function=lambda source, target: Path(target).hardlink_to(source))
    (into / file).unlink()
    (into / file).write_bytes(data)
    return into
