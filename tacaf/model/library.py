"""Backbones of Hugging Face transformers: their configuration and weights. Only this file imports the package.

A backbone is built from a configuration, with random weights, or with weights from a folder. Nothing is fetched from
the network unless `download` is set, and only safetensors files are read.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from safetensors import SafetensorError

from tacaf.extras import missing
from tacaf.settings import Settings
from tacaf.vocabulary import InputError

STAGED = ("convnext", "convnextv2")  # stages of convolutions
TOKENS = ("dinov2", "dinov2_with_registers")  # blocks over one grid of patches
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")  # whole, or the list of its parts
# Entries of a configuration that do not describe the architecture, or are derived from it.
DERIVED = (
    *("model_type", "transformers_version", "architectures", "dtype", "_name_or_path"),
    *("stage_names", "num_stages", "out_features", "out_indices"),
)


class LibraryConfig(Settings):
    """A backbone of transformers. Its two stems, one per modality, begin as copies of each other."""

    kind: Literal["transformers"] = Field(..., description="A backbone of the package transformers.")
    name: Literal["convnext", "convnextv2", "dinov2", "dinov2_with_registers", "swin", "swinv2"] = Field(
        ..., description="The architecture, by transformers' model type."
    )
    options: dict[str, Any] = Field({}, description="Values for its configuration in transformers, such as depths.")
    weights: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description=(
            "Folder with config.json and model.safetensors, or a name on the Hugging Face hub that is in the local"
            " cache; null: random weights."
        ),
    )
    download: bool = Field(False, description="Fetch `weights` from the hub if they are not on this machine.")
    split: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="dinov2: number of blocks before the layer-3 map; null: three quarters of all. Others ignore it.",
    )

    @property
    def reenters(self) -> bool:
        """Whether the layers after the layer-3 map can be run on another map."""
        return self.name in STAGED + TOKENS


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise missing("transformers", "model.backbone.kind: transformers") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def architecture(config: LibraryConfig) -> Any:
    """The complete configuration in transformers, without dropout. Raises InputError for unknown or wrong options.

    Dropout and stochastic depth draw from PyTorch's own random stream, which a resumed run could not repeat.
    """
    base = _base(config)
    known = base.to_dict()
    unknown = sorted(set(config.options) - set(known))
    if unknown:
        possible = ", ".join(sorted(set(known) - set(DERIVED)))
        raise InputError(f"model.backbone.options: {config.name} has no {unknown[0]!r}; possible: {possible}")
    values = {name: value for name, value in base.to_diff_dict().items() if name not in DERIVED}
    values |= {name: 0.0 for name in known if _drops(name)}
    values |= config.options
    for name in values:
        if _drops(name) and values[name]:
            raise InputError(
                f"model.backbone.options.{name}: expected 0, because a resumed run could not repeat dropout,"
                f" got {values[name]}; leave it out"
            )
    try:
        return type(base)(**values, **_outputs(config))
    except Exception as error:  # several packages raise here, one of them a bare Exception
        raise InputError(f"model.backbone.options: {config.name} refuses them: {_line(error)}") from None


def _drops(name: str) -> bool:
    return name.endswith(("_dropout", "dropout_prob", "drop_path_rate", "dropout_rate"))


def _outputs(config: LibraryConfig) -> dict[str, Any]:
    """The option that selects the maps which the package's forward returns."""
    return {} if config.reenters else {"out_indices": [-2, -1]}


def _base(config: LibraryConfig) -> Any:
    """The package's default configuration, or the one in the folder of the weights."""
    package = _transformers()
    if config.weights is None:
        return package.AutoConfig.for_model(config.name)
    try:
        saved = package.AutoConfig.from_pretrained(
            config.weights, local_files_only=not config.download, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InputError(_no_weights(config, error)) from None
    if saved.model_type != config.name:
        raise InputError(
            f"model.backbone.weights: expected weights of {config.name}, got {saved.model_type} in {config.weights};"
            " change model.backbone.name or the weights"
        )
    return saved


def new_network(config: LibraryConfig) -> Any:
    """The package's module with random weights. Raises InputError if it cannot be built with these options."""
    try:
        return _transformers().AutoBackbone.from_config(architecture(config))
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model.backbone.options: {config.name} cannot be built with them: {_line(error)}") from None


def check_weights(config: LibraryConfig) -> None:
    """Raise InputError if the weights should be on this machine and have no safetensors file here. None is loaded."""
    assert config.weights is not None
    if config.download:
        return
    _transformers()
    from huggingface_hub import try_to_load_from_cache

    folder = Path(config.weights)
    for name in SAFETENSORS:
        if folder.is_dir() and (folder / name).is_file():
            return
        if not folder.is_dir() and isinstance(try_to_load_from_cache(config.weights, name), str):
            return
    raise InputError(_no_weights(config, f"{' and '.join(SAFETENSORS)} are missing"))


def trained_network(config: LibraryConfig) -> tuple[Any, str]:
    """The package's module with the weights of the folder, and a line about what was loaded.

    Raises InputError if a tensor is missing or of another shape. Only norms of outputs, which many files lack, may be
    missing; they are initialised.
    """
    assert config.weights is not None
    try:
        network, report = type(new_network(config)).from_pretrained(
            config.weights,
            config=architecture(config),
            local_files_only=not config.download,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(_no_weights(config, error)) from None
    fresh = sorted(report["missing_keys"])
    wrong = [name for name in fresh if "hidden_states_norms" not in name]
    if wrong:
        raise InputError(
            f"model.backbone.weights: expected every tensor of {config.name} in {config.weights}, but {len(wrong)} are"
            f" missing (first {wrong[0]}); use matching weights or options"
        )
    taken = len(network.state_dict()) - len(fresh)
    return (
        network,
        f"backbone: {config.weights}; loaded {taken} tensors; newly initialised: {', '.join(fresh) or 'none'}",
    )


def portable(config: LibraryConfig) -> LibraryConfig:
    """The same architecture independent of the weights' folder, for the model file."""
    if config.weights is None:
        return config
    values = architecture(config).to_diff_dict()
    options = {name: value for name, value in values.items() if name not in DERIVED}
    return config.model_copy(update={"options": options, "weights": None, "download": False})


def _no_weights(config: LibraryConfig, error: Exception | str) -> str:
    return (
        "model.backbone.weights: expected a folder with matching config.json and model.safetensors, or a hub name in"
        f" the local cache, got {config.weights!r}: {_line(error)}; check the path, or set model.backbone.download:"
        " true"
    )


def _line(error: Exception | str) -> str:
    return " ".join(str(error).split())[:200]
