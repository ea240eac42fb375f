"""JAX's arrays in a state. They never change, so a recovery puts new arrays in their places."""

import sys
from typing import Any


def views(tree: Any, fresh: bool = False) -> Any:
    """``tree`` with a view in the place of each JAX array on the CPU, in new dicts, lists and
    tuples; ``tree`` itself where no such array is. The views of ``fresh`` have new arrays with the
    same values, which nobody else has seen, so a recovery may write into their memory."""
    if "jax" not in sys.modules:
        return tree
    walk = _Walk(fresh)
    copied = walk.copy(tree)
    return copied if walk.addresses else tree


def put_back(tree: Any, recovered: Any) -> Any:
    """After a recovery into ``recovered``, which views(tree, fresh=True) returned: puts the new
    arrays and all scalars into the dicts and lists of ``tree``. Returns what takes its place."""
    if isinstance(recovered, _View):
        return recovered.array
    if isinstance(tree, dict):
        places = tree.keys()
    elif isinstance(tree, list):
        places = range(len(tree))
    elif isinstance(tree, tuple):
        items = [put_back(*pair) for pair in zip(tree, recovered, strict=True)]
        same = all(a is b for a, b in zip(items, tree, strict=True))
        return tree if same else _tuple_like(tree, items)
    else:
        return recovered
    for place in list(places):
        now = put_back(tree[place], recovered[place])
        if now is not tree[place]:
            tree[place] = now
    return tree


class _View:
    """An array by DLPack alone: JAX's buffer protocol has no bfloat16."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.block_until_ready().__dlpack__(**options)


class _Walk:
    """Copies containers. A container that is twice in the tree is twice in the copy.

    An array that is twice in it has two memories here. Of arrays that never change, sharing means
    nothing (``ema = params`` before the first step), but it would be part of the structure.
    """

    def __init__(self, fresh: bool):
        self._fresh = fresh
        self._copies: dict[int, Any] = {}  # by the id of a container
        self.addresses: set[int] = set()  # of the tree's arrays

    def copy(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return _tuple_like(value, [self.copy(item) for item in value])
        if isinstance(value, (dict, list)):
            if id(value) not in self._copies:
                self._copies[id(value)] = copied = {} if isinstance(value, dict) else []
                if isinstance(value, dict):
                    copied.update((key, self.copy(item)) for key, item in value.items())
                else:
                    copied.extend(map(self.copy, value))
            return self._copies[id(value)]
        return self._view(value) if _is_on_cpu(value) else value

    def _view(self, array) -> _View:
        address = array.unsafe_buffer_pointer()
        copies = self._fresh or address in self.addresses
        self.addresses.add(address)
        return _View(_copy_of(array) if copies else array)


def _is_on_cpu(value: Any) -> bool:
    """Whether it is a JAX array in one piece on a CPU. An array of random keys has no bytes."""
    jax = sys.modules["jax"]
    if not isinstance(value, jax.Array) or not hasattr(value, "__dlpack__"):
        return False
    devices = value.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def _copy_of(array):
    array_of = sys.modules["jax"].numpy.array
    return array_of(array, copy=True, device=array.sharding).block_until_ready()


def _tuple_like(value: tuple, items: list) -> tuple:
    return type(value)._make(items) if hasattr(value, "_fields") else tuple(items)
