"""A structure that was staged before, walked again as fast as Python can.

A plan knows a tree of plain containers, scalars and plain tensors: for each tensor its storage,
geometry and a staged tensor to make others of. Everything that it does not know is the slow walk's.
"""

import collections

import torch

PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)


class Differs(Exception):
    """The state is not the plan's any more."""


class _Leaf:
    """A tensor: its type, what it was (its storage's number, address and size, and the geometry),
    and its staged tensor."""

    __slots__ = ("kind", "was", "staged")

    def __init__(self, source: torch.Tensor, entry, staged: torch.Tensor):
        self.kind = type(source)
        self.was = (
            source.untyped_storage()._cdata, entry.address, entry.nbytes, source.dtype,
            source.shape, source.stride(), source.storage_offset(), False, False, {},
        )  # fmt: skip
        self.staged = staged


class _Node:
    """A container, and what was in it: None for a scalar, a _Leaf, or a _Node."""

    __slots__ = ("kind", "keys", "children")

    def __init__(self, kind, keys, children):
        self.kind, self.keys, self.children = kind, keys, children


class Plan:
    """Compiled from a state and its staged copy. Dead when any of its storages is: its owner drops
    it then, so equal numbers of storages mean the same storages."""

    def __init__(self, atomic, entry_of: dict):
        self._atomic = atomic
        self._entry_of = entry_of  # by the storage's number; while compiling
        self.entries: list = []
        self.devices: set[int] = set()  # CUDA's, by number
        self.batch = None
        self._ties: list[tuple[int, int]] = []
        self._leaves: list[_Leaf] = []
        self._open: set[int] = set()  # the containers met; while compiling
        self._containers: list[int] = []
        self._tensors: list[torch.Tensor] = []

    @classmethod
    def compile(cls, atomic, source, staged, entry_of: dict) -> "Plan | None":
        """None if the state has what no plan knows. The staged tensors need no bytes yet."""
        plan = cls(atomic, entry_of)
        try:
            plan._root = plan._compile(source, staged)
        except Differs:
            return None
        if type(plan._root) is not _Node:
            return None
        first: dict[int, int] = {}
        for i, tensor in enumerate(plan._tensors):
            j = first.setdefault(id(tensor), i)
            if j != i:
                plan._ties.append((j, i))
        plan._distinct = len(first)
        plan._tensors, plan._entry_of, plan._open = [], {}, set()
        return plan

    def settle(self, entries: list, batch) -> None:
        """When the staged tensors have their storages: what of them was copied, as which batch."""
        self.entries, self.batch = entries, batch
        self.devices = {entry.device for entry in entries if entry.device >= 0}
        for leaf in self._leaves:
            leaf.staged = leaf.staged.detach()  # the caller may change what its own tensor is
        self._leaves = []

    def match(self, state, copy_attributes):
        """The result, before its bytes are copied; its sources; and the tensors made for them, one
        for each source. Raises Differs."""
        self._containers, self._tensors, self._results = [], [], []
        self._made: dict[int, torch.Tensor] = {}
        try:
            result = self._match(self._root, state, copy_attributes)
            tensors = self._tensors
            if len(set(map(id, tensors))) != self._distinct or any(
                tensors[i] is not tensors[j] for i, j in self._ties
            ):
                raise Differs
            if len(set(self._containers)) != len(self._containers):
                raise Differs
            return result, tensors, self._results
        finally:
            self._containers, self._tensors, self._results, self._made = [], [], [], {}

    def _compile(self, x, y):
        kind = type(x)
        if kind in self._atomic:
            return None
        if kind in PLAIN_TENSORS:
            if x.__dict__ or x.is_conj() or x.is_neg() or x.layout != torch.strided:
                raise Differs
            entry = self._entry_of.get(x.untyped_storage()._cdata)
            if entry is None:
                raise Differs
            self._tensors.append(x)
            leaf = _Leaf(x, entry, y)
            self._leaves.append(leaf)
            return leaf
        if id(x) in self._open:  # shared, or a cycle
            raise Differs
        self._open.add(id(x))
        if kind is dict or kind is collections.OrderedDict:
            if any(type(key) not in self._atomic for key in x):
                raise Differs
            return _Node(kind, [*x], [self._compile(v, y[k]) for k, v in x.items()])
        if kind is list or kind is tuple:
            return _Node(kind, len(x), [self._compile(v, w) for v, w in zip(x, y)])
        raise Differs

    def _match(self, node: _Node, x, copy_attributes):
        kind = type(x)
        if kind is not node.kind:
            raise Differs
        self._containers.append(id(x))
        if kind is dict or kind is collections.OrderedDict:
            if [*x] != node.keys:
                raise Differs
            values = x.values()
        else:
            if len(x) != node.keys:
                raise Differs
            values = x
        atomic, tensors, results, made = self._atomic, self._tensors, self._results, self._made
        result = []
        for value, child in zip(values, node.children):
            if child is None:
                if type(value) not in atomic:
                    raise Differs
                result.append(value)
            elif type(child) is _Leaf:
                if type(value) is not child.kind:
                    raise Differs
                storage = value.untyped_storage()
                if child.was != (
                    storage._cdata, storage.data_ptr(), storage.nbytes(), value.dtype,
                    value.shape, value.stride(), value.storage_offset(), value.is_conj(),
                    value.is_neg(), value.__dict__,
                ):  # fmt: skip
                    raise Differs
                tensors.append(value)
                tensor = made.get(id(value)) if self._ties else None
                if tensor is None:
                    tensor = child.staged.detach()
                    if self._ties:
                        made[id(value)] = tensor
                result.append(tensor)
                results.append(tensor)
            else:
                result.append(self._match(child, value, copy_attributes))
        if kind is dict:
            return dict(zip(x, result))
        if kind is list:
            return result
        if kind is tuple:
            return x if all(a is b for a, b in zip(x, result)) else tuple(result)
        ordered = collections.OrderedDict(zip(x, result))
        if x.__dict__:  # state_dict()'s _metadata
            copy_attributes(x, ordered)
        return ordered
