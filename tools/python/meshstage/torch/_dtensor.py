"""How torch's DTensors lie on their meshes: what a job of another number of ranks has to know."""

import re
import sys
import weakref
from operator import is_
from typing import Any

from meshstage import _meshstage
from meshstage.errors import InvalidArgument
from meshstage.torch._dtypes import DTYPES

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_REDUCTIONS = ("sum", "avg", "product", "min", "max")
_layouts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by mesh
_known_specs: dict[int, tuple] = {}  # by the spec's id, until the spec is gone


def is_dtensor(value: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def placed(value: Any, local: Any) -> Any:
    """The PlacedTensor of a DTensor whose local tensor is ``local`` here. If no layout describes
    the DTensor (placements that only torch knows, a mesh without this rank, a local tensor that its
    owner has cut otherwise), another number of ranks cannot take it, and is told so."""
    layout = _layout_of(value)
    if layout is not None:
        try:
            return layout.of(local)
        except InvalidArgument:  # of another shape
            pass
    names = ",".join(type(placement).__name__ for placement in value.placements)
    return _meshstage.unplaced_dtensor(local, names)


def _layout_of(value: Any) -> Any:
    """The DTensorLayout of all DTensors like this one; None if there is none. The same spec with
    the same mesh, placements and metadata, which do not change, has the same layout."""
    spec = value._spec
    parts = (spec.mesh, spec.placements, spec.tensor_meta)
    known = _known_specs.get(id(spec))
    if known is not None:
        ref, layout, *were = known
        if ref() is spec and all(map(is_, parts, were)):
            return layout
    layout = _layout_on(value.device_mesh, value.placements, value.shape, value.dtype)
    # Bound now: at the interpreter's exit the module's names are gone before the last specs are.
    ref = weakref.ref(spec, lambda _, key=id(spec), known=_known_specs: known.pop(key, None))
    _known_specs[id(spec)] = (ref, layout, *parts)
    return layout


def _layout_on(mesh, placements, shape, dtype) -> Any:
    known = _layouts.get(mesh)
    if known is None:
        known = _layouts[mesh] = {}
    rank = getattr(mesh, "_rank", None)  # also when the process group is gone
    key = (mesh.get_rank() if rank is None else rank, placements, shape, dtype)
    if key not in known:
        known[key] = _made(mesh, *key)
    return known[key]


def _made(mesh, rank, placements, shape, dtype):
    if mesh.get_coordinate() is None:
        return None
    order = _order(mesh, placements)
    if order is None:
        return None
    names = mesh.mesh_dim_names or ()
    if not all(map(_NAME.fullmatch, names)):
        names = ()
    try:
        return _meshstage.DTensorLayout(
            ranks=mesh.mesh.permute(order).flatten().tolist(),
            mesh_shape=[mesh.size(d) for d in order],
            mesh_names=[names[d] for d in order] if names else [],
            placements=",".join(_text(placements[d]) for d in order),
            dtype=DTYPES[dtype],
            shape=list(shape),
            rank=rank,
        )
    except (InvalidArgument, _Unknown, ValueError):  # a slice of a mesh whose group is gone
        return None


class _Unknown(Exception):
    """A placement that only torch knows."""


def _order(mesh, placements) -> list[int] | None:
    """The mesh's dimensions in the order in which they cut the tensor: FSDP2 on tensors that TP has
    cut calls its own a strided shard, and cuts after the dimensions on its right."""
    strided = [d for d, placement in enumerate(placements) if _is_strided(placement)]
    if len(strided) > 1:
        return None
    for d in strided:
        right = [
            other for other in range(d + 1, len(placements))
            if placements[other].is_shard(placements[d].dim)
        ]  # fmt: skip
        pieces = 1
        for other in right:
            pieces *= mesh.size(other)
        if pieces != placements[d].split_factor:
            return None
    return [d for d in range(len(placements)) if d not in strided] + strided


def _is_strided(placement) -> bool:
    return type(placement).__name__ == "_StridedShard"


def _text(placement) -> str:
    name = type(placement).__name__
    if name == "Replicate":
        return "R"
    if name in ("Shard", "_StridedShard"):
        return f"S({placement.dim})"
    if name == "Partial" and placement.reduce_op in _REDUCTIONS:
        return f"P({placement.reduce_op})"
    raise _Unknown
