"""A structure that was staged before, recognized and built again in C++.

A plan knows a tree of plain containers, scalars and plain tensors: for each tensor its storage,
geometry and a staged tensor to make others of. Everything that it does not know is the slow walk's.
"""

import collections
from typing import Any

import torch

from meshstage import _meshstage
from meshstage.torch._library import LIBRARY, PLAIN_TENSORS

class Differs(Exception):
    """The state is not the plan's any more."""


def known_types(atomic: frozenset) -> Any:
    """What plans may have in them."""
    return _meshstage.KnownTypes(
        atomic=atomic,
        tensors=PLAIN_TENSORS,
        ordered_dict=collections.OrderedDict,
        library=LIBRARY,
    )


class Plan:
    """Compiled from a state and its staged copy. Dead when any of its storages is: its owner drops
    it then, so the same storage objects mean the same storages."""

    def __init__(self, structure):
        self._structure = structure
        self.entries: list = []
        self.devices: set[int] = set()  # CUDA's, by number
        self.batch = None

    @classmethod
    def compile(cls, types, source, staged, entry_of: dict) -> "Plan | None":
        """None if the state has what no plan knows. ``entry_of`` is by the storage's number. The
        staged tensors need no bytes yet."""
        try:
            structure = _meshstage.Structure.compile(types, source, staged)
            if structure is None:
                return None
            for tensor in structure.tensors:
                storage = tensor.untyped_storage()
                entry = entry_of.get(storage._cdata)
                if (
                    tensor.layout != torch.strided
                    or entry is None
                    or (entry.address, entry.nbytes) != (storage.data_ptr(), storage.nbytes())
                ):
                    return None
        except RuntimeError:  # torch's, for a tensor without a storage
            return None
        return cls(structure)

    def settle(self, entries: list, batch) -> None:
        """When the staged tensors have their storages: what of them was copied, as which batch."""
        self.entries, self.batch = entries, batch
        self.devices = {entry.device for entry in entries if entry.device >= 0}
        # The caller may change what its own tensors are.
        self._structure.settle([tensor.detach() for tensor in self._structure.staged])

    def match(self, state, copy_attributes):
        """The result, before its bytes are copied; its sources; and the tensors made for them, one
        for each source. Raises Differs."""
        matched = self._structure.match(state, copy_attributes)
        if matched is None:
            raise Differs
        return matched
