"""A structure that was staged before, walked again as fast as Python can.

A plan knows a tree of plain containers, scalars and plain tensors: for each tensor its storage,
geometry and a staged tensor to make others of. Everything that it does not know is the slow walk's.
"""

import collections
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter, eq
from typing import Any

import torch

PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)

# Reading one field of all tensors in one call takes half the time of reading all fields of each.
_detached = torch.Tensor.detach
_storage = torch.Tensor.untyped_storage
_number = attrgetter("_cdata")
_own_attributes = attrgetter("__dict__")
_STORAGE_FIELDS = (_number, torch.UntypedStorage.data_ptr, torch.UntypedStorage.nbytes)
_TENSOR_FIELDS = (
    attrgetter("dtype"), attrgetter("shape"), torch.Tensor.stride, torch.Tensor.storage_offset,
)  # fmt: skip


class Differs(Exception):
    """The state is not the plan's any more."""


class _Node:
    """A container: the types of what was in it, and where its tensors and its containers are.
    Whatever else was in it was a scalar."""

    __slots__ = ("kind", "keys", "kinds", "tensors", "nodes")

    def __init__(self, kind, keys, kinds):
        self.kind, self.keys, self.kinds = kind, keys, kinds
        self.tensors: list[int] = []
        self.nodes: list[tuple[int, _Node]] = []


