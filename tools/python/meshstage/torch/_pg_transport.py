"""PGTransport and ReplicationStager: take the place of torch.distributed.checkpoint's, over a process group of torch's."""

import os
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardMetadata
from torch.distributed.checkpoint import _pg_transport as _theirs
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

from meshstage._publish import publish
from meshstage.errors import InvalidArgument, StructureMismatch

_LENGTH, _STRUCTURE, _STORAGES = 1, 2, 3  # tags; that of storage i is _STORAGES + i


@dataclass
class _View:
    """A tensor on the wire: a view of a storage, all in elements."""

    storage: int
    dtype: torch.dtype
    size: tuple
    stride: tuple
    offset: int


@dataclass
class _Distributed:
    local: _View
    spec: Any


@dataclass
class _Sharded:
    shards: list[_View]
    metadata: list[ShardMetadata]
    whole: Any


@dataclass
class _Structure:
    tree: Any
    paths: list
    leaves: list[Any]
    nbytes: list[int]  # of each distinct storage
    empty_too: bool = False  # whether storages without bytes are messages, too


class _Sent:
    """A state dict as what is sent: each distinct storage once."""

    def __init__(self, state_dict: Any):
        self.storages: list[torch.UntypedStorage] = []
        self._numbers: dict[int, int] = {}
        leaves, tree = tree_flatten_with_path(state_dict)
        views = [self._leaf(path, leaf) for path, leaf in leaves]
        self.structure = _Structure(
            tree, [path for path, _ in leaves], views, [s.nbytes() for s in self.storages]
        )

    def _leaf(self, path, leaf: Any) -> Any:
        if isinstance(leaf, DTensor):
            return _Distributed(self._view(path, leaf._local_tensor), leaf._spec)
        if isinstance(leaf, ShardedTensor):
            shards = leaf.local_shards()
            views = [self._view(path, shard.tensor) for shard in shards]
            return _Sharded(views, [shard.metadata for shard in shards], leaf.metadata())
        return self._view(path, leaf) if isinstance(leaf, torch.Tensor) else leaf

    def _view(self, path, tensor: torch.Tensor) -> _View:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
            raise InvalidArgument(f"the tensor at {_name(path)} is a {type(tensor).__qualname__} "
                                  f"of layout {tensor.layout}: its bytes alone do not give it back")  # fmt: skip
        if tensor.is_conj() or tensor.is_neg() or tensor.is_quantized:
            raise InvalidArgument(f"the tensor at {_name(path)} is conjugate, negative or quantized")
        if tensor.is_nested:
            raise InvalidArgument(f"the tensor at {_name(path)} is nested: send its parts")
        if tensor.data_ptr() == 0 and tensor.numel() != 0:
            raise InvalidArgument(f"the tensor at {_name(path)} has elements and no memory")
        storage = tensor.untyped_storage()
        number = self._numbers.setdefault(storage._cdata, len(self.storages))
        if number == len(self.storages):
            self.storages.append(storage)
        return _View(number, tensor.dtype, tuple(tensor.size()), tensor.stride(),
                     tensor.storage_offset())  # fmt: skip


def _from_theirs(meta: _theirs._StateDictMeta) -> _Structure:
    """What PyTorch's PGTransport sends: each tensor is a storage of its own."""
    nbytes: list[int] = []

    def view(tensor: _theirs._TensorMeta) -> _View:
        nbytes.append(tensor.nbytes)
        return _View(len(nbytes) - 1, tensor.dtype, tuple(tensor.shape), tensor.stride,
                     tensor.storage_offset)  # fmt: skip

    def leaf(value: Any) -> Any:
        if isinstance(value, _theirs._TensorMeta):
            return view(value)
        if isinstance(value, _theirs._DTensorMeta):
            return _Distributed(view(value.local), value.spec)
        if isinstance(value, _theirs._ShardedTensorMeta):
            return _Sharded([view(shard) for shard in value.local_shards_meta],
                            value.local_shards_shard_metadata, value.sharded_tensor_metadata)  # fmt: skip
        return value

    leaves = [leaf(value) for value in meta.non_tensor_leaves]
    return _Structure(meta.treespec, meta.paths, leaves, nbytes, empty_too=True)


