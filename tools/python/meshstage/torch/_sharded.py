"""torch's ShardedTensors, by their shards. Their class forbids most functions of a tensor."""

import dataclasses
import functools
import sys
from typing import Any

import torch

from meshstage import _meshstage
from meshstage.errors import InvalidArgument
from meshstage.torch._dtypes import DTYPES

_MODULE = "torch.distributed._shard.sharded_tensor.api"


def is_sharded(value: Any) -> bool:
    theirs = sys.modules.get(_MODULE)
    return theirs is not None and isinstance(value, theirs.ShardedTensorBase)


def placed(value: Any, locals_: list) -> Any:
    """The PlacedTensor of a ShardedTensor whose shards here are ``locals_``, in its own order.
    Raises InvalidArgument if its shards are not the whole, each on a rank."""
    metadata = value.metadata()
    dtype = DTYPES.get(metadata.tensor_properties.dtype)
    if dtype is None:
        raise InvalidArgument(
            f"is a ShardedTensor of {metadata.tensor_properties.dtype}, which has no dtype here"
        )
    shards = tuple(map(_described, metadata.shards_metadata))
    mine = [_described(shard.metadata) for shard in value.local_shards()]
    rank = _rank_of(mine)
    by_place = dict(zip(mine, locals_, strict=True))
    try:
        ordered = [by_place.pop(shard) for shard in shards if shard[2] == rank]
    except KeyError:
        by_place[None] = None  # one is missing
    if by_place:
        raise InvalidArgument("is a ShardedTensor whose shards here are others than it describes")
    return _layout(tuple(metadata.size), dtype, shards, rank).of(ordered)


@functools.lru_cache(maxsize=4096)
def _layout(shape: tuple, dtype: str, shards: tuple, rank: int) -> Any:
    return _meshstage.ShardedLayout(shape, dtype, list(shards), rank)


def _described(shard) -> tuple:
    rank = None if shard.placement is None else shard.placement.rank()
    if rank is None:
        raise InvalidArgument(f"is a ShardedTensor with a shard on {shard.placement}, and no rank")
    return tuple(shard.shard_offsets), tuple(shard.shard_sizes), rank


def _rank_of(mine: list[tuple]) -> int:
    if mine:
        return mine[0][2]
    if not torch.distributed.is_initialized():
        raise InvalidArgument("is a ShardedTensor without shards here, and without a process group")
    return torch.distributed.get_rank()


def staged(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The same ShardedTensor with ``tensors``, which are on the CPU, for its shards. What describes
    shards that were on the CPU is shared with ``value``."""
    theirs = sys.modules[_MODULE]
    whole = value.metadata()
    properties = dataclasses.replace(
        whole.tensor_properties, requires_grad=False, pin_memory=False
    )
    copy = theirs.ShardedTensorBase.__new__(
        type(value),
        value._sharding_spec,
        whole.size,
        dtype=properties.dtype,
        layout=properties.layout,
        pin_memory=False,
        requires_grad=False,
    )
    copy.__dict__.update(value.__dict__)
    copy._metadata = dataclasses.replace(
        whole,
        shards_metadata=list(map(_on_cpu, whole.shards_metadata)),
        tensor_properties=properties,
    )
    copy._local_shards = [
        theirs.Shard(tensor, _on_cpu(shard.metadata))
        for tensor, shard in zip(tensors, value.local_shards(), strict=True)
    ]
    # Remote references are the source's alone.
    copy._sharded_tensor_id, copy._init_rrefs, copy._remote_shards = None, False, {}
    return copy


def _on_cpu(shard):
    placement = shard.placement
    if placement is None or placement.device().type == "cpu":
        return shard
    owner = placement.worker_name()
    if owner is None:
        owner = f"rank:{placement.rank()}"
    return type(shard)(shard.shard_offsets, shard.shard_sizes, f"{owner}/cpu")
