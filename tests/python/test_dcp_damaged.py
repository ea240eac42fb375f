"""meshstage.dcp.Reader and a metadata.json that lies: each lie is refused with its entry's name, nothing is loaded."""

import hashlib
import json
import os
import random
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")

from dcp_refusal import refusal  # noqa: E402

from meshstage._dcp_boxes import check_boxes  # noqa: E402
from meshstage._dcp_files import METADATA  # noqa: E402
from meshstage.dcp import Reader, Writer  # noqa: E402

pytestmark = pytest.mark.usefixtures("quiet")

HUGE = 2**63 - 1


@pytest.fixture
def saved(tmp_path):
    dcp.save({"w": torch.arange(6.0).reshape(2, 3), "epoch": 4}, storage_writer=Writer(tmp_path), no_dist=True)
    return tmp_path


def change(folder, edit):
    """``edit`` gets the second line, the entry of the tensor and its chunk; the digest is made anew."""
    path = folder / METADATA
    first, body, _ = path.read_bytes().split(b"\n")
    head, body = json.loads(first), json.loads(body)
    (w,) = (entry for entry in body["entries"] if entry["fqn"] == "w")
    edit(body, w, w["chunks"][0])
    text = json.dumps(body).encode()
    head["sha256"] = hashlib.sha256(text).hexdigest()
    path.write_bytes(json.dumps(head).encode() + b"\n" + text + b"\n")


def refused(folder, match):
    state = {"w": torch.full((2, 3), -1.0), "epoch": -1}
    reason = refusal(lambda: dcp.load(state, storage_reader=Reader(folder), no_dist=True), match)
    assert str(folder) in reason
    assert (state["w"] == -1).all() and state["epoch"] == -1


def put(where, **fields):
    where.update(fields)


def halves(w, chunk, second, **fields):
    """Two chunks of a row each; what is said of the second differs."""
    first = chunk | {"sizes": [1, 3], "nbytes": 12}
    w["chunks"] = [first, first | {"offsets": [1, 0]} | second]
    w.update(fields)


def at_w(why):
    return f"entry [01], 'w': {why}"


