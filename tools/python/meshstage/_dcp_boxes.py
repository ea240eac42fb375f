"""Boxes of a tensor: whether chunks lie in it, cover it, and share no element. Knows nothing of torch."""

from collections.abc import Sequence

Box = tuple[Sequence[int], Sequence[int]]  # offsets and sizes, in elements
MOST = 2**63 - 1  # bytes and elements: what torch and a file system can count


def volume(sizes: Sequence[int]) -> int:
    """How many elements there are; some number above MOST where there are more than that."""
    if 0 in sizes:
        return 0
    n = 1
    for size in sizes:
        n *= size
        if n > MOST:
            break
    return n


def check_boxes(size: Sequence[int], boxes: list[Box], partial: bool) -> None:
    """Raises ValueError where a box leaves the tensor, two boxes share an element, or (unless
    ``partial``) an element is in no box."""
    for offsets, sizes in boxes:
        if not len(offsets) == len(sizes) == len(size):
            raise ValueError(f"its chunk at {list(offsets)} of {list(sizes)} has another number of dimensions")
        for offset, length, bound in zip(offsets, sizes, size, strict=True):
            if offset < 0 or length < 0 or offset > bound - length:
                raise ValueError(f"its chunk at {list(offsets)} of {list(sizes)} is not within {list(size)}")
    if len({tuple(offsets) for offsets, _ in boxes}) < len(boxes):
        raise ValueError("two of its chunks begin at the same place")
    full = [box for box in boxes if volume(box[1]) > 0]
    shared = _overlap(full)
    if shared is not None:
        (a, _), (b, _) = shared
        raise ValueError(f"its chunks at {list(a)} and {list(b)} overlap")
    covered = sum(volume(sizes) for _, sizes in full)
    if not partial and covered != volume(size):
        raise ValueError(f"its chunks have {covered} of its {volume(size)} elements")


def _overlap(boxes: list[Box]) -> tuple[Box, Box] | None:
    """Two boxes that share an element. Boxes that one plane after the other takes apart, as those
    of every sharding, cost n log n for each dimension."""
    todo = [boxes]
    while todo:
        group = todo.pop()
        if len(group) < 2:
            continue
        for dim in range(len(group[0][0])):
            parts = _apart(group, dim)
            if len(parts) > 1:
                todo += parts
                break
        else:
            for i, a in enumerate(group):
                for b in group[:i]:
                    if _meet(a, b):
                        return b, a
    return None


def _apart(boxes: list[Box], dim: int) -> list[list[Box]]:
    """The boxes in groups, of which no two share a coordinate of this dimension."""
    groups: list[list[Box]] = []
    end = 0
    for box in sorted(boxes, key=lambda box: box[0][dim]):
        begin = box[0][dim]
        if not groups or begin >= end:
            groups.append([])
        groups[-1].append(box)
        end = max(end, begin + box[1][dim])
    return groups


def _meet(a: Box, b: Box) -> bool:
    return all(
        i < j + m and j < i + n for i, n, j, m in zip(a[0], a[1], b[0], b[1], strict=True)
    )  # fmt: skip
