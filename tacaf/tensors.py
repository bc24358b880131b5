"""Reading and writing safetensors files: headers are checked within limits before anything is loaded.

The library checks a header too, but accepts headers of 100 MB, repeated keys and metadata of any form. A file that we
write has a seal in its metadata, the hash of its own bytes, so that every changed byte is noticed.
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
METADATA = "tacaf"  # the only key of the metadata, because the order of several would not be fixed
_SEAL = rb"\"seal\": \""  # as it is escaped in a string of the header's JSON; deeper strings have more backslashes
_BYTES = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4},
    **{"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
_CHUNK = 1 << 22


class TensorFacts(Document):
    """What a header says about one tensor. `data_offsets` are in bytes, from the end of the header."""

    dtype: Literal["F64", "I64", "U64", "F32", "I32", "U32", "F16", "BF16", "I16", "U16", "I8", "U8", "BOOL"]
    shape: tuple[Annotated[int, Field(ge=0, lt=2**40)], ...] = Field(max_length=8)
    data_offsets: tuple[Count, Count]


_METADATA = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file with a valid header: names, types, shapes, and offsets."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorFacts]

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """Read and check the header. Raises InputError, naming file and field, if it is not valid."""
        header, size = _read_header(path)
        values = load_json(header, f"{shown(path)}, header", MOST_HEADER_BYTES)
        if not isinstance(values, dict):
            raise InputError(f"{shown(path)}, header: expected the tensors by name, got {type(values).__name__}")
        metadata = _checked(path, "__metadata__", _METADATA.validate_python, values.pop("__metadata__", {}))
        # JSON's lists become tuples, because `strict` would refuse lists.
        tensors = {
            name: _checked(path, name, TensorFacts.model_validate, _with_tuples(facts))
            for name, facts in values.items()
        }
        _check_offsets(path, tensors, size - len(header) - 8)
        return cls(path, metadata, tensors)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """These tensors, on the CPU. Raises InputError if the file can no longer be read."""
        try:
            with safe_open(self.path, "pt") as file:
                return {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"{shown(self.path)}: expected a safetensors file, got: {shown(error)}") from None

    def read_part(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """A slice of a tensor, `start` to `stop - 1` of dimension `dim`, on the CPU, without reading all of it.

        Raises InputError if the file can no longer be read.
        """
        dim %= len(self.tensors[name].shape)
        try:
            with safe_open(self.path, "pt") as file:
                part: torch.Tensor = file.get_slice(name)[(slice(None),) * dim + (slice(start, stop),)]
                return part
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"{shown(self.path)}: expected a safetensors file, got: {shown(error)}") from None

    def document(self, model: type[Parsed], cure: str) -> Parsed:
        """Our metadata. Raises InputError for a file that TACAF did not write or whose metadata is not valid."""
        where = f"{shown(self.path)}, metadata"
        if METADATA not in self.metadata:
            raise InputError(
                f"{where}: expected {METADATA!r}, got {', '.join(map(shown, self.metadata)) or 'none'}; {cure}"
            )
        return parse(self.metadata[METADATA], model, where, MOST_HEADER_BYTES, cure)

    @property
    def sealed(self) -> bool:
        """Whether the file has a seal, as the files that we write do."""
        return _seal_of(self.path)[1] is not None

    def check_seal(self, cure: str) -> None:
        """Raise InputError if a byte of the file has changed since it was written, or if the file has no seal."""
        offset, stated = _seal_of(self.path)
        if stated is None or stated != _hash(self.path, offset):
            raise InputError(
                f"{shown(self.path)}: its content does not match the hash in it; a byte has changed; {cure}"
            )


def save_sealed(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors atomically, with `facts` and a seal as metadata.

    The bytes depend only on the content. Raises InputError if the file cannot be written.
    """
    alone = {name: _alone(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()}
    text = json.dumps({**facts, "seal": NO_SEAL}, allow_nan=False)
    try:
        with whole_path(path) as made:
            save_file(alone, made, {METADATA: text})
            offset, _ = _seal_of(made)
            with made.open("r+b") as file:
                file.seek(offset)
                file.write(_hash(made, offset).encode())
    except SafetensorError as error:
        raise InputError(f"cannot write {shown(path)}: {shown(error)}") from None


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor that contains NaN or infinity, or None."""
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
    """Raise InputError unless the tensors are consecutive, as long as their shapes say, and fill the file."""
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
        raise InputError(f"{shown(path)}: expected {end:,} bytes of tensors, got {size:,}; copy the file again")


def _seal_of(path: Path) -> tuple[int, str | None]:
    """The offset of the seal's 64 digits in the file, and the digits; None if there is not exactly one seal."""
    header, _ = _read_header(path)
    start = header.find(_SEAL) + len(_SEAL)
    return 8 + start, header[start : start + 64].decode("ascii", "replace") if header.count(_SEAL) == 1 else None


def _hash(path: Path, seal_offset: int) -> str:
    """The sha256 of the file with 64 zeros in place of the seal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(seal_offset))
        file.seek(64, os.SEEK_CUR)
        digest.update(NO_SEAL.encode())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself if it does not share its storage, as safetensors requires; otherwise a copy."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
