"""Staged storages that other processes can map.

A stager's shared memory is one mapping for many storages, so torch's own shared storages, a file
each, cannot stand for it. SharedStorage is torch's storage over our memory, with the methods that
must not believe that it is torch's.
"""

import ctypes
import weakref
from multiprocessing.reduction import ForkingPickler

import torch

from meshstage import _meshstage


class SharedStorage(torch.UntypedStorage):
    """A storage over shared memory of meshstage. Made by ``adopt``, never by its constructor."""

    #: where other processes find its first byte: a file's path, and the offset in it
    location: tuple[str, int]

    def __new__(cls, *args, **kwargs):
        # torch makes copies by type(storage)(nbytes): those are ordinary storages.
        return torch.UntypedStorage(*args, **kwargs)

    def is_shared(self) -> bool:
        return True

    def share_memory_(self):
        return self

    def cpu(self):
        return self

    def clone(self):
        return torch.UntypedStorage(self.nbytes()).copy_(self)

    def __deepcopy__(self, memo):
        known = memo.setdefault("torch", {})
        if self._cdata not in known:
            known[self._cdata] = self.clone()
        return known[self._cdata]

    def __reduce__(self):
        # Outside multiprocessing a pickle must stand alone: bytes, not a handle.
        return _from_bytes, (ctypes.string_at(self.data_ptr(), self.nbytes()),)


def _from_bytes(data: bytes) -> torch.UntypedStorage:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage().clone()


def untyped(capsule) -> torch.UntypedStorage:
    """The storage of a DLPack capsule of bytes."""
    return torch.from_dlpack(_Capsule(capsule)).untyped_storage()


def adopt(storage: torch.UntypedStorage, location: tuple[str, int]) -> SharedStorage:
    """Makes a storage over shared memory say that it is: the same object, with another class."""
    storage.__class__ = SharedStorage
    storage.location = location
    return storage


class _Capsule:
    """What torch.from_dlpack takes, on a capsule that exists already."""

    def __init__(self, capsule):
        self._capsule = capsule

    def __dlpack__(self, **_):
        return self._capsule

    def __dlpack_device__(self):
        return (1, 0)  # the CPU


# What came from another process, so that tensors that shared a storage there share one here.
_received: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def _rebuild(file: str, offset: int, nbytes: int):
    key = (file, offset, nbytes)
    storage = _received.get(key)
    if storage is None:
        storage = adopt(untyped(_meshstage.map_shared(file, offset, nbytes)), (file, offset))
        _received[key] = storage
    return storage


def _reduce(storage: SharedStorage):
    file, offset = storage.location
    return _rebuild, (file, offset, storage.nbytes())


ForkingPickler.register(SharedStorage, _reduce)
