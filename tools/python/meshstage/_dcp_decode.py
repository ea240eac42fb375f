"""metadata.json as torch's Metadata. Whatever the file says, it is checked before anything believes it."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
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

from meshstage._dcp_boxes import MOST, check_boxes, volume
from meshstage._dcp_files import DTYPES_BY_NAME, FORMAT, TORCH_KEEPS_STRIDES, VERSION, Item
from meshstage.errors import CorruptData

_FILE = re.compile(r"data-[0-9a-f]{32}-[0-9]{1,9}\.safetensors")


def decode(text: bytes, path: Path) -> Metadata:
    """What ``encode`` was given, with an Item for each index as storage_data. Raises CorruptData
    that names the file, the entry and what is wrong with it."""
    first, _, body = text.partition(b"\n")
    body = body.removesuffix(b"\n")
    try:
        head = json.loads(first)
        known = (head["format"], head["version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptData(f"{path} is no file of meshstage.dcp") from None
    if known != (FORMAT, VERSION):
        raise CorruptData(f"{path} is {known[0]}, version {known[1]}; this reads {FORMAT}, version {VERSION}")
    if hashlib.sha256(body).hexdigest() != head.get("sha256"):
        raise CorruptData(f"{path} is cut off or has changed: its digest is another")
    try:
        return _decode(_Fields(json.loads(body), "the second line"), path)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{path}: {error}") from error


class _Fields:
    """A JSON object whose fields are asked for by name and kind."""

    def __init__(self, fields: Any, what: str):
        if not isinstance(fields, dict):
            raise ValueError(f"{what} is no JSON object, but {_short(fields)}")
        self._fields, self._what = fields, what

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str, kind: type) -> Any:
        if name not in self._fields:
            raise ValueError(f"{self._what} has no '{name}'")
        value = self._fields[name]
        if type(value) is not kind:  # a bool is no int
            raise ValueError(f"'{name}' of {self._what} is {_short(value)}")
        return value

    def number(self, name: str, most: int = MOST) -> int:
        value = self.get(name, int)
        if not 0 <= value <= most:
            raise ValueError(f"'{name}' of {self._what} is {_short(value)}")
        return value

    def numbers(self, name: str) -> list[int]:
        values = self.get(name, list)
        for value in values:
            if type(value) is not int or not 0 <= value <= MOST:
                raise ValueError(f"'{name}' of {self._what} has {_short(value)}")
        return values

    def any(self, name: str) -> Any:
        return self.get(name, type(self._fields.get(name)))


def _decode(body: _Fields, path: Path) -> Metadata:
    described: dict[str, Any] = {}
    items: dict[MetadataIndex, Item] = {}
    for number, fields in enumerate(body.get("entries", list)):
        entry = _Fields(fields, f"entry {number}")
        fqn = entry.get("fqn", str)
        with _at(f"entry {number}, {_short(fqn)}"):
            if fqn in described:
                raise ValueError("another entry has that name")
            entry = _Fields(fields, "it")
            if "object" in entry:
                described[fqn] = BytesStorageMetadata()
                items[MetadataIndex(fqn)] = _placed(_Fields(entry.get("object", dict), "its object"))
            else:
                described[fqn], placed = _tensor(entry)
                items |= {MetadataIndex(fqn, offsets): item for offsets, item in placed.items()}
    with _at("planner_data"):
        planner_data = _untagged(body.any("planner_data"))
    return Metadata(
        described,
        planner_data=planner_data,
        storage_data=items,
        storage_meta=StorageMeta(checkpoint_id=path.parent, save_id=body.get("save_id", str)),
    )


def _tensor(entry: _Fields) -> tuple[TensorStorageMetadata, dict[torch.Size, Item]]:
    name = entry.get("dtype", str)
    dtype = DTYPES_BY_NAME.get(name)
    if dtype is None:
        raise ValueError(f"its dtype is {_short(name)}, which torch {torch.__version__} does not have")
    size = entry.numbers("size")
    strides = entry.numbers("strides") if entry.any("strides") is not None else None
    if strides is not None and len(strides) != len(size):
        raise ValueError(f"its strides are {_short(strides)}, its size is {_short(size)}")
    if _bytes_of(size, dtype) > MOST:
        raise ValueError(f"its size is {_short(size)}: nothing has so many bytes")
    chunks, placed = [], {}
    for fields in entry.get("chunks", list):
        chunk = _Fields(fields, "its chunk")
        offsets, sizes = chunk.numbers("offsets"), chunk.numbers("sizes")
        chunk = _Fields(fields, f"its chunk at {_short(offsets)}")
        item = _placed(chunk)
        if _bytes_of(sizes, dtype) != item.nbytes:
            raise ValueError(f"its chunk at {_short(offsets)} has {item.nbytes} bytes for {_short(sizes)} of {dtype}")
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
        placed[torch.Size(offsets)] = item
    partial = "partial" in entry and entry.get("partial", bool)
    check_boxes(size, [(chunk.offsets, chunk.sizes) for chunk in chunks], partial)
    kept = {} if strides is None or not TORCH_KEEPS_STRIDES else {"strides": tuple(strides)}
    properties = TensorProperties(dtype=dtype, requires_grad=entry.get("requires_grad", bool), **kept)
    return TensorStorageMetadata(properties, torch.Size(size), chunks), placed


def _bytes_of(size: list[int], dtype: torch.dtype) -> int:
    return volume(size) * dtype.itemsize


def _placed(fields: _Fields) -> Item:
    item = Item(
        fields.get("file", str),
        fields.number("at"),
        fields.number("nbytes"),
        fields.number("crc32", 2**32 - 1),
    )
    if not _FILE.fullmatch(item.file):
        raise ValueError(f"{_short(item.file)} is no data file of the folder")
    if item.at > MOST - item.nbytes:
        raise ValueError(f"{item.file!r} cannot have {item.nbytes} bytes at {item.at}")
    return item


def _untagged(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"{_short(value)} is no tagged value")
    ((kind, parts),) = value.items()
    if kind not in ("dict", "list", "tuple") or not isinstance(parts, list):
        raise ValueError(f"{_short(value)} is no tagged value")
    if kind != "dict":
        made = [_untagged(part) for part in parts]
        return made if kind == "list" else tuple(made)
    result = {}
    for pair in parts:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{_short(pair)} is no key and value")
        try:
            result[_untagged(pair[0])] = _untagged(pair[1])
        except TypeError:
            raise ValueError(f"{_short(pair[0])} is no key") from None
    return result


@contextmanager
def _at(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _short(value: Any) -> str:
    """For people: however long what a file says is."""
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        return "a number too long to show"
    return text if len(text) <= 100 else text[:97] + "..."
