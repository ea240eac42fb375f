"""What stands for torch's objects in the state of a Checkpointer."""

from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from meshstage import _meshstage
from meshstage.errors import InvalidArgument
from meshstage.torch import _cuda, _dtensor, _sharded
from meshstage.torch._dtypes import DTYPES
from meshstage.torch._library import LIBRARY, PLAIN_TENSORS


class StandIns:
    """What stands for the tensors of one state: views of their memory, which they keep."""

    def __init__(self):
        self._tensors = _meshstage.ForeignTensors(LIBRARY)
        self._streams = _cuda.Streams()

    def __call__(self, value: Any) -> Any:
        """The view, or NotImplemented. Raises InvalidArgument for a tensor that is no dense tensor
        of a known dtype, on the CPU or a CUDA device: its bytes alone would not give it back."""
        if type(value) in PLAIN_TENSORS:
            view = self._tensors.read(value)
            if view is not None:
                return view
        elif not isinstance(value, torch.Tensor):
            return NotImplemented
        elif _dtensor.is_dtensor(value):
            local = self(value._local_tensor)
            if isinstance(local, _meshstage.Tensor):  # and no wrapper
                return _dtensor.placed(value, local)
        elif _sharded.is_sharded(value):
            parts = [self(shard.tensor) for shard in value.local_shards()]
            if not all(isinstance(part, _meshstage.Tensor) for part in parts):
                raise InvalidArgument("is a ShardedTensor whose shards are of a subclass of Tensor")
            return _sharded.placed(value, parts)
        if is_traceable_wrapper_subclass(value):
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
            self._tensors.storage(value.untyped_storage(), _cuda.number(value.device)),
            DTYPES[value.dtype],
            tuple(value.shape),
            value.stride(),
            value.storage_offset(),
        )