class PGTransport:
    """Sends state dicts over ``pg`` and receives them, as PyTorch's class of the name.

    Each distinct storage travels once, so tensors that share memory share it at the receiver.
    ``state_dict()`` gives tensors that are received in place; one of another size, type or place in
    its storage raises StructureMismatch with its path. Without it the result is on the CPU. No wait
    is longer than ``timeout``; an error of the group passes as it is. The sender may also be PyTorch's
    class; it cannot receive from this one.
    """

    def __init__(
        self,
        pg: dist.ProcessGroup,
        timeout: timedelta,
        device: torch.device,
        state_dict: Callable[[], Any] | None = None,
    ):
        self._pg = pg
        self._timeout = timeout
        self._device = torch.device(device)
        self._state_dict = state_dict

    def send_checkpoint(self, dst_ranks: list[int], state_dict: Any) -> None:
        self._wait(self._send(dst_ranks, state_dict))

    def recv_checkpoint(self, src_rank: int) -> Any:
        return self._receive(src_rank)

    def _send(self, ranks: list[int], state_dict: Any) -> list[tuple]:
        """What is on its way, each with what it reads."""
        sent = _Sent(state_dict)
        text = pickle.dumps(sent.structure)
        structure = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(self._device)
        length = torch.tensor([len(text)], dtype=torch.int64, device=self._device)
        messages = [(_LENGTH, length), (_STRUCTURE, structure)]
        works = [(self._pg.send([t], rank, tag), t) for tag, t in messages for rank in ranks]
        for i, storage in enumerate(sent.storages):
            if storage.nbytes() > 0:
                data = _bytes(storage).to(self._device)
                works += [(self._pg.send([data], rank, _STORAGES + i), data) for rank in ranks]
                if data.device != storage.device:
                    self._wait(works)  # one copy at a time on the device
                    works = []
        return works

    def _receive(self, rank: int) -> Any:
        length = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._wait([(self._pg.recv([length], rank, _LENGTH), length)])
        text = torch.empty(int(length.item()), dtype=torch.uint8, device=self._device)
        self._wait([(self._pg.recv([text], rank, _STRUCTURE), text)])
        structure = pickle.loads(text.cpu().numpy().tobytes())
        if isinstance(structure, _theirs._StateDictMeta):
            structure = _from_theirs(structure)
        into = _Into(self._state_dict() if self._state_dict else None, structure, self._device)
        works, data = [], []
        for i, nbytes in enumerate(structure.nbytes):
            place = into.place(i)
            if nbytes > 0 or structure.empty_too:
                works.append((self._pg.recv([place], rank, _STORAGES + i), place))
                if not into.in_place(i):
                    self._wait(works)
                    works, place = [], place.cpu()
            data.append(place.untyped_storage())
        self._wait(works)
        leaves = [self._leaf(leaf, data) for leaf in structure.leaves]
        return tree_unflatten(into.finish(leaves), structure.tree)

    def _leaf(self, leaf: Any, data: list[torch.UntypedStorage]) -> Any:
        if isinstance(leaf, _View):
            return _tensor(leaf, data)
        if isinstance(leaf, _Distributed):
            return DTensor(_tensor(leaf.local, data), leaf.spec, requires_grad=False)
        if isinstance(leaf, _Sharded):
            return _sharded_here(leaf, [_tensor(view, data) for view in leaf.shards])
        return leaf

    def _wait(self, works: list[tuple]) -> None:
        for work, _ in works:
            work.wait(self._timeout)


