"""What of a state lies on torch's process groups, which end with the loss of a rank."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from meshstage.errors import Error
from meshstage.torch import _dtensor, _sharded

# They are looked up, not imported: before its module is imported a class has no objects.
_CLASSES = (
    ("torch.nn.parallel.distributed", "DistributedDataParallel"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp", "FSDPModule"),
    ("torch.distributed.optim.zero_redundancy_optimizer", "ZeroRedundancyOptimizer"),
)


def user_of_groups(parts: Mapping[str, Any]) -> str:
    """The first of a state's parts that uses a process group, and what it is; "" if none does:
    "'model' is a DistributedDataParallel". Communicates with no other rank."""
    known = [kind for place, name in _CLASSES if (kind := _class(place, name)) is not None]
    for name, part in parts.items():
        for path, value in _objects(str(name), part):
            for kind in known:
                if isinstance(value, kind):
                    return f"'{path}' is a {_name_of(kind)}"
            if _dtensor.is_dtensor(value) and _has_groups(value.device_mesh):
                return f"'{path}' is a DTensor"
            if _sharded.is_sharded(value):
                return f"'{path}' is a ShardedTensor"
    return ""


def is_group_failure(error: BaseException) -> bool:
    """Whether a process group of torch's raised it because it cannot reach another rank."""
    if isinstance(error, Error) or not isinstance(error, RuntimeError):
        return False
    failure = _class("torch.distributed", "DistError")
    # Gloo's errors are plain RuntimeErrors, which name the source file: gloo/transport/tcp/pair.cc.
    return (failure is not None and isinstance(error, failure)) or "gloo/" in str(error)


def _class(place: str, name: str) -> type | None:
    return getattr(sys.modules.get(place), name, None)


def _name_of(kind: type) -> str:
    return "module of fully_shard" if kind.__name__ == "FSDPModule" else kind.__name__


def _objects(path: str, part: Any) -> Iterator[tuple[str, Any]]:
    """The modules, optimizers and tensors of one part. state_dict() may communicate, so this does
    not call it."""
    if isinstance(part, torch.nn.Module):
        for name, module in part.named_modules(prefix=path):
            yield name, module
        for named in (part.named_parameters, part.named_buffers):
            yield from named(prefix=path)
    elif isinstance(part, torch.optim.Optimizer):
        yield path, part
        for i, group in enumerate(part.param_groups):
            for j, parameter in enumerate(group["params"]):
                yield f"{path}.{i}.{j}", parameter
                yield from _objects(f"{path}.{i}.{j}", part.state.get(parameter, {}))
    elif isinstance(part, Mapping):
        for key, value in part.items():
            yield from _objects(f"{path}.{key}", value)
    elif isinstance(part, (list, tuple)):
        for i, value in enumerate(part):
            yield from _objects(f"{path}.{i}", value)
    elif isinstance(part, torch.Tensor):
        yield path, part


def _has_groups(mesh: Any) -> bool:
    """False for a mesh that only describes how tensors are cut. get_all_groups() would fail alike
    for such a mesh and for one whose groups have been destroyed."""
    return bool(getattr(mesh, "_dim_group_names", None))
