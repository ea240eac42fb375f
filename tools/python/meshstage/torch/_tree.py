"""What stands for torch's objects in the state of a Checkpointer."""

from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from meshstage import _meshstage
from meshstage.errors import InvalidArgument
from meshstage.torch import _cuda, _dtensor
from meshstage.torch._dtypes import DTYPES


class StandIns:
    """What stands for the tensors of one state: views of their memory, which they keep."""

    def __init__(self):
        self._storages: dict[int, Any] = {}  # by number: tensors that share one share it here
        self._streams = _cuda.Streams()

    def __call__(self, value: Any) -> Any:
        """The view, or NotImplemented. Raises InvalidArgument for a tensor that is no dense tensor
        of a known dtype, on the CPU or a CUDA device: its bytes alone would not give it back."""
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        if is_traceable_wrapper_subclass(value):
            placed = self._placed(value)
            if placed is not None:
                return placed
            names, _ = value.__tensor_flatten__()
            parts = {name: getattr(value, name) for name in names}
            return {name: part for name, part in parts.items() if isinstance(part, torch.Tensor)}
        if value.is_nested:
            raise InvalidArgument("is nested and strided: use layout torch.jagged, or its parts")
        if value.layout != torch.strided or value.is_quantized:
            raise InvalidArgument(f"is a tensor of layout {value.layout} and {value.dtype}")
        if value.device.type == "cuda":
            why = _cuda.problem()
            if why is not None:
                raise InvalidArgument(f"is a tensor on {value.device}: {why}")
            self._streams.order(value.device.index)
        elif value.device.type != "cpu":
            raise InvalidArgument(
                f"is a tensor on {value.device}: those of the CPU and of CUDA devices are taken"
            )
        if value.is_conj() or value.is_neg():
            raise InvalidArgument("has a lazy conjugate or negative: resolve_conj(), resolve_neg()")
        if value.dtype not in DTYPES:
            raise InvalidArgument(f"is a tensor of {value.dtype}, which has no dtype here")
        if value.data_ptr() == 0 and value.numel() != 0:
            raise InvalidArgument(f"is a {type(value).__qualname__} with elements and no memory")
        return _meshstage.Tensor.on_storage(
            self._storage(value.untyped_storage()),
            DTYPES[value.dtype],
            tuple(value.shape),
            value.stride(),
            value.storage_offset(),
        )

    def _placed(self, value: torch.Tensor) -> Any:
        """A DTensor with what is known of its mesh; None for other wrappers."""
        if not _dtensor.is_dtensor(value):
            return None
        local = self(value._local_tensor)
        if not isinstance(local, _meshstage.Tensor):
            return None  # a wrapper, too
        return _dtensor.placed(value, local)

    def _storage(self, storage: torch.UntypedStorage) -> Any:
        known = self._storages.get(storage._cdata)
        if known is None:
            known = _meshstage.ForeignStorage(
                storage.data_ptr(), storage.nbytes(), storage, _cuda.number(storage.device)
            )
            self._storages[storage._cdata] = known
        return known
