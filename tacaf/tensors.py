"""safetensors files from outside and our own: the header checked within limits before anything is loaded, and a seal.

The library checks a header too, but takes one of 100 MB, repeated keys and metadata of any form. A file that we write
carries the hash of its own bytes in its metadata, so that no changed byte goes unnoticed, as a `Document` does.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tacaf.documents import NO_SEAL, Count, Document, Parsed, load_json, parse, what_is_wrong
from tacaf.files import reason_of, shown, whole_path
from tacaf.vocabulary import InputError

MOST_HEADER_BYTES = 2**24  # thousands of tensors, or a card with the names of thousands of classes
METADATA = "tacaf"  # the one key of the metadata: several would stand in any order
_SEAL = rb"\"seal\": \""  # as it stands in a text within the header's JSON; deeper texts have more backslashes
_BYTES = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4},
    **{"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
_CHUNK = 1 << 22


class TensorFacts(Document):
    """What a header says of one tensor; `data_offsets` count from the end of the header, in bytes."""

    dtype: Literal["F64", "I64", "U64", "F32", "I32", "U32", "F16", "BF16", "I16", "U16", "I8", "U8", "BOOL"]
    shape: tuple[Annotated[int, Field(ge=0, lt=2**40)], ...] = Field(max_length=8)
    data_offsets: tuple[Count, Count]


_METADATA = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header is sound: names, types, shapes, and where the bytes lie."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorFacts]

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """Read and check the header. InputError, naming file and field, for whatever is no such file."""
        header, size = _read_header(path)
        values = load_json(header, f"{shown(path)}, header", MOST_HEADER_BYTES)
        if not isinstance(values, dict):
            raise InputError(f"{shown(path)}, header: expected the tensors by name, got {type(values).__name__}")
        metadata = _checked(path, "__metadata__", _METADATA.validate_python, values.pop("__metadata__", {}))
        # Lists of JSON are tuples here; `strict` would refuse them.
        tensors = {
            name: _checked(path, name, TensorFacts.model_validate, _with_tuples(facts))
            for name, facts in values.items()
        }
        _check_offsets(path, tensors, size - len(header) - 8)
        return cls(path, metadata, tensors)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """These tensors, on the CPU. InputError if the file cannot be read any more."""
        try:
            with safe_open(self.path, "pt") as file:
                return {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"{shown(self.path)}: expected a safetensors file, got: {shown(error)}") from None

    def read_part(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """The places `start` to `stop - 1` of one dimension of a tensor, on the CPU, without reading all of it.

        InputError if the file cannot be read any more.
        """
        dim %= len(self.tensors[name].shape)
        try:
            with safe_open(self.path, "pt") as file:
                part: torch.Tensor = file.get_slice(name)[(slice(None),) * dim + (slice(start, stop),)]
                return part
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"{shown(self.path)}: expected a safetensors file, got: {shown(error)}") from None

    def document(self, model: type[Parsed], cure: str) -> Parsed:
        """What our metadata says. InputError for somebody else's file, and for what the model does not allow."""
        where = f"{shown(self.path)}, metadata"
        if METADATA not in self.metadata:
            raise InputError(
                f"{where}: expected {METADATA!r}, got {', '.join(map(shown, self.metadata)) or 'none'}; {cure}"
            )
        return parse(self.metadata[METADATA], model, where, MOST_HEADER_BYTES, cure)

    @property
    def sealed(self) -> bool:
        """Whether it carries a hash, as ours do."""
        return _seal_of(self.path)[1] is not None

    def check_seal(self, cure: str) -> None:
        """InputError if a byte of the file differs from when it was written, or if it carries no hash."""
        place, own = _seal_of(self.path)
        if own is None or own != _hash(self.path, place):
            raise InputError(
                f"{shown(self.path)}: its content does not match the hash it carries; a byte has changed; {cure}"
            )


def save_sealed(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors, and facts for the metadata with the hash of the file as `seal`, whole or not at all.

    The bytes depend on nothing but the content. InputError if it cannot be written.
    """
    alone = {name: _alone(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()}
    text = json.dumps({**facts, "seal": NO_SEAL}, allow_nan=False)
    try:
        with whole_path(path) as made:
            save_file(alone, made, {METADATA: text})
            place, _ = _seal_of(made)
            with made.open("r+b") as file:
                file.seek(place)
                file.write(_hash(made, place).encode())
    except SafetensorError as error:
        raise InputError(f"cannot write {shown(path)}: {shown(error)}") from None


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def _read_header(path: Path) -> tuple[bytes, int]:
    """The header and the size of the file."""
    try:
        if not path.is_file():
            raise InputError(f"{shown(path)} is not a file" if path.exists() else f"{shown(path)} does not exist")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length > size - 8:
                raise InputError(f"{shown(path)}: not a safetensors file, or a part of one ({size:,} bytes)")
            if length > MOST_HEADER_BYTES:
                raise InputError(f"{shown(path)}: a header of {length:,} bytes; at most {MOST_HEADER_BYTES:,} are read")
            return file.read(length), size
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {shown(path)}: {reason_of(error)}") from None


def _checked(path: Path, name: str, validate: Any, value: Any) -> Any:
    try:
        return validate(value)
    except ValidationError as error:
        raise InputError(f"{shown(path)}, header, {shown(name)[:200]}: {what_is_wrong(error)}") from None


def _with_tuples(facts: Any) -> Any:
    if not isinstance(facts, dict):
        return facts
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}


def _check_offsets(path: Path, tensors: Mapping[str, TensorFacts], size: int) -> None:
    """InputError unless the tensors lie one after the other, each as long as its shape says, and fill the file."""
    end = 0
    for name, facts in sorted(tensors.items(), key=lambda pair: pair[1].data_offsets):
        start, stop = facts.data_offsets
        if start != end or stop - start != math.prod(facts.shape) * _BYTES[facts.dtype]:
            raise InputError(
                f"{shown(path)}, header, {shown(name)[:200]}: data_offsets [{start}, {stop}] do not fit its shape"
                f" {list(facts.shape)} of {facts.dtype} after {end} bytes"
            )
        end = stop
    if end != size:
        raise InputError(f"{shown(path)}: expected {end:,} bytes of tensors, got {size:,}; the file is cut or longer")


def _seal_of(path: Path) -> tuple[int, str | None]:
    """Where the 64 digits of the seal begin, and the digits; None where there is not exactly one."""
    header, _ = _read_header(path)
    start = header.find(_SEAL) + len(_SEAL)
    return 8 + start, header[start : start + 64].decode("ascii", "replace") if header.count(_SEAL) == 1 else None


def _hash(path: Path, place: int) -> str:
    """The sha256 of the file with 64 zeros from `place` on."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        found.update(file.read(place))
        file.seek(64, os.SEEK_CUR)
        found.update(NO_SEAL.encode())
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it has its storage for itself, as safetensors wants it; else a copy."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
