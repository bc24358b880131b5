"""The grey range that reduces a set's images of more than 8 bits to 8: measured while packing, or given by the user.

The images themselves are packed unchanged. index.json records the range (`scales`) for every reader. Source: ours.
"""

import base64
from collections.abc import Iterable, Iterator

import numpy as np

from shards.shard_job import FinishedShard, ShardJob, relative
from shards.sources.record import Record
from tacaf.files import shown
from tacaf.images import LITTLE_USED, GreyScale, measured, share_used
from tacaf.vocabulary import Modality, Split

Shards = list[tuple[ShardJob, FinishedShard]]


def scales_of(shards: Shards, given: GreyScale | None) -> tuple[dict[Modality, GreyScale], list[str]]:
    """The scale of every modality with grey images of more than 8 bits, and warnings for the user.

    `given` is the user's scale for infrared. Any other range is measured from the images outside the test split, so
    that a benchmark's test images have no influence; it is measured from the test images only if there are no others.
    """
    scales: dict[Modality, GreyScale] = {}
    warnings: list[str] = []
    for modality in Modality:
        wide = [(job, record, sample) for job, record, sample in _sampled(shards) if record.modality is modality]
        if wide:
            others = [sample for _, record, sample in wide if record.split is not Split.TEST]
            scale = given if modality is Modality.INFRARED else None
            scales[modality] = scale or measured(others or [sample for _, _, sample in wide])
            warnings += _about_range(wide, modality, scales[modality])
            warnings += _about_mixture(shards, modality, len(wide))
        warnings += _about_narrowed(shards, modality)
    if given is not None and Modality.INFRARED not in scales:
        warnings.append("--thermal-range has no effect: no infrared image is grey with more than 8 bits")
    return scales, warnings


def _sampled(shards: Shards) -> Iterator[tuple[ShardJob, Record, np.ndarray]]:
    """The packed grey images of more than 8 bits, with a sample of their values."""
    for job, shard in shards:
        for place, sample in shard.samples.items():
            yield job, job.records[place], np.frombuffer(base64.b64decode(sample), np.dtype("<f4"))


def _packed(shards: Shards, modality: Modality) -> Iterator[tuple[ShardJob, FinishedShard, int]]:
    for job, shard in shards:
        for place, record in enumerate(job.records):
            if record.modality is modality and place not in shard.bad:
                yield job, shard, place


def _about_range(
    wide: Iterable[tuple[ShardJob, Record, np.ndarray]], modality: Modality, scale: GreyScale
) -> Iterator[str]:
    flat = [
        shown(relative(record.path, job.root))
        for job, record, sample in wide
        if share_used(sample, scale) < LITTLE_USED
    ]
    if flat:
        yield (
            f"{modality} images that look flat, because they use less than {LITTLE_USED:.0%} of the range "
            f"{scale.describe()}: {len(flat)}, the first is {flat[0]}; see --thermal-range"
        )


def _about_mixture(shards: Shards, modality: Modality, wide: int) -> Iterator[str]:
    narrow = [(job, place) for job, shard, place in _packed(shards, modality) if place not in shard.samples]
    if narrow:
        job, place = narrow[0]
        yield (
            f"{modality} images of more than 8 bits: {wide}; of 8 bits, which do not go through the range and may look "
            f"different: {len(narrow)}, the first is {shown(relative(job.records[place].path, job.root))}"
        )


def _about_narrowed(shards: Shards, modality: Modality) -> Iterator[str]:
    found = [(job, place) for job, shard, place in _packed(shards, modality) if place in shard.narrowed]
    if found and modality is Modality.INFRARED:
        job, place = found[0]
        yield (
            f"{modality} images of 16 bits in colour or with an alpha channel, of which only the upper 8 are used: "
            f"{len(found)}, the first is {shown(relative(job.records[place].path, job.root))}; save them as 16-bit grey"
        )
