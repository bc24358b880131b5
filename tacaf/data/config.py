"""Settings for the training images: which set, which batches, how they are read and augmented."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tacaf.data.augment import AugmentConfig
from tacaf.data.plan import PlanConfig
from tacaf.data.storage import RemoteConfig
from tacaf.files import path_of
from tacaf.settings import Settings
from tacaf.vocabulary import InputError


def _folder_or_address(text: str) -> str:
    """The folder with `~` expanded; an address unchanged."""
    try:
        return text if "://" in text else str(path_of(text))
    except InputError as error:
        raise ValueError(str(error)) from None


class ReadingConfig(Settings):
    """How the images of a training are read and decoded. None of these settings changes a batch."""

    threads: int = Field(
        2,
        ge=1,
        le=1024,
        description=(
            "DALI threads per rank. On a GPU, which decodes itself, 4 were the fastest of 1, 4 and 16; on a CPU, use as"
            " many as the rank has cores."
        ),
    )
    prefetch: int = Field(2, ge=1, le=1024, description="Batches prepared in advance.")
    workers: int = Field(
        0,
        ge=0,
        le=1024,
        description=(
            "Threads per rank that read images while the model trains, for slow storage; 0: images are read "
            "between steps."
        ),
    )
    on_bad_sample: Literal["stop", "replace"] = Field(
        "stop",
        description=(
            "What to do with an image that cannot be read or decoded. stop: end the run and name it; replace: use"
            " the next sound image of the same identity and modality. Evaluation always stops."
        ),
    )
    bad_sample_share: float = Field(
        0.001, ge=0, lt=1, description="With replace: stop if more than this share of the images cannot be used."
    )


class DataConfig(ReadingConfig):
    """The training images and their batches."""

    shards: Annotated[str, AfterValidator(_folder_or_address)] = Field(
        ...,
        max_length=4096,
        description="Folder of a shard set (python -m shards pack), or its address: http://, https://, s3:// ...",
    )
    remote: RemoteConfig = Field(default_factory=RemoteConfig, description="How a set at an address is read.")
    split: str = Field(
        "trainval",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description=(
            "Training identities: trainval (the literature's), train (val chooses), or a named split such as train_1."
        ),
    )
    plan: PlanConfig = Field(default_factory=PlanConfig, description="How a global batch is put together.")
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="Input size and augmentation.")
