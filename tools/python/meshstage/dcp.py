"""Writer and Reader: torch.distributed.checkpoint's storage, in files of ours. Importing it imports torch.

    dcp.save(state_dict, storage_writer=meshstage.dcp.Writer("ckpt/7"))
    dcp.load(state_dict, storage_reader=meshstage.dcp.Reader("ckpt/7"))

DCP_FORMAT.md has the files, byte by byte.
"""

import io
import os
import pickle
import uuid
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import (
    BytesStorageMetadata,
    LoadPlan,
    LoadPlanner,
    Metadata,
    SavePlan,
    SavePlanner,
    StorageReader,
    StorageWriter,
)
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from meshstage._dcp_decode import decode
from meshstage._dcp_files import METADATA, THEIR_METADATA, Item, encode, header, tensor_bytes
from meshstage._publish import publish, sync_folder, write_synced
from meshstage.errors import CorruptData, InvalidArgument, InvalidState, NotFound

__all__ = ["Reader", "Writer"]


class Writer(StorageWriter):
    """Writes one safetensors file a rank, and at last ``metadata.json``.

    The folder has to be shared by all ranks. A save that replaces another leaves that as it is
    until its own metadata is there; then it removes the other's files, and of a save by PyTorch's
    own writer the ``.metadata``, so that nothing loads it. A save that fails or is cut off is never
    loaded; its ``data-*`` files may be left in the folder. What a save writes is on the disk when
    ``dcp.save`` returns. ``path`` may come from ``checkpoint_id`` instead.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self._path = None if path is None else Path(path)
        self._save_id = uuid.uuid4().hex

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        if checkpoint_id:
            self._path = Path(checkpoint_id)
        self._save_id = uuid.uuid4().hex

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if self._path is None:
            raise InvalidArgument("where to? Give Writer(path) a path, or save() a checkpoint_id")
        if not kwargs.get("use_collectives", True):
            raise InvalidArgument(
                "use_collectives=False is not supported: one metadata file describes all ranks' data"
            )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        self._path.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        future: Future[list[WriteResult]] = Future()
        future.set_result(self._write(plan, planner) if plan.items else [])
        return future

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        # Tensors by the size of their elements, so that each is aligned where the file is.
        blobs = [item for item in plan.items if item.type == WriteItemType.BYTE_IO]
        tensors = [item for item in plan.items if item.type != WriteItemType.BYTE_IO]
        tensors.sort(key=lambda item: -item.tensor_data.properties.dtype.itemsize)
        data = {item.index: _value(planner, item) for item in blobs}
        sizes = [_nbytes(item) for item in tensors] + [len(data[item.index]) for item in blobs]
        head = header(
            [(i.index, i.tensor_data.properties.dtype, i.tensor_data.chunk.sizes) for i in tensors]
            + [(i.index, torch.uint8, [len(data[i.index])]) for i in blobs],
            sizes,
        )
        # Made here: a planner that keeps plans hands out the plan of a save before, whose files are
        # those that load if this save does not end.
        name = f"data-{uuid.uuid4().hex}-{plan.storage_data}.safetensors"
        at, results = len(head), []

        def write(file) -> None:
            nonlocal at
            file.write(head)
            for item, nbytes in zip([*tensors, *blobs], sizes, strict=True):
                index = item.index
                content = data[index] if index in data else _tensor(planner, item)
                file.write(content)
                digest = zlib.crc32(content)
                results.append(WriteResult(index, nbytes, Item(name, at, nbytes, digest)))
                at += nbytes

        try:
            write_synced(self._path / name, write)
            sync_folder(self._path)
        except BaseException:
            (self._path / name).unlink(missing_ok=True)
            raise
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        items = {result.index: result.storage_data for of_rank in results for result in of_rank}
        for index in _indices(metadata):
            if index not in items:
                raise InvalidState(f"no rank wrote '{index.fqn}' at {index.offset}: nothing is published")
        metadata.storage_data = items
        metadata.storage_meta = self.storage_meta()
        text = encode(metadata, self._save_id)
        path = self._path / METADATA
        former = _files_of(path)
        publish(path, lambda file: file.write(text))
        theirs = self._path / THEIR_METADATA
        if theirs.exists():
            theirs.unlink()
            sync_folder(self._path)
        for name in former - {item.file for item in items.values()}:
            (self._path / name).unlink(missing_ok=True)

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=self._path, save_id=self._save_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return "://" not in os.fspath(checkpoint_id)


class Reader(StorageReader):
    """Reads what Writer wrote, into any sharding and any number of ranks.

    Every item's bytes are checked before a planner gets them. Objects that are no tensors are
    pickles of PyTorch's planner; they are loaded with ``weights_only``, which runs no code, unless
    ``trusted`` says that the folder may. Raises NotFound where no save was completed, CorruptData
    with the file's path where bytes are not what was written; torch wraps both in its
    CheckpointException. What the metadata or the files' sizes show is raised before any tensor
    changes; a digest that differs is not, and the tensors loaded before it have changed.
    """

    def __init__(self, path: str | os.PathLike | None = None, *, trusted: bool = False):
        self._path = None if path is None else Path(path)
        self._trusted = trusted
        self._items: dict[MetadataIndex, Item] = {}
        self._metadata: Metadata | None = None

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        if checkpoint_id:
            self._path = Path(checkpoint_id)

    def read_metadata(self) -> Metadata:
        if self._path is None:
            raise InvalidArgument("where from? Give Reader(path) a path, or load() a checkpoint_id")
        path = self._path / METADATA
        try:
            return decode(path.read_bytes(), path)
        except FileNotFoundError:
            refused = NotFound(_nothing_there(self._path))
        except CorruptData as error:
            refused = error
        if torch.__version__ < (2, 15):
            warnings.warn(str(refused), stacklevel=2)  # dcp.load's own error would not say why
        raise refused

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        self._metadata, self._items = metadata, metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, dict[MetadataIndex, list[ReadItem]]] = {}
        for read in plan.items:
            item = self._items[read.storage_index]
            by_file.setdefault(item.file, {}).setdefault(read.storage_index, []).append(read)
        for name, reads in by_file.items():  # before any tensor changes
            with _open(self._path / name) as file:
                for index in reads:
                    _check_range(file, self._path / name, index, self._items[index])
        for name, reads in by_file.items():
            path = self._path / name
            with _open(path) as file:
                for index in sorted(reads, key=lambda index: self._items[index].at):
                    content = _read(file, path, index, self._items[index])
                    for read in reads[index]:
                        self._give(read, planner, content)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @torch.no_grad()
    def _give(self, read: ReadItem, planner: LoadPlanner, content: bytearray) -> None:
        if read.type == LoadItemType.BYTE_IO:
            planner.load_bytes(read, self._checked(read, content))
            return
        described = self._metadata.state_dict_metadata[read.storage_index.fqn]
        dtype = described.properties.dtype
        sizes = next(c.sizes for c in described.chunks if c.offsets == read.storage_index.offset)
        if len(content) == 0:
            source = torch.empty(sizes, dtype=dtype)
        else:
            source = torch.frombuffer(content, dtype=torch.uint8).view(dtype).reshape(sizes)
        for dim, (offset, length) in enumerate(zip(read.storage_offsets, read.lengths, strict=True)):
            source = source.narrow(dim, offset, length)
        target = planner.resolve_tensor(read).detach()
        if target.size() != source.size():
            raise InvalidArgument(
                f"'{read.dest_index.fqn}' takes {tuple(target.size())} where the checkpoint has "
                f"{tuple(source.size())}"
            )
        target.copy_(source)
        planner.commit_tensor(read, target)

    def _checked(self, read: ReadItem, content: bytearray) -> io.BytesIO:
        """A pickle that runs no code. Written anew, so that no two readers of it can differ."""
        if self._trusted:
            return io.BytesIO(content)
        try:
            value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise InvalidArgument(
                f"'{read.storage_index.fqn}' is an object whose pickle may run code. Allow its class "
                "with torch.serialization.add_safe_globals, or, if you trust the folder, use "
                f"Reader(path, trusted=True): {error}"
            ) from None
        clean = io.BytesIO()
        torch.save(value, clean)
        clean.seek(0)
        return clean

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return Writer.validate_checkpoint_id(checkpoint_id)


def _indices(metadata: Metadata) -> Iterator[MetadataIndex]:
    for fqn, described in metadata.state_dict_metadata.items():
        if isinstance(described, BytesStorageMetadata):
            yield MetadataIndex(fqn)
        else:
            for chunk in described.chunks:
                yield MetadataIndex(fqn, chunk.offsets)


def _nbytes(item: WriteItem) -> int:
    return item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize


def _value(planner: SavePlanner, item: WriteItem) -> memoryview:
    return planner.resolve_data(item).getbuffer()


def _tensor(planner: SavePlanner, item: WriteItem) -> memoryview:
    tensor, fqn = planner.resolve_data(item).detach(), item.index.fqn
    planned = (item.tensor_data.properties.dtype, item.tensor_data.chunk.sizes)
    if (tensor.dtype, tensor.size()) != planned:
        raise InvalidArgument(f"'{fqn}' is {tensor.dtype}, {tuple(tensor.size())}; its plan says {planned}")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InvalidArgument(f"'{fqn}' is of layout {tensor.layout} and {tensor.dtype}: save its parts")
    if tensor.data_ptr() == 0 and tensor.numel() != 0:
        raise InvalidArgument(f"'{fqn}' is a {type(tensor).__qualname__} with elements and no memory")
    return tensor_bytes(tensor)


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise CorruptData(f"{path} is no file, and {METADATA} names it")
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise CorruptData(f"{path} is missing, and {METADATA} names it") from None


def _check_range(file: BinaryIO, path: Path, index: MetadataIndex, item: Item) -> None:
    has = os.fstat(file.fileno()).st_size
    if item.at + item.nbytes > has:
        raise CorruptData(
            f"{path} ends within '{index.fqn}': it has {has} bytes, and {METADATA} says {item.nbytes} at {item.at}"
        )


def _read(file: BinaryIO, path: Path, index: MetadataIndex, item: Item) -> bytearray:
    content = bytearray(item.nbytes)
    file.seek(item.at)
    got, view = 0, memoryview(content)
    while got < item.nbytes:
        n = file.readinto(view[got:])
        if not n:
            raise CorruptData(f"{path} was cut off within '{index.fqn}' while it was read")
        got += n
    if zlib.crc32(content) != item.crc32:
        raise CorruptData(f"{path}: the bytes of '{index.fqn}' at {item.at} are not those that were written")
    return content


def _files_of(path: Path) -> set[str]:
    """The data files of the save that is replaced. None where it is not one of ours."""
    try:
        return {item.file for item in decode(path.read_bytes(), path).storage_data.values()}
    except (FileNotFoundError, CorruptData):
        return set()


def _nothing_there(folder: Path) -> str:
    if (folder / THEIR_METADATA).exists():
        return f"{folder} was written by PyTorch's own writer: load it without storage_reader"
    if not folder.exists():
        return f"{folder} does not exist"
    return f"no save was completed in {folder}: it has no {METADATA}"
