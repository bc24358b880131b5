"""Backbones of Hugging Face transformers: their configuration and weights. The one file that imports the package.

A backbone is built from a configuration alone, with random weights, or takes its weights from a folder. Nothing is
fetched from the network unless `download` says so, and nothing but safetensors is read.
"""

from typing import Any, Literal

from pydantic import Field
from safetensors import SafetensorError

from tacaf.extras import missing
from tacaf.settings import Settings
from tacaf.vocabulary import InputError

STAGED = ("convnext", "convnextv2")  # stages of convolutions
TOKENS = ("dinov2", "dinov2_with_registers")  # blocks over one grid of patches
# What a configuration holds beside the architecture, or derives from it.
DERIVED = (
    *("model_type", "transformers_version", "architectures", "dtype", "_name_or_path"),
    *("stage_names", "num_stages", "out_features", "out_indices"),
)


class LibraryConfig(Settings):
    """A backbone of transformers by name. Two stems, one per modality, begin as copies of one another."""

    kind: Literal["transformers"] = Field(..., description="A backbone of the package transformers.")
    name: Literal["convnext", "convnextv2", "dinov2", "dinov2_with_registers", "swin", "swinv2"] = Field(
        ..., description="The architecture, by transformers' model type."
    )
    options: dict[str, Any] = Field({}, description="Values of its transformers configuration, such as depths.")
    weights: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description=(
            "Folder with config.json and model.safetensors, or a name on the Hugging Face hub that is in the local"
            " cache; null: random weights."
        ),
    )
    download: bool = Field(False, description="Fetch `weights` from the hub if they are not here.")
    split: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="dinov2: blocks before the layer-3 map; null: three quarters of all. Others: ignored.",
    )

    @property
    def reenters(self) -> bool:
        """Whether what follows the layer-3 map can be run again on another map."""
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
    """transformers' configuration with every value, random dropping off. InputError for what it does not know.

    A resumed run must repeat what it would have done, and dropout or random depth draw from PyTorch's own stream.
    """
    found = _found(config)
    known = found.to_dict()
    unknown = sorted(set(config.options) - set(known))
    if unknown:
        possible = ", ".join(sorted(set(known) - set(DERIVED)))
        raise InputError(f"model.backbone.options: {config.name} has no {unknown[0]!r}; possible: {possible}")
    values = {name: value for name, value in found.to_diff_dict().items() if name not in DERIVED}
    values |= {name: 0.0 for name in known if _drops(name)}
    values |= config.options
    for name in values:
        if _drops(name) and values[name]:
            raise InputError(
                f"model.backbone.options.{name}: expected 0, because a resumed run could not repeat random dropping,"
                f" got {values[name]}; leave it out"
            )
    try:
        return type(found)(**values, **_outputs(config))
    except Exception as error:  # of several packages and kinds, one of them a bare Exception
        raise InputError(f"model.backbone.options: {config.name} refuses them: {_line(error)}") from None


def _drops(name: str) -> bool:
    return name.endswith(("_dropout", "dropout_prob", "drop_path_rate", "dropout_rate"))


def _outputs(config: LibraryConfig) -> dict[str, Any]:
    """Which maps the package's own forward would give."""
    return {} if config.reenters else {"out_indices": [-2, -1]}


def _found(config: LibraryConfig) -> Any:
    """The package's defaults, or what stands beside the weights."""
    package = _transformers()
    if config.weights is None:
        return package.AutoConfig.for_model(config.name)
    try:
        found = package.AutoConfig.from_pretrained(
            config.weights, local_files_only=not config.download, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InputError(_no_weights(config, error)) from None
    if found.model_type != config.name:
        raise InputError(
            f"model.backbone.weights: expected weights of {config.name}, got {found.model_type} in {config.weights};"
            " set model.backbone.name to it"
        )
    return found


def new_network(config: LibraryConfig) -> Any:
    """The package's module with random weights. InputError where the options make no network."""
    try:
        return _transformers().AutoBackbone.from_config(architecture(config))
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model.backbone.options: {config.name} cannot be built with them: {_line(error)}") from None


def trained_network(config: LibraryConfig) -> tuple[Any, str]:
    """The package's module with the weights of the folder, and a line that says what was taken.

    InputError if a tensor is missing or of another shape; norms of outputs alone, which many files lack, stay fresh.
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
            f"model.backbone.weights: expected every tensor of {config.name} in {config.weights}, {len(wrong)} are"
            f" missing (first {wrong[0]}); take the fitting weights or options"
        )
    taken = len(network.state_dict()) - len(fresh)
    return (
        network,
        f"backbone: {config.weights}; took {taken} tensors; initialised afresh: {', '.join(fresh) or 'none'}",
    )


def portable(config: LibraryConfig) -> LibraryConfig:
    """The same architecture without need of the weights' folder, for the model file."""
    if config.weights is None:
        return config
    values = architecture(config).to_diff_dict()
    options = {name: value for name, value in values.items() if name not in DERIVED}
    return config.model_copy(update={"options": options, "weights": None, "download": False})


def _no_weights(config: LibraryConfig, error: Exception) -> str:
    return (
        "model.backbone.weights: expected a folder with config.json and model.safetensors that fit, or a hub name in"
        f" the local cache, got {config.weights!r}: {_line(error)}; check the path, or set model.backbone.download:"
        " true"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
