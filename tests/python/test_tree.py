"""States of numpy arrays and scalars through a Checkpointer of one rank: staged, recovered in place."""

import collections
import json

import pytest

np = pytest.importorskip("numpy")

from meshstage import errors  # noqa: E402


def stage(ckpt, state, step=1):
    staging = ckpt.stage(state, step)
    assert staging.wait(60)
    assert staging.outcome(60) == "complete"


def test_figures_go_to_a_file_while_the_job_runs(make, tmp_path):
    ckpt = make(metrics=tmp_path / "figures.jsonl", recovery_connections=3)
    state = {"w": np.zeros(10)}
    ckpt.recover(state)
    stage(ckpt, state)
    ckpt.finish()
    ckpt.close()
    lines = [json.loads(line) for line in (tmp_path / "figures.r0.jsonl").read_text().splitlines()]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert (lines[-1]["job"], lines[-1]["complete"], lines[-1]["disk_step"]) == ("tree", 2, 1)
    with pytest.raises(errors.InvalidArgument, match="must end in .jsonl"):
        make(metrics=tmp_path / "figures.txt")


def test_arrays_come_back_in_place_and_scalars_into_their_containers(make):
    Point = collections.namedtuple("Point", "x y")
    weights = np.arange(10.0)
    inner = [1, 2.5, "text", b"bytes", None, True]
    state = {
        "w": weights, "inner": inner, "pair": (3, np.ones((2, 3), np.float32)), 7: "int key",
        "point": Point(1, 2), "empty": np.empty((0, 3)), "one": np.array(5, np.int16),
    }  # fmt: skip
    ckpt = make()
    got = ckpt.recover(state)
    assert (got.step, got.source, got.from_rank) == (0, "nothing", -1)
    assert got.generation == ckpt.generation > 0
    stage(ckpt, state)
    pair = state["pair"]
    weights[:] = 0
    state["inner"][:] = [9, 9.5, "other", b"", None, False]
    state["pair"] = (4, pair[1])
    pair[1][:] = 0
    state["point"] = Point(8, 9)
    state["one"][()] = 0
    got = make().recover(state)
    assert (got.step, got.source) == (1, "own memory")
    assert state["w"] is weights and np.array_equal(weights, np.arange(10.0))
    assert state["inner"] is inner and inner == [1, 2.5, "text", b"bytes", None, True]
    assert state["pair"][0] == 3 and state["pair"][1] is pair[1] and (pair[1] == 1).all()
    assert state["point"] == Point(1, 2) and type(state["point"]) is Point
    assert state["one"] == 5


@pytest.mark.parametrize(
    "dtype",
    ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"],
)
def test_dtypes(make, dtype):
    array = np.arange(6).astype(dtype).reshape(2, 3)
    expected = array.copy()
    ckpt = make()
    ckpt.recover({"a": array})
    stage(ckpt, {"a": array})
    array[...] = 0
    make().recover({"a": array})
    assert array.tobytes() == expected.tobytes()


def test_tuples_are_apart_though_python_has_one(make):
    merged = (0, 0)  # CPython makes equal constants one object
    ckpt = make()
    state = {"w": np.zeros(2), "a": merged, "b": merged}
    ckpt.recover(state)
    state["a"], state["b"] = (1, 5), (2, 7)
    assert ckpt.stage(state, 1).outcome(60) == "complete"
    for options in ({}, {"any_world": True}):
        again = {"w": np.zeros(2), "a": merged, "b": merged}
        assert make(**options).recover(again).step == 1
        assert (again["a"], again["b"]) == ((1, 5), (2, 7))


def test_views_share_and_keep_their_strides(make):
    base = np.arange(24.0).reshape(4, 6)
    state = {"base": base, "t": base.T, "part": base[1:3, ::2]}
    ckpt = make()
    ckpt.recover(state)
    stage(ckpt, state)
    assert ckpt.stats()["image_bytes"] < 2 * base.nbytes + 8192  # not three times the bytes
    base[:] = 0
    make().recover(state)
    assert np.array_equal(base, np.arange(24.0).reshape(4, 6))


class Odd:
    pass


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Odd(), "Odd"),
        (np.arange(4)[::-1], "strides"),
        (np.arange(4, dtype=">i4"), "format"),
        (np.array([Odd()]), "format"),
        (1 << 70, "64 bits"),
        ({1.5: 0}, "keys are str or int"),
        ({True: 0}, "keys are str or int"),
    ],
    ids=["object", "reversed", "byte order", "objects", "large int", "float key", "bool key"],
)
def test_refused_with_the_path(make, value, why):
    ckpt = make()
    with pytest.raises(errors.InvalidArgument, match=why) as caught:
        ckpt.recover({"outer": [0, value]})
    assert caught.value.path == "outer.1"


def test_cycles_are_refused(make):
    loop: dict = {}
    loop["loop"] = [loop]
    with pytest.raises(errors.InvalidArgument, match="contains itself"):
        make().recover(loop)


def test_another_structure_is_refused_and_nothing_touched(make):
    ckpt = make()
    state = {"a": np.ones(3), "b": 1}
    ckpt.recover(state)
    stage(ckpt, state)
    other = {"a": np.zeros(4), "b": 2}
    with pytest.raises(errors.StructureMismatch) as caught:
        make().recover(other)
    assert caught.value.path == "a"
    assert (other["a"] == 0).all() and other["b"] == 2


def test_read_only_arrays_are_staged(make):
    array = np.arange(3.0)
    array.flags.writeable = False
    ckpt = make()
    ckpt.recover({"a": array})
    stage(ckpt, {"a": array})


def test_arrays_live_until_they_are_copied_and_not_longer(make):
    import gc
    import weakref

    ckpt = make()
    ckpt.recover({"a": np.zeros(1000)})
    array = np.zeros(1000)
    gone = weakref.ref(array)
    stage(ckpt, {"a": array})
    del array
    stage(ckpt, {"a": np.zeros(1000)}, 2)
    ckpt.stats()
    stage(ckpt, {"a": np.zeros(1000)}, 3)
    gc.collect()
    assert gone() is None


def test_torch_tensors_come_back_in_place(make):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "tie": model.weight}
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ckpt = make()
    ckpt.recover(state)
    stage(ckpt, state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state["optimizer"]["param_groups"][0]["lr"] = 5.0
    make().recover(state)
    for name, tensor in expected.items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert state["optimizer"]["param_groups"][0]["lr"] == 1e-3


def test_torch_tensors_that_bytes_do_not_give_back_are_refused(make):
    torch = pytest.importorskip("torch")
    ckpt = make()
    for tensor, why in (
        (torch.eye(2).to_sparse(), "layout"),
        (torch.tensor([1j]).conj(), "conj"),
        (torch.arange(4, dtype=torch.uint8).view(torch.uint4), "uint4"),
        (torch.empty(2, device="meta"), "meta"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (torch._efficientzerotensor((3,)), "no memory"),
    ):
        with pytest.raises(errors.InvalidArgument, match=why) as caught:
            ckpt.recover({"a": {"b": tensor}})
        assert caught.value.path == "a.b"