class _Into:
    """Where the received storages go: into those of the receiver's state, or into new memory."""

    def __init__(self, state_dict: Any, structure: _Structure, device: torch.device):
        self._nbytes = structure.nbytes
        self._device = device
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._tensors: dict[int, torch.Tensor] = {}  # the receiver's own, by the leaf's number
        # The receiver's, of storages that the sender shared; by leaf and place in it.
        self._others: list[tuple[torch.Tensor, int, int]] = []
        mine = dict(tree_flatten_with_path(state_dict)[0]) if state_dict is not None else {}
        numbers: dict[int, int] = {}
        for i, (path, leaf) in enumerate(zip(structure.paths, structure.leaves, strict=True)):
            tensor = mine.get(path)
            if not isinstance(tensor, torch.Tensor) or not isinstance(leaf, (_View, _Distributed, _Sharded)):
                continue
            locals_, views = _same_part(path, tensor, leaf)
            if any(local.device.type != device.type for local in locals_):
                continue
            for j, (local, view) in enumerate(zip(locals_, views, strict=True)):
                self._check(path, local, view)
                storage = local.untyped_storage()
                if numbers.setdefault(storage._cdata, view.storage) != view.storage:
                    raise _mismatch(path, "shares memory, the sender's does not")
                first = self._storages.setdefault(view.storage, storage)
                if first._cdata != storage._cdata:
                    self._others.append((local, i, j))
            self._tensors[i] = tensor

    def _check(self, path, mine: torch.Tensor, view: _View) -> None:
        got = (view.dtype, view.size, view.stride, view.offset, self._nbytes[view.storage])
        have = (mine.dtype, tuple(mine.size()), mine.stride(), mine.storage_offset(),
                mine.untyped_storage().nbytes())  # fmt: skip
        if got != have:
            raise _mismatch(
                path, f"has dtype, shape, strides, offset and bytes {have}, the sender's has {got}"
            )

    def in_place(self, i: int) -> bool:
        return i in self._storages

    def place(self, i: int) -> torch.Tensor:
        if i in self._storages:
            return _bytes(self._storages[i])
        return torch.empty(self._nbytes[i], dtype=torch.uint8, device=self._device)

    @torch.no_grad()
    def finish(self, leaves: list[Any]) -> list[Any]:
        """The leaves, the receiver's own tensors among them."""
        for local, i, j in self._others:
            local.copy_(_locals(leaves[i])[j])
        return [self._tensors.get(i, leaf) for i, leaf in enumerate(leaves)]