LIES = {
    # numbers
    "negative size": (lambda b, w, c: put(w, size=[-2, 3]), at_w("'size' of it has -2")),
    "negative offset": (lambda b, w, c: put(c, offsets=[-1, 0]), at_w("'offsets' of its chunk has -1")),
    "negative place": (lambda b, w, c: put(c, at=-8), at_w(r"'at' of its chunk at \[0, 0\] is -8")),
    "negative bytes": (lambda b, w, c: put(c, nbytes=-24), at_w(r"'nbytes' of its chunk at \[0, 0\] is -24")),
    "negative stride": (lambda b, w, c: put(w, strides=[3, -1]), at_w("'strides' of it has -1")),
    "float": (lambda b, w, c: put(w, size=[2.0, 3]), at_w("'size' of it has 2.0")),
    "bool": (lambda b, w, c: put(c, at=True), at_w("'at' of its chunk .* is True")),
    "words": (lambda b, w, c: put(c, sizes="23"), at_w("'sizes' of its chunk is '23'")),
    "size that wraps": (lambda b, w, c: put(w, size=[2**62, 8]), at_w("its size is .*: nothing has so many bytes")),
    "size beyond 64 bits": (lambda b, w, c: put(w, size=[2**64, 3]), at_w("'size' of it has 18446744073709551616")),
    "bytes that wrap": (lambda b, w, c: put(c, sizes=[2**63 - 1, 3]), at_w(".* has 24 bytes for")),
    "end that wraps": (lambda b, w, c: put(c, at=HUGE - 8), at_w("'data-.*' cannot have 24 bytes at")),
    "digits": (lambda b, w, c: put(c, crc32=2**32), at_w("'crc32' of its chunk .* is 4294967296")),
    # types
    "unknown dtype": (lambda b, w, c: put(w, dtype="float33"), at_w("its dtype is 'float33', which torch")),
    "no dtype": (lambda b, w, c: put(w, dtype="nn"), at_w("its dtype is 'nn'")),
    "quantized dtype": (lambda b, w, c: put(w, dtype="qint32"), at_w("its dtype is 'qint32'")),
    "another dtype": (lambda b, w, c: put(w, dtype="float64"), at_w(".* has 24 bytes for .2, 3. of torch.float64")),
    "strides of another": (lambda b, w, c: put(w, strides=[1]), at_w("its strides are .1., its size is .2, 3.")),
    "requires_grad": (lambda b, w, c: put(w, requires_grad=1), at_w("'requires_grad' of it is 1")),
    # chunks
    "dimension": (lambda b, w, c: put(c, offsets=[0]), at_w("its chunk .* has another number of dimensions")),
    "beyond": (lambda b, w, c: put(c, offsets=[0, 1]), at_w(r"its chunk at \[0, 1\] of \[2, 3\] is not within")),
    "far beyond": (lambda b, w, c: put(c, offsets=[HUGE, 0]), at_w("its chunk .* is not within")),
    "larger": (lambda b, w, c: put(c, sizes=[2, 4], nbytes=32), at_w(r"its chunk .* is not within \[2, 3\]")),
    "smaller": (lambda b, w, c: put(c, sizes=[1, 3], nbytes=12), at_w("its chunks have 3 of its 6 elements")),
    "none": (lambda b, w, c: put(w, chunks=[]), at_w("its chunks have 0 of its 6 elements")),
    "twice": (lambda b, w, c: halves(w, c, {"offsets": [0, 0]}), at_w("two of its chunks begin at the same place")),
    "overlap": (
        lambda b, w, c: halves(w, c, {"offsets": [0, 1], "sizes": [2, 2], "nbytes": 16}),
        at_w(r"its chunks at \[0, 0\] and \[0, 1\] overlap"),
    ),
    "overlap of a part": (
        lambda b, w, c: halves(w, c, {"offsets": [0, 1], "sizes": [2, 2], "nbytes": 16}, partial=True),
        at_w("its chunks .* overlap"),
    ),
    # files
    "folder above": (lambda b, w, c: put(c, file="../" + c["file"]), at_w("'../data-.*' is no data file")),
    "absolute": (lambda b, w, c: put(c, file="/" + c["file"]), at_w("'/data-.*' is no data file")),
    "another file": (lambda b, w, c: put(c, file=METADATA), at_w("'metadata.json' is no data file")),
    "no name": (lambda b, w, c: put(c, file=""), at_w("'' is no data file")),
    "null in a name": (lambda b, w, c: put(c, file=c["file"] + "\0"), at_w("'data-.*' is no data file")),
    "line in a name": (lambda b, w, c: put(c, file=c["file"] + "\n"), at_w("'data-.*' is no data file")),
    "file that is none": (lambda b, w, c: put(c, file=f"data-{'0' * 32}-0.safetensors"), "is missing, and"),
    "range beyond": (lambda b, w, c: put(c, at=10**6), "ends within 'w': it has .* says 24 at 1000000"),
    "range far beyond": (lambda b, w, c: put(c, at=HUGE - 24), "ends within 'w'"),
    # the object
    "object": (
        lambda b, w, c: [put(e, object=[]) for e in b["entries"] if "object" in e],
        r"entry [01], 'epoch': 'object' of it is \[\]",
    ),
    "object's file": (
        lambda b, w, c: [put(e["object"], file="..") for e in b["entries"] if "object" in e],
        "entry [01], 'epoch': '..' is no data file",
    ),
    "object's bytes": (
        lambda b, w, c: [put(e["object"], nbytes=HUGE - 10**4) for e in b["entries"] if "object" in e],
        "ends within 'epoch'",
    ),
    # entries
    "same name": (lambda b, w, c: put(b, entries=[w, w]), "entry 1, 'w': another entry has that name"),
    "no name at all": (lambda b, w, c: w.pop("fqn"), "entry [01] has no 'fqn'"),
    "number as name": (lambda b, w, c: put(w, fqn=7), "'fqn' of entry [01] is 7"),
    "missing field": (lambda b, w, c: w.pop("size"), at_w("it has no 'size'")),
    "missing in a chunk": (lambda b, w, c: c.pop("crc32"), at_w(r"its chunk at \[0, 0\] has no 'crc32'")),
    "chunk": (lambda b, w, c: put(w, chunks=[7]), at_w("its chunk is no JSON object, but 7")),
    "entry": (lambda b, w, c: put(b, entries=[[]]), r"entry 0 is no JSON object, but \[\]"),
    "entries": (lambda b, w, c: put(b, entries={}), "'entries' of the second line is {}"),
    "no entries": (lambda b, w, c: b.pop("entries"), "the second line has no 'entries'"),
    "save id": (lambda b, w, c: put(b, save_id=None), "'save_id' of the second line is None"),
    # the planner's data
    "no planner data": (lambda b, w, c: b.pop("planner_data"), "planner_data"),
    "list": (lambda b, w, c: put(b, planner_data=[]), r"planner_data: \[\] is no tagged value"),
    "tag": (lambda b, w, c: put(b, planner_data={"set": []}), "planner_data: .* is no tagged value"),
    "two tags": (lambda b, w, c: put(b, planner_data={"list": [], "dict": []}), "planner_data: .* no tagged value"),
    "pair": (lambda b, w, c: put(b, planner_data={"dict": [["w"]]}), "planner_data: .* is no key and value"),
    "key": (lambda b, w, c: put(b, planner_data={"dict": [[{"list": []}, 1]]}), "planner_data: .* is no key"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_by_name(saved, lie):
    edit, words = LIES[lie]
    change(saved, edit)
    refused(saved, words)


def test_what_is_not_changed_still_loads(saved):
    change(saved, lambda b, w, c: None)
    state = {"w": torch.zeros(2, 3), "epoch": 0}
    dcp.load(state, storage_reader=Reader(saved), no_dist=True)
    assert torch.equal(state["w"], torch.arange(6.0).reshape(2, 3)) and state["epoch"] == 4


@pytest.mark.parametrize(
    "text", [b"[" * 10**5, b"{", b"\xff", b"7", b"null", b"[]", b'{"entries": ' + b"[" * 10**5, b'{"a": ' + b"9" * 9999]
)
def test_a_second_line_that_is_none_is_refused(saved, text):
    head = json.loads((saved / METADATA).read_bytes().split(b"\n")[0])
    head["sha256"] = hashlib.sha256(text).hexdigest()
    (saved / METADATA).write_bytes(json.dumps(head).encode() + b"\n" + text)
    refused(saved, "metadata.json: ")


@pytest.mark.parametrize("text", [b"", b"\n", b"[]\n{}", b"[" * 10**5 + b"\n", b"\xff\n", b'{"format": "x"}\n'])
def test_a_first_line_that_is_none_is_refused(saved, text):
    (saved / METADATA).write_bytes(text)
    refused(saved, "is no file of meshstage.dcp")


def test_what_is_no_regular_file_is_not_read(saved):
    """A named pipe would keep the reader for ever."""
    (data,) = saved.glob("data-*")
    data.unlink()
    os.mkfifo(data)
    refused(saved, "is no file, and metadata.json names it")


def grid(size, cuts, random_numbers):
    """A tensor of ``size`` in boxes, cut at random places, and the boxes that meet in no plane."""
    boxes = [([0] * len(size), list(size))]
    for _ in range(cuts):
        at, sizes = boxes.pop(random_numbers.randrange(len(boxes)))
        dim = random_numbers.randrange(len(size))
        cut = random_numbers.randint(0, sizes[dim])
        upper = list(at)
        upper[dim] += cut
        for offsets, length in ((at, cut), (upper, sizes[dim] - cut)):
            part = list(sizes)
            part[dim] = length
            boxes.append((offsets, part))
    kept = {tuple(offsets): sizes for offsets, sizes in boxes if 0 not in sizes}
    return [(list(offsets), sizes) for offsets, sizes in kept.items()]


def test_every_way_to_cut_a_tensor_is_taken_and_each_overlap_found():
    numbers = random.Random(7)
    for _ in range(300):
        size = [numbers.randint(1, 9) for _ in range(numbers.randint(1, 3))]
        boxes = grid(size, numbers.randint(0, 12), numbers)
        check_boxes(size, boxes, partial=False)
        grown = [(list(o), list(s)) for o, s in boxes]
        offsets, sizes = numbers.choice(grown)
        dim = numbers.randrange(len(size))
        if offsets[dim] + sizes[dim] < size[dim]:
            sizes[dim] += 1
            with pytest.raises(ValueError, match="overlap"):
                check_boxes(size, grown, partial=True)
        if len(boxes) > 1:
            with pytest.raises(ValueError, match="elements"):
                check_boxes(size, boxes[1:], partial=False)
            check_boxes(size, boxes[1:], partial=True)


def test_boxes_that_no_plane_takes_apart_are_compared_in_pairs():
    pinwheel = [([0, 0], [1, 2]), ([0, 2], [2, 1]), ([2, 1], [1, 2]), ([1, 0], [2, 1]), ([1, 1], [1, 1])]
    check_boxes([3, 3], pinwheel, partial=False)
    with pytest.raises(ValueError, match=r"\[0, 2\] and \[1, 1\] overlap|\[1, 1\] and \[0, 2\] overlap"):
        check_boxes([3, 3], [*pinwheel[:4], ([1, 1], [1, 2])], partial=False)


def test_a_part_of_a_tensor_says_so_and_loads(tmp_path):
    """One rank that saves alone may have a part of a tensor; the rest is then nobody's."""
    from torch.distributed.checkpoint.planner import TensorWriteData

    class Part(dcp.DefaultSavePlanner):
        def create_local_plan(self):
            plan = super().create_local_plan()
            (item,) = plan.items
            data = TensorWriteData(item.tensor_data.chunk, item.tensor_data.properties, torch.Size([4, 3]))
            plan.items[0] = replace(item, tensor_data=data)
            return plan

    dcp.save({"w": torch.ones(2, 3)}, storage_writer=Writer(tmp_path), planner=Part(), no_dist=True)
    assert b'"partial":true' in (tmp_path / METADATA).read_bytes()
    state = {"w": torch.zeros(4, 3)}
    dcp.load(state, storage_reader=Reader(tmp_path), no_dist=True)
    assert (state["w"][:2] == 1).all() and (state["w"][2:] == 0).all()
