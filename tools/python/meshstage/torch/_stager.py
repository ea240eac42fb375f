"""StateDictStager: takes the place of torch.distributed.checkpoint's."""

import collections
import copyreg
import enum
import functools
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.weak import WeakIdKeyDictionary

from meshstage import _meshstage
from meshstage.errors import InvalidArgument, InvalidState
from meshstage.torch import _cuda
from meshstage.torch._plan import PLAIN_TENSORS, Differs, Plan
from meshstage.torch._shared import adopt, untyped

_NONE = object()
_ATOMIC = frozenset(
    {
        type(None), int, float, bool, complex, bytes, str, type, range, property, weakref.ref,
        types.CodeType, types.BuiltinFunctionType, types.FunctionType, types.ModuleType,
        type(Ellipsis), type(NotImplemented), torch.dtype, torch.device, torch.layout,
        torch.memory_format,
    }
)  # fmt: skip
_PLAIN = PLAIN_TENSORS
_KNOWN_BATCHES = 4  # as many structures as the C++ stager knows at a time


class _Entry:
    """A source storage, by its identity, and the storage that it is staged to."""

    __slots__ = ("address", "nbytes", "device", "source", "staged", "place", "ref")

    def __init__(self, storage: torch.UntypedStorage):
        self.address = storage.data_ptr()
        self.nbytes = storage.nbytes()
        self.device = _cuda.number(storage.device)
        self.source = _meshstage.SourceStorage(self.address, self.nbytes, self.device)
        self.staged: torch.UntypedStorage | None = None
        self.place = -1  # where that storage's bytes are staged to
        self.ref: weakref.ref | None = None


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
        self._entries: dict[int, _Entry] = {}
        self._batches: list[tuple[list[_Entry], Any]] = []
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
        walk = _Walk(self, {}, non_blocking)
        result = walk.copy(state_dict, None)
        plan = None
        if walk.batches == 0 and not walk.by_torch:
            plan = Plan.compile(_ATOMIC, state_dict, result, walk.seen)

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
        walk = _Walk(self, memo, non_blocking)
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

    def _remember(self, plan: Plan, entries: dict[int, _Entry]) -> None:
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
        walk = _Walk(self, {}, False)
        for name, value in x.__dict__.items():
            setattr(y, name, walk.copy(value, (None, name)))
        if walk.seen:
            raise Differs

    def _entry(self, storage: torch.UntypedStorage, cdata: int) -> _Entry:
        entry = self._entries.get(cdata)
        if (
            entry is not None
            and entry.ref() is storage
            and entry.address == storage.data_ptr()
            and entry.nbytes == storage.nbytes()
        ):
            return entry
        entry = _Entry(storage)
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

    def _copy_by_torch(self, entry: _Entry, storage: torch.UntypedStorage, non_blocking: bool):
        if entry.staged is None:
            if self.share_memory:
                entry.staged = torch.UntypedStorage._new_shared(entry.nbytes, device="cpu")
            else:
                entry.staged = torch.UntypedStorage(entry.nbytes, device="cpu")
            if self.pin_memory and entry.nbytes >= self.pin_memory_min_bytes:
                _pin(entry.staged)
            self._cached_storage_mapping[storage] = entry.staged
        entry.staged.copy_(storage, non_blocking=non_blocking)

    def _copy(self, entries: list[_Entry]) -> None:
        """Stages these, and gives those whose place is another one a new storage."""
        batch = next((b for known, b in self._batches if known == entries), None)
        if batch is None:
            batch = _meshstage.StorageBatch([entry.source for entry in entries])
            self._batches.insert(0, (entries, batch))
            del self._batches[_KNOWN_BATCHES:]
        self._stage_batch(entries, batch)

    def _stage_batch(self, entries: list[_Entry], batch) -> list[int]:
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