class Plan:
    """Compiled from a state and its staged copy. Dead when any of its storages is: its owner drops
    it then, so equal numbers of storages mean the same storages."""

    def __init__(self, atomic):
        self._atomic = atomic
        self.entries: list = []
        self.devices: set[int] = set()  # CUDA's, by number
        self.batch = None
        # Of each tensor, in the order of _collect:
        self._staged: list[torch.Tensor] = []  # to make others of
        self._was: list[list] = []  # each field of _STORAGE_FIELDS and _TENSOR_FIELDS
        self._ties: list[tuple[int, int]] = []

    @classmethod
    def compile(cls, atomic, source, staged, entry_of: dict) -> "Plan | None":
        """None if the state has what no plan knows. ``entry_of`` is by the storage's number. The
        staged tensors need no bytes yet."""
        plan = cls(atomic)
        tensors: list[torch.Tensor] = []
        try:
            plan._root = plan._compile(source, staged, tensors, set())
            plan._complex = any(map(torch.Tensor.is_complex, tensors))
            _refuse_lazy_bits(tensors, plan._complex)
            numbers = list(map(_number, map(_storage, tensors)))
        except (Differs, RuntimeError):  # torch's, for a tensor without a storage
            return None
        entries = list(map(entry_of.get, numbers))
        if None in entries:
            return None
        plan._was = [
            numbers,
            [entry.address for entry in entries],
            [entry.nbytes for entry in entries],
            *(list(map(field, tensors)) for field in _TENSOR_FIELDS),
        ]
        first: dict[int, int] = {}
        for i, tensor in enumerate(tensors):
            j = first.setdefault(id(tensor), i)
            if j != i:
                plan._ties.append((j, i))
        plan._distinct = len(first)
        return plan

    def settle(self, entries: list, batch) -> None:
        """When the staged tensors have their storages: what of them was copied, as which batch."""
        self.entries, self.batch = entries, batch
        self.devices = {entry.device for entry in entries if entry.device >= 0}
        # The caller may change what its own tensors are.
        self._staged = list(map(_detached, self._staged))

    def match(self, state, copy_attributes):
        """The result, before its bytes are copied; its sources; and the tensors made for them, one
        for each source. Raises Differs."""
        tensors: list[torch.Tensor] = []
        containers: list[int] = []
        contents: list[list] = []
        self._collect(self._root, state, tensors, containers, contents)
        if len(set(containers)) != len(containers):
            raise Differs
        if len(set(map(id, tensors))) != self._distinct or any(
            tensors[i] is not tensors[j] for i, j in self._ties
        ):
            raise Differs
        self._compare(tensors)
        made = list(map(_detached, self._staged))
        for i, j in self._ties:
            made[j] = made[i]
        result = self._build(self._root, state, iter(contents), iter(made), copy_attributes)
        return result, tensors, made

    def _compile(self, x, y, tensors: list, containers: set[int]) -> _Node:
        kind = type(x)
        if id(x) in containers:  # shared, or a cycle
            raise Differs
        containers.add(id(x))
        if kind is dict or kind is collections.OrderedDict:
            if any(type(key) not in self._atomic for key in x):
                raise Differs
            keys, values, copies = [*x], [*x.values()], [y[key] for key in x]
        elif kind is list or kind is tuple:
            keys, values, copies = len(x), x, y
        else:
            raise Differs
        node = _Node(kind, keys, list(map(type, values)))
        inner = []
        for i, value in enumerate(values):
            if node.kinds[i] in self._atomic:
                continue
            if node.kinds[i] in PLAIN_TENSORS:
                if value.layout != torch.strided:
                    raise Differs
                node.tensors.append(i)
                tensors.append(value)
                self._staged.append(copies[i])
            else:
                inner.append(i)
        node.nodes = [(i, self._compile(values[i], copies[i], tensors, containers)) for i in inner]
        return node

    def _collect(self, node: _Node, x, tensors, containers, contents) -> None:
        """What is in the containers now, and all tensors: a container's own, then its containers'."""
        if type(x) is not node.kind:
            raise Differs
        containers.append(id(x))
        if node.kind is dict or node.kind is collections.OrderedDict:
            if [*x] != node.keys:
                raise Differs
            values = [*x.values()]
        else:
            values = [*x]
            if len(values) != node.keys:
                raise Differs
        kinds = list(map(type, values))
        if kinds != node.kinds and not self._only_scalars_differ(kinds, node.kinds):
            raise Differs
        contents.append(values)
        if len(node.tensors) == len(values):
            tensors += values
        else:
            tensors += [values[i] for i in node.tensors]
        for i, child in node.nodes:
            self._collect(child, values[i], tensors, containers, contents)

    def _only_scalars_differ(self, kinds: list, were: list) -> bool:
        atomic = self._atomic
        return all(a is b or (a in atomic and b in atomic) for a, b in zip(kinds, were))

    def _compare(self, tensors: list[torch.Tensor]) -> None:
        try:
            storages = list(map(_storage, tensors))
            fields = [(field, storages) for field in _STORAGE_FIELDS]
            fields += [(field, tensors) for field in _TENSOR_FIELDS]
            for (field, of), was in zip(fields, self._was):
                if not all(map(eq, map(field, of), was)):  # no lists: they wake the collector
                    raise Differs
        except RuntimeError:  # torch's, for a tensor without a storage
            raise Differs from None
        _refuse_lazy_bits(tensors, self._complex)

    def _build(self, node: _Node, x, contents: Iterator, made: Iterator, copy_attributes) -> Any:
        values = next(contents)
        if len(node.tensors) == len(values):
            result = list(islice(made, len(values)))
        else:
            result = values[:]
            for i in node.tensors:
                result[i] = next(made)
        for i, child in node.nodes:
            result[i] = self._build(child, values[i], contents, made, copy_attributes)
        kind = node.kind
        if kind is dict:
            return dict(zip(x, result))
        if kind is list:
            return result
        if kind is tuple:
            return x if all(a is b for a, b in zip(values, result)) else tuple(result)
        ordered = collections.OrderedDict(zip(x, result))
        if x.__dict__:  # state_dict()'s _metadata
            copy_attributes(x, ordered)
        return ordered


def _refuse_lazy_bits(tensors: list[torch.Tensor], any_complex: bool) -> None:
    """And attributes: the slow walk copies those."""
    if (
        (any_complex and any(map(torch.Tensor.is_conj, tensors)))
        or any(map(torch.Tensor.is_neg, tensors))
        or any(map(_own_attributes, tensors))
    ):
        raise Differs