class ReplicationStager:
    """An AsyncStager that gives each rank's state to rank (rank + world size // 2) % world size of
    ``pg``, and returns what this rank got; any world size. The received state also goes to
    ``storage_dir``, as a file that torch.load reads, published whole."""

    _synchronize_after_execute = False

    def __init__(
        self,
        pg: dist.ProcessGroup,
        timeout: timedelta = timedelta(minutes=30),
        device: torch.device = torch.device("cpu"),
        storage_dir: str | None = None,
    ):
        self._pg = pg
        self._timeout = timeout
        self._device = torch.device(device)
        self._transport = PGTransport(pg, timeout, device, None)
        self._storage_dir = storage_dir or tempfile.mkdtemp(prefix="replication_stager_")
        os.makedirs(self._storage_dir, exist_ok=True)

    @property
    def should_synchronize_after_execute(self) -> bool:
        return self._synchronize_after_execute

    def stage(self, state_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        rank, world_size = self._pg.rank(), self._pg.size()
        if world_size == 1:
            return state_dict
        to, source = (rank + world_size // 2) % world_size, (rank - world_size // 2) % world_size
        if self._device.type == "cpu":  # both directions at once
            sent = self._transport._send([to], state_dict)
            received = self._transport.recv_checkpoint(source)
            self._transport._wait(sent)
        elif rank < to:  # a device's group does what is issued in order
            self._transport.send_checkpoint([to], state_dict)
            received = self._transport.recv_checkpoint(source)
        else:
            received = self._transport.recv_checkpoint(source)
            self._transport.send_checkpoint([to], state_dict)
        publish(self._get_persisted_path(rank, source), lambda file: torch.save(received, file))
        return received

    def synchronize_staging(self) -> None:
        """Does nothing: stage() returns when all is there."""

    def close(self) -> None:
        """Leaves the files for whoever recovers from them."""

    def _get_persisted_path(self, current_rank: int, partner_rank: int) -> str:
        name = f"rank_{current_rank}_replica_partner_{partner_rank}.pt"
        return os.path.join(self._storage_dir, name)


def _locals(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of this rank that a tensor of any kind consists of."""
    if isinstance(tensor, ShardedTensor):
        return [shard.tensor for shard in tensor.local_shards()]
    return [tensor._local_tensor if isinstance(tensor, DTensor) else tensor]


def _same_part(path, mine: torch.Tensor, leaf: Any) -> tuple[list[torch.Tensor], list[_View]]:
    """The receiver's local tensors and the sender's, or StructureMismatch where they are not the
    same part of the same tensor: the receiver's tensor would say that its bytes belong elsewhere."""
    if isinstance(leaf, _Distributed):
        if not isinstance(mine, DTensor):
            raise _mismatch(path, f"is a {type(mine).__qualname__}, the sender's is a DTensor")
        have, got = (
            (spec.placements, tuple(spec.shape), spec.mesh.get_coordinate())
            for spec in (mine._spec, leaf.spec)
        )
        views = [leaf.local]
    elif isinstance(leaf, _Sharded):
        if not isinstance(mine, ShardedTensor):
            raise _mismatch(path, f"is a {type(mine).__qualname__}, the sender's is a ShardedTensor")
        have = [_box(shard.metadata) for shard in mine.local_shards()]
        got = [_box(metadata) for metadata in leaf.metadata]
        views = leaf.shards
    else:
        if isinstance(mine, (DTensor, ShardedTensor)):
            raise _mismatch(path, f"is a {type(mine).__qualname__}, the sender's is a plain tensor")
        have = got = None
        views = [leaf]
    if have != got:
        raise _mismatch(path, f"is the part {have}, the sender's is {got}")
    return _locals(mine), views


def _box(metadata: ShardMetadata) -> tuple:
    return tuple(metadata.shard_offsets), tuple(metadata.shard_sizes)


def _sharded_here(leaf: _Sharded, tensors: list[torch.Tensor]) -> ShardedTensor:
    """The sender's shards as this rank's: in what describes the whole, the two ranks change places."""
    here = dist.get_rank()
    sent = {_box(metadata): tensor for metadata, tensor in zip(leaf.metadata, tensors, strict=True)}
    there = leaf.metadata[0].placement.rank() if leaf.metadata else here
    described = []
    for was in leaf.whole.shards_metadata:
        placement = was.placement
        if _box(was) in sent:
            placement = f"rank:{here}/{sent[_box(was)].device}"
        elif placement.rank() == here:
            placement = f"rank:{there}/{placement.device()}"
        described.append(ShardMetadata(was.shard_offsets, was.shard_sizes, placement))
    properties = replace(leaf.whole.tensor_properties, pin_memory=False)
    whole = replace(leaf.whole, shards_metadata=described, tensor_properties=properties)
    shards = [Shard(tensor=sent[_box(m)], metadata=m) for m in described if _box(m) in sent]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        local_shards=shards, sharded_tensor_metadata=whole
    )


def _mismatch(path, why: str) -> StructureMismatch:
    error = StructureMismatch(f"the tensor at {_name(path)} {why}")
    error.path = _name(path)
    return error


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _tensor(view: _View, data: list[torch.UntypedStorage]) -> torch.Tensor:
    storage = data[view.storage]
    tensor = torch.empty(0, dtype=view.dtype, device=storage.device)
    return tensor.set_(storage, view.offset, view.size, view.stride)


def _name(path) -> str:
    return "'" + ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) + "'"