class _Walk:
    """One staging: a deep copy whose tensors are filled in by ``flush``.

    Storages are copied together, at the end or before code of somebody else could read them.
    """

    def __init__(self, stager: StateDictStager, memo: dict, non_blocking: bool):
        self._stager = stager
        self._memo = memo
        self._non_blocking = non_blocking
        self.seen: dict[int, _Entry] = {}  # by the storage's number
        self.batches = 0  # were copied
        self.by_torch = False  # some were
        self._alive: list[Any] = []  # what the memo and the entries name by number
        self._pending: list[_Entry] = []
        self._streams = _cuda.Streams()
        self._late: list[tuple] = []

    def copy(self, x, path):
        """``path`` is (path of the parent, key), or None for the root."""
        cls = type(x)
        if cls in _ATOMIC:
            return x
        y = self._memo.get(id(x), _NONE)
        if y is not _NONE:
            return y
        if isinstance(x, torch.Tensor):
            y = self._tensor(x, path)
        else:
            y = _COPIERS.get(cls, _Walk._object)(self, x, path)
        if y is not x:
            self._remember(x, y)
        return y

    def flush(self) -> None:
        """Copies the bytes of what was met so far."""
        if self._pending:
            pending, self._pending = self._pending, []
            self._stager._copy(pending)
            self.batches += 1
        late, self._late = self._late, []
        for y, entry, offset, size, stride, conj, neg in late:
            if entry.staged is None:  # of no bytes
                entry.staged = torch.UntypedStorage(0)
                self._stager._cached_storage_mapping[entry.ref()] = entry.staged
            y.set_(entry.staged, offset, size, stride)
            if conj:
                torch._C._set_conj(y, True)
            if neg:
                torch._C._set_neg(y, True)

    def _remember(self, x, y) -> None:
        self._memo[id(x)] = y
        self._alive.append(x)

    # Containers.

    def _dict(self, x, path):
        return self._fill(x, {}, path)

    def _fill(self, x, y, path):
        self._remember(x, y)
        copy = self.copy
        for key, value in x.items():
            y[key if type(key) in _ATOMIC else copy(key, path)] = copy(value, (path, key))
        return y

    def _ordered_dict(self, x, path):
        y = self._fill(x, collections.OrderedDict(), path)
        for name, value in x.__dict__.items():  # state_dict()'s _metadata
            setattr(y, name, self.copy(value, (path, name)))
        return y

    def _default_dict(self, x, path):
        return self._fill(x, collections.defaultdict(x.default_factory), path)

    def _list(self, x, path):
        y: list = []
        self._remember(x, y)
        for i, value in enumerate(x):
            y.append(self.copy(value, (path, i)))
        return y

    def _tuple(self, x, path):
        y = [self.copy(value, (path, i)) for i, value in enumerate(x)]
        known = self._memo.get(id(x), _NONE)  # a tuple that holds a list that holds the tuple
        if known is not _NONE:
            return known
        return x if all(a is b for a, b in zip(x, y)) else tuple(y)

    def _method(self, x, path):
        return types.MethodType(x.__func__, self.copy(x.__self__, (path, "__self__")))

    # Other objects, by the protocol of copy.deepcopy.

    def _object(self, x, path):
        cls = type(x)
        if issubclass(cls, (type, enum.Enum)):
            return x
        if isinstance(x, torch.UntypedStorage):
            return self._storage(x, path)
        copier = getattr(x, "__deepcopy__", None)
        if copier is not None:
            self.flush()
            return copier(self._memo)
        reducer = copyreg.dispatch_table.get(cls)
        reduced = reducer(x) if reducer is not None else x.__reduce_ex__(4)
        if isinstance(reduced, str):
            return x
        return self._reconstruct(x, path, *reduced)

    def _reconstruct(self, x, path, function, arguments, state=None, items=None, pairs=None,
                     set_state=None):  # fmt: skip
        arguments = tuple(self.copy(a, (path, f"argument {i}")) for i, a in enumerate(arguments))
        plain = function is copyreg.__newobj__ and type(x).__new__ is object.__new__
        if not plain:
            self.flush()
        y = function(*arguments)
        self._remember(x, y)
        if state is not None:
            self._set_state(y, self._state(state, path), set_state)
        for i, item in enumerate(items or ()):
            y.append(self.copy(item, (path, i)))
        for key, value in pairs or ():
            y[self.copy(key, path)] = self.copy(value, (path, key))
        return y

    def _state(self, state, path):
        if type(state) is dict:  # its keys are the object's attributes, and part of the path
            return {name: self.copy(value, (path, name)) for name, value in state.items()}
        if type(state) is tuple and len(state) == 2:
            return tuple(self._state(part, path) for part in state)
        return self.copy(state, path)

    def _set_state(self, y, state, set_state):
        if set_state is not None or hasattr(y, "__setstate__"):
            self.flush()
            set_state(y, state) if set_state is not None else y.__setstate__(state)
            return
        slots = None
        if isinstance(state, tuple) and len(state) == 2:
            state, slots = state
        if state is not None:
            y.__dict__.update(state)
        for name, value in (slots or {}).items():
            object.__setattr__(y, name, value)  # a frozen dataclass with slots, too

    # Tensors and storages.

    def _storage(self, x: torch.UntypedStorage, path):
        entry = self._take(x, path)
        self.flush()
        return entry.staged

    def _take(self, storage: torch.UntypedStorage, path) -> _Entry:
        cdata = storage._cdata
        entry = self.seen.get(cdata)
        if entry is None:
            if storage.device.type == "meta":
                raise _refused(path, "is on the meta device: it has no bytes")
            entry = self._stager._entry(storage, cdata)
            self.seen[cdata] = entry
            self._alive.append(storage)
            if entry.nbytes == 0:
                pass
            elif self._stager._copied_by_torch(storage):
                self.by_torch = True
                self._stager._copy_by_torch(entry, storage, self._non_blocking)
            else:
                if entry.device >= 0:
                    self._streams.order(entry.device)
                self._pending.append(entry)
        return entry

    def _tensor(self, x: torch.Tensor, path):
        cls = type(x)
        if cls not in _PLAIN:
            if is_traceable_wrapper_subclass(x):
                return self._wrapper(x, path)
            if hasattr(x, "trigger_wait"):
                return self.copy(x.trigger_wait(), path)
        if x.layout != torch.strided:
            raise _refused(path, f"has layout {x.layout}: stage its parts as dense tensors")
        if x.is_nested:
            raise _refused(path, "is nested and strided: use layout torch.jagged, or stage its parts")
        if x.is_quantized:
            raise _refused(path, f"is quantized ({x.dtype}): stage int_repr(), scale and zero point")
        if x.data_ptr() == 0 and x.numel() != 0 and x.device.type != "meta":
            raise _refused(
                path,
                f"is a {cls.__qualname__} that has elements and no memory: a wrapper without "
                "__tensor_flatten__, whose tensors cannot be found",
            )
        entry = self._take(x.untyped_storage(), path)
        y = torch.empty(0, dtype=x.dtype)
        self._late.append(
            (y, entry, x.storage_offset(), x.size(), x.stride(), x.is_conj(), x.is_neg())
        )
        if cls not in _PLAIN:
            self.flush()
            y = y.as_subclass(cls)
        self._remember(x, y)
        self._attributes(x, y, path)
        return y

    def _attributes(self, x, y, path) -> None:
        for name, value in getattr(x, "__dict__", {}).items():
            setattr(y, name, self.copy(value, (path, name)))
        if type(x) not in _PLAIN:
            for name in getattr(type(x), "__slots__", ()):
                if hasattr(x, name):
                    setattr(y, name, self.copy(getattr(x, name), (path, name)))

    def _wrapper(self, x, path):
        """By its tensors: DTensor by its local one. What describes them is not copied."""
        names, context = x.__tensor_flatten__()
        inner = {name: getattr(x, name) for name in names}
        for name, part in inner.items():
            if isinstance(part, torch.Tensor):  # and not a mesh
                inner[name] = self.copy(part, (path, name))
        self.flush()
        size, stride = x.size(), x.stride() if x.layout == torch.strided else None
        return type(x).__tensor_unflatten__(inner, context, size, stride)


# Not in the object, which would then refer to itself, and keep its sources until the next
# collection of garbage.
_COPIERS = {
    dict: _Walk._dict,
    list: _Walk._list,
    tuple: _Walk._tuple,
    collections.OrderedDict: _Walk._ordered_dict,
    collections.defaultdict: _Walk._default_dict,
    types.MethodType: _Walk._method,
}


def _refused(path, why: str) -> InvalidArgument:
    keys = []
    while path is not None:
        path, key = path
        keys.append(str(key))
    name = ".".join(reversed(keys))
    error = InvalidArgument(f"the tensor at '{name}' {why}" if name else f"the tensor {why}")
    error.path = name
    return error


def _where_it_was(entries: list[_Entry]) -> bool:
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
