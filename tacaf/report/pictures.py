"""Pictures for the report of a run: ranked lists, correspondences, figures of its features; images from the shards."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from tacaf.data.evaluation_pipeline import EvaluationPipeline
from tacaf.data.index import ShardIndex
from tacaf.data.reader import ShardReader
from tacaf.evaluation.config import EvaluationConfig
from tacaf.evaluation.features import FeatureSet
from tacaf.evaluation.ranking import Ranks
from tacaf.evaluation.text import search_label
from tacaf.evaluation.trials import Trial, make_trials
from tacaf.images import MEAN, STD
from tacaf.model.correspondence import COMPARED, Correspondence, mean_maps, shown_correspondence
from tacaf.model.tacafnet import TacafNet
from tacaf.report.embedding_map import map_embeddings
from tacaf.report.examples import Choice, PairChoice, choose_pairs, choose_ranked_lists
from tacaf.report.figures import cmc, draw_cmc, draw_distances, draw_map
from tacaf.report.overlay import MASK, match_lines, overlay, webp
from tacaf.report.pair_distances import pair_distances, sample_distances
from tacaf.report.report import PairPicture, Pictures, ShownImage, ShownList
from tacaf.vocabulary import Modality

SHOWN = 10  # gallery images in a ranked list
PAIRED = 3  # queries whose correspondences are shown
THUMBNAIL = 224  # pixels high at most


@dataclass(frozen=True)
class ScoredImages:
    """The features that were scored, and where their images are."""

    features: FeatureSet
    index: ShardIndex
    rows: np.ndarray  # int64 [n], the index row of each feature

    def modality(self, row: int) -> Modality:
        return Modality.of_code(self.features.modality[row])

    def some(self, size: tuple[int, int]) -> dict[Modality, torch.Tensor]:
        """A few images of each modality, as the model sees them, N x 3 x H x W."""
        found = {}
        for modality in Modality:
            rows = np.flatnonzero(self.features.modality == modality.code)
            chosen = rows[:: max(1, len(rows) // COMPARED)][:COMPARED].tolist()
            if chosen:
                found[modality] = torch.stack(list(self.as_seen(chosen, size).values()))
        return found

    def as_seen(self, wanted: list[int], size: tuple[int, int]) -> dict[int, torch.Tensor]:
        """Row of the features to the image that the model saw, float32 [3, H, W]."""
        if not wanted:
            return {}
        batches = EvaluationPipeline(self.index, self.rows[wanted], *size, batch_size=len(wanted), threads=1)
        images = torch.cat([images for images, _ in batches])
        return dict(zip(wanted, images, strict=True))


def make_pictures(
    scored: ScoredImages, settings: EvaluationConfig, seed: int, *, model: TacafNet, size: tuple[int, int]
) -> Pictures:
    """Pictures of the first trial of what is asked first.

    The model is in evaluation mode, on the device its images shall go to; `size` is height and width of its images.
    """
    features = scored.features
    curves, trial, ranks = _first_trials(features, settings)
    chosen = choose_ranked_lists(trial, ranks, settings.metric, settings.ranked_lists, SHOWN, seed)
    lists = _ranked_lists(scored, chosen)
    figures = {
        "Matches found up to a rank (CMC), first trial" + (", not re-ranked" if settings.rerank else ""): draw_cmc(
            curves
        ),
        "Distances of pairs of images": draw_distances(
            sample_distances(features, settings.metric, seed), settings.metric
        ),
        "Map of embeddings": draw_map(map_embeddings(features, settings.metric, seed)),
    }
    choices = choose_pairs(trial, ranks, settings.metric, min(PAIRED, settings.ranked_lists), seed)
    pairs = _pair_pictures(scored, choices, settings.metric, model=model, size=size)
    return Pictures(lists, figures, pairs, size[1] / size[0])


def _first_trials(features: FeatureSet, settings: EvaluationConfig) -> tuple[dict[str, np.ndarray], Trial, Ranks]:
    """CMC of the first trial of everything asked, in its order; then trial and ranks of what is asked first."""
    curves, first = {}, None
    for asked in settings.asked():
        setting = settings.setting(asked)
        trial = make_trials(features, setting, 1)[0]
        ranks = trial.rank(settings.metric, setting.unique_pids)
        curves[search_label(setting.search_name, asked.shots if asked.mode else None)] = cmc(ranks)
        first = first or (trial, ranks)
    assert first is not None, "settings ask for something"
    return curves, *first


def _ranked_lists(scored: ScoredImages, chosen: dict[str, list[Choice]]) -> dict[str, list[ShownList]]:
    """The chosen lists with their images."""
    features, reader = scored.features, ShardReader(scored.index)

    def thumbnail(row: int) -> bytes:
        return shrink(reader.pixels(int(scored.rows[row])))

    return {
        kind: [
            ShownList(
                thumbnail(choice.query),
                int(features.pid[choice.query]),
                choice.average_precision,
                [_match(features, choice.query, row, distance, thumbnail) for row, distance in choice.matches],
            )
            for choice in choices
        ]
        for kind, choices in chosen.items()
    }


def shrink(pixels_HWC: np.ndarray) -> bytes:
    """An image as a small WebP, its shape kept."""
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return webp(np.asarray(image))


def pixels(image_CHW: torch.Tensor) -> np.ndarray:
    """A normalised image as the uint8 H x W x 3 it was made of."""
    return np.round(255 * (image_CHW.permute(1, 2, 0).cpu().numpy() * STD + MEAN)).clip(0, 255).astype(np.uint8)


def _match(
    features: FeatureSet, query: int, row: int, distance: float, thumbnail: Callable[[int], bytes]
) -> ShownImage:
    same = bool(features.pid[row] == features.pid[query])
    return ShownImage(thumbnail(row), int(features.pid[row]), distance, same)


def _pair_pictures(
    scored: ScoredImages, choices: list[PairChoice], metric: str, *, model: TacafNet, size: tuple[int, int]
) -> list[PairPicture]:
    """Each chosen query with its true match, then with its wrong one."""
    features = scored.features
    pairs = [(one.query, other) for one in choices for other in (one.right, one.wrong) if other is not None]
    images = scored.as_seen(sorted({row for pair in pairs for row in pair}), size)
    device = next(model.parameters()).device
    means = mean_maps(model, {kind: some.to(device) for kind, some in scored.some(size).items()}) if pairs else {}
    pictures = []
    for query, other in pairs:
        found = shown_correspondence(
            model,
            *(images[query][None].to(device), scored.modality(query)),
            *(images[other][None].to(device), scored.modality(other)),
            means,
        )
        distance = float(pair_distances(features.features, np.array([query]), np.array([other]), metric)[0])
        match = _match(features, query, other, distance, lambda row: webp(pixels(images[row])))
        pictures.append(_pair_picture(pixels(images[query]), int(features.pid[query]), match, images[other], found))
    return pictures


def _pair_picture(
    query_HWC: np.ndarray, pid: int, match: ShownImage, other_CHW: torch.Tensor, found: Correspondence
) -> PairPicture:
    masks = [mask_NL[0].cpu().numpy() for mask_NL in (found.query_mask_NL, found.other_mask_NL)]
    matching_LL, comask_L = found.matching_NLL[0].cpu().numpy(), found.comask_NL[0].cpu().numpy()
    return PairPicture(
        webp(query_HWC),
        webp(overlay(query_HWC, masks[0], found.height, MASK)),
        pid,
        match,
        webp(overlay(pixels(other_CHW), masks[1], found.height, MASK)),
        match_lines(matching_LL, comask_L, found.height),
    )
