"""StateDictStager: takes the place of torch.distributed.checkpoint's."""

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from meshstage import _meshstage
from meshstage.errors import InvalidState
from meshstage.torch import _cuda
from meshstage.torch._plan import Differs, Plan, known_types
from meshstage.torch._shared import adopt, untyped
from meshstage.torch._walk import ATOMIC, Entry, Walk

_KNOWN_BATCHES = 4  # as many structures as the C++ stager knows at a time


class _SourceRef(weakref.ref):
    """A weak reference that knows under which number its storage was remembered."""

    __slots__ = ("cdata",)

    def __new__(cls, storage, callback, cdata):
        self = super().__new__(cls, storage, callback)
        self.cdata = cdata
        return self

    def __init__(self, storage, callback, cdata):
        super().__init__(storage, callback)


class StateDictStager:
    """Copies state dicts into host memory, storage by storage: each distinct one whole, once.

    What is not a tensor is copied as ``copy.deepcopy`` does. Staged tensors share where the
    sources did, and have their shapes, strides and offsets. Staging a storage again refreshes its
    copy, so earlier results show the new bytes too; a storage that is gone gives up its copy, which
    lives on in results that have it.

    ``stage`` returns when everything on the CPU and on CUDA devices is copied; copies come behind
    the work on torch's current streams. Tensors of other devices, and of CUDA's where meshstage
    cannot use it, are copied by torch, with ``non_blocking`` as given. Threads: one at a time.
    """

    def __init__(
        self,
        pin_memory: bool = False,
        share_memory: bool = False,
        pin_memory_min_bytes: int = 5,
    ):
        if pin_memory and not torch.cuda.is_available():
            warnings.warn(
                "pin_memory is ignored: page-locking memory needs CUDA, which is not available",
                stacklevel=2,
            )
            pin_memory = False
        self.pin_memory = pin_memory
        self.share_memory = share_memory
        self.pin_memory_min_bytes = pin_memory_min_bytes
        #: staged storages by their living sources
        self._cached_storage_mapping = WeakIdKeyDictionary()
        self._entries: dict[int, Entry] = {}
        self._batches: list[tuple[list[Entry], Any]] = []
        self._plans: list[Plan] = []
        self._pins = pin_memory and _cuda.problem() is None  # else torch does
        self._stager = _meshstage.StorageStager(
            share_memory=share_memory,
            pin_for=torch.cuda.current_device() if self._pins else -1,
            pin_min_bytes=max(pin_memory_min_bytes, 1),
        )
        weak_self = weakref.ref(self)

        def forget(ref: _SourceRef) -> None:
            stager = weak_self()
            if stager is None:
                return
            entry = stager._entries.get(ref.cdata)
            if entry is not None and entry.ref is ref:
                del stager._entries[ref.cdata]
                stager._forget_structures()

        self._forget = forget

    @torch.no_grad()
    def stage(self, state_dict: Any, non_blocking: bool = False) -> Any:
        """The copy. Raises InvalidArgument, with the path, for a tensor that cannot be staged."""
        result, finish = self.begin(state_dict, non_blocking)
        finish()
        return result

    @torch.no_grad()
    def begin(self, state_dict: Any, non_blocking: bool = False) -> tuple[Any, Callable[[], None]]:
        """The first half of ``stage``: reads the state, and raises what is wrong with it. The
        second half, which may be called on another thread, copies the bytes; until it has returned
        the result's tensors are not to be used, and no other staging is to begin. The state's
        containers may change at once."""
        if self._stager is None:
            raise InvalidState("the stager is closed")
        for plan in self._plans:
            try:
                result, sources, results = plan.match(state_dict, self._copy_attributes)
            except Differs:
                continue
            streams = _cuda.Streams()
            for device in plan.devices:
                streams.order(device)
            return result, functools.partial(self._replay, plan, sources, results)
        walk = Walk(self, {}, non_blocking)
        result = walk.copy(state_dict, None)
        plan = None
        if walk.batches == 0 and not walk.by_torch:
            plan = Plan.compile(_types(), state_dict, result, walk.seen)

        def finish() -> None:
            walk.flush()
            if plan is not None and walk.batches == 1:
                self._remember(plan, walk.seen)

        return result, finish

    @torch.no_grad()
    def deepcopy_with_tensor_offload(self, x, memo=None, _nil=(), non_blocking=False):
        """As ``stage``, for one object of a deep copy that the caller does: ``memo`` is its."""
        return self._stage(x, {} if memo is None else memo, non_blocking)

    def close(self) -> None:
        """Lets go of the memory; results keep theirs. Only close() may be called afterwards."""
        self._cached_storage_mapping.clear()
        self._entries.clear()
        self._forget_structures()
        if self._stager is not None:
            self._stager.clear()
            self._stager = None

    def _stage(self, x, memo, non_blocking):
        if self._stager is None:
            raise InvalidState("the stager is closed")
        walk = Walk(self, memo, non_blocking)
        result = walk.copy(x, None)
        walk.flush()
        return result

    def _replay(self, plan: Plan, sources: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        """Copies what a plan has matched; holding ``sources`` keeps them until that is done."""
        moved = self._stage_batch(plan.entries, plan.batch)
        if not moved:
            return
        self._forget_structures()  # what it makes results of is on the old places
        places = {plan.entries[i].ref.cdata: plan.entries[i].staged for i in moved}
        for source, result in zip(sources, results):
            place = places.get(source.untyped_storage()._cdata)
            if place is not None:
                offset, size, stride = result.storage_offset(), result.size(), result.stride()
                result.set_(place, offset, size, stride)

    def _remember(self, plan: Plan, entries: dict[int, Entry]) -> None:
        plan.settle(*self._batches[0])
        self._plans.insert(0, plan)
        del self._plans[_KNOWN_BATCHES:]
        # A storage that died before the plan was in the list could not take it out.
        if any(self._entries.get(cdata) is not entry for cdata, entry in entries.items()):
            self._forget_structures()

    def _forget_structures(self) -> None:
        self._batches.clear()
        self._plans.clear()

    def _copy_attributes(self, x, y) -> None:
        walk = Walk(self, {}, False)
        for name, value in x.__dict__.items():
            setattr(y, name, walk.copy(value, (None, name)))
        if walk.seen:
            raise Differs

    def _entry(self, storage: torch.UntypedStorage, cdata: int) -> Entry:
        entry = self._entries.get(cdata)
        if (
            entry is not None
            and entry.ref() is storage
            and entry.address == storage.data_ptr()
            and entry.nbytes == storage.nbytes()
        ):
            return entry
        entry = Entry(storage)
        entry.ref = _SourceRef(storage, self._forget, cdata)
        if cdata in self._entries:  # resized: its batches copy what is not there any more
            self._forget_structures()
        self._entries[cdata] = entry
        return entry

    def _copied_by_torch(self, storage: torch.UntypedStorage) -> bool:
        if storage.device.type == "cuda":
            return _cuda.copied_by_torch()
        return storage.device.type != "cpu" or (
            self.pin_memory and not self._pins and storage.nbytes() >= self.pin_memory_min_bytes
        )

    def _copy_by_torch(self, entry: Entry, storage: torch.UntypedStorage, non_blocking: bool):
        if entry.staged is None:
            if self.share_memory:
                entry.staged = torch.UntypedStorage._new_shared(entry.nbytes, device="cpu")
            else:
                entry.staged = torch.UntypedStorage(entry.nbytes, device="cpu")
            if self.pin_memory and entry.nbytes >= self.pin_memory_min_bytes:
                _pin(entry.staged)
            self._cached_storage_mapping[storage] = entry.staged
        entry.staged.copy_(storage, non_blocking=non_blocking)

    def _copy(self, entries: list[Entry]) -> None:
        """Stages these, and gives those whose place is another one a new storage."""
        batch = next((b for known, b in self._batches if known == entries), None)
        if batch is None:
            batch = _meshstage.StorageBatch([entry.source for entry in entries])
            self._batches.insert(0, (entries, batch))
            del self._batches[_KNOWN_BATCHES:]
        self._stage_batch(entries, batch)

    def _stage_batch(self, entries: list[Entry], batch) -> list[int]:
        """Copies, and makes new storages on the places that are other ones now; their indexes.
        A storage is also made anew where torch has put another memory under the old one, which is
        what share_memory_() does, and sending it to another process."""
        moved = self._stager.stage(batch)
        if not _where_it_was(entries):
            replaced = [
                i for i, e in enumerate(entries)
                if e.staged is None or e.staged.data_ptr() != e.place
            ]  # fmt: skip
            moved = sorted({*moved, *replaced})
        for i in moved:
            entry = entries[i]
            entry.staged = untyped(batch.capsule(i))
            entry.place = entry.staged.data_ptr()
            location = batch.location(i)
            if location is not None:
                adopt(entry.staged, location)
            storage = entry.ref()
            if storage is not None:
                self._cached_storage_mapping[storage] = entry.staged
        return moved


@functools.cache
def _types():
    return known_types(ATOMIC)


def _where_it_was(entries: list[Entry]) -> bool:
    """Each staged storage is there, and on its place."""
    try:
        at = list(map(torch.UntypedStorage.data_ptr, [entry.staged for entry in entries]))
    except TypeError:  # None
        return False
    return at == [entry.place for entry in entries]


def _pin(storage: torch.UntypedStorage) -> None:
    from torch.cuda import _pin_memory_utils

    _pin_memory_utils.pin_memory(storage.data_ptr(), storage.nbytes())
    unpin = weakref.finalize(storage, _pin_memory_utils.unpin_memory, storage.data_ptr())
    unpin.atexit = False  # the CUDA context may be gone then
