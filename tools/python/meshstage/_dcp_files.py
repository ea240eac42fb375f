"""The files of meshstage.dcp: what they hold, as bytes. DCP_FORMAT.md specifies them."""

import ctypes
import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)

from meshstage._dcp_boxes import check_boxes, volume
from meshstage.errors import InvalidArgument
from meshstage.torch._dtypes import DTYPES

METADATA = "metadata.json"
THEIR_METADATA = ".metadata"  # of PyTorch's own writer
FORMAT = "meshstage.dcp"
VERSION = 1

#: torch 2.11 keeps no strides in a tensor's properties.
TORCH_KEEPS_STRIDES = any(field.name == "strides" for field in fields(TensorProperties))

#: Quantized dtypes are none of them: bytes without scale are no tensor.
DTYPES_BY_NAME = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and not str(dtype).startswith("torch.q")
}


@dataclass(frozen=True)
class Item:
    """Where the bytes of a chunk of a tensor, or of an object, are: in bytes of the whole file."""

    file: str
    at: int
    nbytes: int
    crc32: int


def header(tensors: list[tuple[MetadataIndex, torch.dtype, Any]], nbytes: list[int]) -> bytes:
    """The head of a safetensors file whose tensors follow each other. A dtype that safetensors
    lacks is written as its bytes: metadata.json has the dtype."""
    described, at = {}, 0
    for (index, dtype, sizes), n in zip(tensors, nbytes, strict=True):
        name = index.fqn
        if index.offset is not None and any(index.offset):
            name += f"[{','.join(map(str, index.offset))}]"
        while name in described:
            name += "'"
        known = DTYPES.get(dtype)
        described[name] = {
            "dtype": known or "U8",
            "shape": list(sizes) if known else [n],
            "data_offsets": [at, at + n],
        }
        at += n
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, on the CPU. The view keeps what it shows."""
    dense = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    nbytes = dense.numel() * dense.element_size()
    if nbytes == 0:
        return memoryview(b"")
    raw = (ctypes.c_char * nbytes).from_address(dense.data_ptr())
    raw.tensor = dense
    return memoryview(raw).cast("B")


def encode(metadata: Metadata, save_id: str) -> bytes:
    """metadata.json: a line with the digest of the rest, and the rest. Raises InvalidArgument for
    planner data that is no plain value."""
    entries = []
    for fqn, described in metadata.state_dict_metadata.items():
        if isinstance(described, BytesStorageMetadata):
            entries.append({"fqn": fqn, "object": _item(metadata, MetadataIndex(fqn))})
            continue
        p, size = described.properties, described.size
        strides = p.strides if TORCH_KEEPS_STRIDES else None
        boxes = [(chunk.offsets, chunk.sizes) for chunk in described.chunks]
        try:
            check_boxes(size, boxes, partial=True)
        except ValueError as error:
            raise InvalidArgument(f"'{fqn}' cannot be saved: {error}") from None
        complete = sum(volume(sizes) for _, sizes in boxes) == volume(size)
        entries.append({
            "fqn": fqn,
            "dtype": str(p.dtype).removeprefix("torch."),
            "size": list(size),
            "strides": None if strides is None else list(strides),
            "requires_grad": p.requires_grad,
            "chunks": [
                {"offsets": list(c.offsets), "sizes": list(c.sizes)}
                | _item(metadata, MetadataIndex(fqn, c.offsets))
                for c in described.chunks
            ],
            **({} if complete else {"partial": True}),
        })  # fmt: skip
    body = {"save_id": save_id, "planner_data": _tagged(metadata.planner_data), "entries": entries}
    text = json.dumps(body, separators=(",", ":")).encode()
    first = {"format": FORMAT, "version": VERSION, "sha256": hashlib.sha256(text).hexdigest()}
    return json.dumps(first).encode() + b"\n" + text + b"\n"


def _item(metadata: Metadata, index: MetadataIndex) -> dict[str, Any]:
    item = metadata.storage_data[index]
    return {"file": item.file, "at": item.at, "nbytes": item.nbytes, "crc32": item.crc32}


def _tagged(value: Any) -> Any:
    """A plain value as JSON that keeps tuples and keys of any kind."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [_tagged(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[_tagged(k), _tagged(v)] for k, v in value.items()]}
    raise InvalidArgument(
        f"the planner's data has a {type(value).__qualname__}, which is no plain value: "
        "the checkpoint's metadata is JSON"
    )
