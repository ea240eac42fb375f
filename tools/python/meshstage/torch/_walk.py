"""The walk of one staging: a deep copy whose tensors are staged together."""

import collections
import copyreg
import enum
import types
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from meshstage import _meshstage
from meshstage.errors import InvalidArgument
from meshstage.torch import _cuda, _sharded
from meshstage.torch._library import PLAIN_TENSORS

_NONE = object()
ATOMIC = frozenset(
    {
        type(None), int, float, bool, complex, bytes, str, type, range, property, weakref.ref,
        types.CodeType, types.BuiltinFunctionType, types.FunctionType, types.ModuleType,
        type(Ellipsis), type(NotImplemented), torch.dtype, torch.device, torch.layout,
        torch.memory_format,
    }
)  # fmt: skip
_PLAIN = PLAIN_TENSORS


class Entry:
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


class Walk:
    """One staging: a deep copy whose tensors are filled in by ``flush``.

    Storages are copied together, at the end or before code of somebody else could read them.
    ``stager`` is the StateDictStager, which has the entries.
    """

    def __init__(self, stager, memo: dict, non_blocking: bool):
        self._stager = stager
        self._memo = memo
        self._non_blocking = non_blocking
        self.seen: dict[int, Entry] = {}  # by the storage's number
        self.batches = 0  # were copied
        self.by_torch = False  # some were
        self._alive: list[Any] = []  # what the memo and the entries name by number
        self._pending: list[Entry] = []
        self._streams = _cuda.Streams()
        self._late: list[tuple] = []

    def copy(self, x, path):
        """``path`` is (path of the parent, key), or None for the root."""
        cls = type(x)
        if cls in ATOMIC:
            return x
        y = self._memo.get(id(x), _NONE)
        if y is not _NONE:
            return y
        if isinstance(x, torch.Tensor):
            y = self._tensor(x, path)
        else:
            y = _COPIERS.get(cls, Walk._object)(self, x, path)
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
            y[key if type(key) in ATOMIC else copy(key, path)] = copy(value, (path, key))
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

    def _take(self, storage: torch.UntypedStorage, path) -> Entry:
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
            if _sharded.is_sharded(x):
                return self._sharded_tensor(x, path)
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

    def _sharded_tensor(self, x, path):
        """By its shards. What describes them is not copied."""
        shards = enumerate(x.local_shards())
        tensors = [self.copy(shard.tensor, (path, i)) for i, shard in shards]
        self.flush()
        return _sharded.staged(x, tensors)


# Not in the object, which would then refer to itself, and keep its sources until the next
# collection of garbage.
_COPIERS = {
    dict: Walk._dict,
    list: Walk._list,
    tuple: Walk._tuple,
    collections.OrderedDict: Walk._ordered_dict,
    collections.defaultdict: Walk._default_dict,
    types.MethodType: Walk._method,
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
