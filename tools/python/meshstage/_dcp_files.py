"""The files of meshstage.dcp: what they hold, as bytes. DCP_FORMAT.md specifies them."""

import ctypes
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from meshstage.errors import CorruptData, InvalidArgument
from meshstage.torch._tree import DTYPES

METADATA = "metadata.json"
_FORMAT, _VERSION = "meshstage.dcp", 1


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
        p = described.properties
        entries.append({
            "fqn": fqn,
            "dtype": str(p.dtype).removeprefix("torch."),
            "size": list(described.size),
            "strides": None if p.strides is None else list(p.strides),
            "requires_grad": p.requires_grad,
            "chunks": [
                {"offsets": list(c.offsets), "sizes": list(c.sizes)}
                | _item(metadata, MetadataIndex(fqn, c.offsets))
                for c in described.chunks
            ],
        })  # fmt: skip
    body = {"save_id": save_id, "planner_data": _tagged(metadata.planner_data), "entries": entries}
    text = json.dumps(body, separators=(",", ":")).encode()
    first = {"format": _FORMAT, "version": _VERSION, "sha256": hashlib.sha256(text).hexdigest()}
    return json.dumps(first).encode() + b"\n" + text + b"\n"


def _item(metadata: Metadata, index: MetadataIndex) -> dict[str, Any]:
    item = metadata.storage_data[index]
    return {"file": item.file, "at": item.at, "nbytes": item.nbytes, "crc32": item.crc32}


def decode(text: bytes, path: Path) -> Metadata:
    """What ``encode`` was given, with an Item for each index as storage_data."""
    first, _, body = text.partition(b"\n")
    body = body.removesuffix(b"\n")
    try:
        head = json.loads(first)
        known = (head["format"], head["version"])
    except (ValueError, KeyError, TypeError):
        raise CorruptData(f"{path} is no file of meshstage.dcp") from None
    if known != (_FORMAT, _VERSION):
        raise CorruptData(f"{path} is {known[0]}, version {known[1]}; this reads {_FORMAT}, version {_VERSION}")
    if hashlib.sha256(body).hexdigest() != head.get("sha256"):
        raise CorruptData(f"{path} is cut off or has changed: its digest is another")
    try:
        return _decode(json.loads(body), path)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CorruptData(f"{path} has an entry that is none: {error!r}") from error


def _decode(body: dict[str, Any], path: Path) -> Metadata:
    described: dict[str, Any] = {}
    items: dict[MetadataIndex, Item] = {}
    for entry in body["entries"]:
        fqn = entry["fqn"]
        if "object" in entry:
            described[fqn] = BytesStorageMetadata()
            items[MetadataIndex(fqn)] = _placed(entry["object"], path)
            continue
        dtype = getattr(torch, entry["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"the dtype of '{fqn}' is {entry['dtype']!r}")
        strides = entry["strides"]
        chunks = []
        for chunk in entry["chunks"]:
            made = ChunkStorageMetadata(torch.Size(chunk["offsets"]), torch.Size(chunk["sizes"]))
            item = _placed(chunk, path)
            if min(chunk["sizes"], default=0) < 0 or made.sizes.numel() * dtype.itemsize != item.nbytes:
                raise ValueError(f"'{fqn}' has {item.nbytes} bytes for {chunk['sizes']} of {dtype}")
            chunks.append(made)
            items[MetadataIndex(fqn, made.offsets)] = item
        properties = TensorProperties(
            dtype=dtype,
            requires_grad=bool(entry["requires_grad"]),
            **({} if strides is None else {"strides": tuple(strides)}),
        )
        described[fqn] = TensorStorageMetadata(properties, torch.Size(entry["size"]), chunks)
    return Metadata(
        described,
        planner_data=_untagged(body["planner_data"]),
        storage_data=items,
        storage_meta=StorageMeta(checkpoint_id=path.parent, save_id=body["save_id"]),
    )


def _placed(fields: dict[str, Any], path: Path) -> Item:
    item = Item(fields["file"], fields["at"], fields["nbytes"], fields["crc32"])
    if os.path.basename(item.file) != item.file or item.file in ("", ".", "..") or "\0" in item.file:
        raise ValueError(f"{item.file!r} is no file of the folder")
    if item.at < 0 or item.nbytes < 0:
        raise ValueError(f"{item.file!r} has no {item.nbytes} bytes at {item.at}")
    return item


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


def _untagged(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, parts),) = value.items()
    if kind == "dict":
        return {_untagged(k): _untagged(v) for k, v in parts}
    return {"list": list, "tuple": tuple}[kind](_untagged(v) for v in parts)
