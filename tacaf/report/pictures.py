"""Making the pictures of a run's report: ranked lists, correspondences, and figures of its features."""

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
THUMBNAIL = 224  # largest height in pixels


@dataclass(frozen=True)
class ScoredImages:
    """The scored features, and the rows of their images in the index."""

    features: FeatureSet
    index: ShardIndex
    rows: np.ndarray  # int64 [n], the index row of each feature

    def modality(self, row: int) -> Modality:
        return Modality.of_code(self.features.modality[row])

    def some(self, size: tuple[int, int]) -> dict[Modality, torch.Tensor]:
        """A few images of each modality as the model sees them, N x 3 x H x W."""
        images = {}
        for modality in Modality:
            rows = np.flatnonzero(self.features.modality == modality.code)
            chosen = rows[:: max(1, len(rows) // COMPARED)][:COMPARED].tolist()
            if chosen:
                images[modality] = torch.stack(list(self.as_seen(chosen, size).values()))
        return images

    def as_seen(self, chosen: list[int], size: tuple[int, int]) -> dict[int, torch.Tensor]:
        """Row of the features -> the image as the model sees it, float32 [3, H, W]."""
        if not chosen:
            return {}
        batches = EvaluationPipeline(self.index, self.rows[chosen], *size, batch_size=len(chosen), threads=1)
        images = torch.cat([images for images, _ in batches])
        return dict(zip(chosen, images, strict=True))


def make_pictures(
    scored: ScoredImages, settings: EvaluationConfig, seed: int, *, model: TacafNet, size: tuple[int, int]
) -> Pictures:
    """The pictures, from the first trial of the first setting.

    The model must be in evaluation mode and on the device to use; `size` is the height and width of its images.
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
    """The CMC of every setting's first trial, in order, and the trial and ranks of the first setting."""
    curves, first = {}, None
    for asked in settings.asked():
        setting = settings.setting(asked)
        trial = make_trials(features, setting, 1)[0]
        ranks = trial.rank(settings.metric, setting.unique_pids)
        curves[search_label(setting.search_name, asked.shots if asked.mode else None)] = cmc(ranks)
        first = first or (trial, ranks)
    assert first is not None, "there is at least one setting"
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
    """An image as a small WebP of the same aspect ratio."""
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return webp(np.asarray(image))


def pixels(image_CHW: torch.Tensor) -> np.ndarray:
    """The uint8 H x W x 3 pixels of a normalised image."""
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
        correspondence = shown_correspondence(
            model,
            *(images[query][None].to(device), scored.modality(query)),
            *(images[other][None].to(device), scored.modality(other)),
            means,
        )
        distance = float(pair_distances(features.features, np.array([query]), np.array([other]), metric)[0])
        match = _match(features, query, other, distance, lambda row: webp(pixels(images[row])))
        pid = int(features.pid[query])
        pictures.append(_pair_picture(pixels(images[query]), pid, match, images[other], correspondence))
    return pictures


def _pair_picture(
    query_HWC: np.ndarray, pid: int, match: ShownImage, other_CHW: torch.Tensor, correspondence: Correspondence
) -> PairPicture:
    query_mask_L, other_mask_L, matching_LL, comask_L = (
        tensor[0].cpu().numpy()
        for tensor in (
            correspondence.query_mask_NL,
            correspondence.other_mask_NL,
            correspondence.matching_NLL,
            correspondence.comask_NL,
        )
    )
    height = correspondence.height
    return PairPicture(
        webp(query_HWC),
        webp(overlay(query_HWC, query_mask_L, height, MASK)),
        pid,
        match,
        webp(overlay(pixels(other_CHW), other_mask_L, height, MASK)),
        match_lines(matching_LL, comask_L, height),
    )
