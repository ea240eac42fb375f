"""meshstage.torch.StateDictStager: tensors, plans, what is kept, what is refused."""

import collections
import gc
import warnings

import pytest

torch = pytest.importorskip("torch")

from meshstage.errors import InvalidArgument, InvalidState  # noqa: E402
from meshstage.torch import StateDictStager  # noqa: E402


def mapping(stager):
    return list(stager._cached_storage_mapping.values())


# Tensors.

def test_bytes_are_copied_and_do_not_follow(stager):
    source = torch.arange(12.0).reshape(3, 4)
    staged = stager.stage({"a": source})["a"]
    source.zero_()
    assert torch.equal(staged, torch.arange(12.0).reshape(3, 4))
    assert staged.data_ptr() != source.data_ptr()


def test_staging_again_refreshes_the_same_memory(stager):
    source = torch.zeros(5)
    first = stager.stage([source])[0]
    source.fill_(7)
    second = stager.stage([source])[0]
    assert first.data_ptr() == second.data_ptr()
    assert torch.equal(first, torch.full((5,), 7.0))


def test_views_strides_offsets_and_ties_are_kept(stager):
    base = torch.arange(24.0).reshape(4, 6)
    state = {"base": base, "t": base.t(), "part": base[1:3, ::2], "tie": base}
    staged = stager.stage(state)
    assert staged["tie"] is staged["base"]
    for name, source in state.items():
        assert staged[name].stride() == source.stride()
        assert staged[name].storage_offset() == source.storage_offset()
        assert torch.equal(staged[name], source)
    assert len(mapping(stager)) == 1
    staged["base"].fill_(1)
    assert torch.equal(staged["part"], torch.ones(2, 3))


def test_each_storage_is_its_own_of_exact_size(stager):
    state = [torch.zeros(n, dtype=torch.uint8) for n in (1, 3, 70, 4097)]
    staged = stager.stage(state)
    assert [t.untyped_storage().nbytes() for t in staged] == [1, 3, 70, 4097]
    assert sum(s.nbytes() for s in mapping(stager)) == 1 + 3 + 70 + 4097


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int16, torch.int64, torch.uint16, torch.uint64, torch.float16,
     torch.bfloat16, torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn,
     torch.float8_e5m2],
    ids=str,
)  # fmt: skip
def test_dtypes(stager, dtype):
    source = torch.randint(0, 2, (3, 5)).to(dtype)
    staged = stager.stage(source)
    assert staged.dtype == dtype
    assert torch.equal(staged.view(torch.uint8), source.view(torch.uint8))


def test_empty_and_scalar_tensors(stager):
    state = {"empty": torch.empty(0), "flat": torch.empty(0, 3, 0), "one": torch.tensor(3.5)}
    staged = stager.stage(state)
    assert {k: v.shape for k, v in staged.items()} == {k: v.shape for k, v in state.items()}
    assert staged["one"].item() == 3.5


def test_conjugate_and_negative_bits_are_kept(stager):
    source = torch.tensor([1 + 2j, 3 - 4j])
    staged = stager.stage({"conj": source.conj(), "neg": source.conj().imag, "plain": source})
    assert staged["conj"].is_conj() and staged["neg"].is_neg()
    assert torch.equal(staged["conj"], source.conj())
    assert torch.equal(staged["neg"], source.conj().imag)
    assert len(mapping(stager)) == 1


def test_sub_byte_dtypes_are_raw_bytes_of_their_dtype(stager):
    source = torch.arange(4, dtype=torch.uint8).view(torch.uint4)
    staged = stager.stage(source)
    assert staged.dtype == torch.uint4
    assert staged.untyped_storage().tolist() == [0, 1, 2, 3]


def test_parameters_are_staged_as_tensors_without_gradients(stager):
    parameter = torch.nn.Parameter(torch.ones(3))
    staged = stager.stage({"p": parameter, "leaf": torch.ones(2, requires_grad=True)})
    assert type(staged["p"]) is torch.Tensor
    assert not staged["p"].requires_grad and not staged["leaf"].requires_grad


class Named(torch.Tensor):
    pass


def test_a_subclass_with_memory_keeps_its_type_and_attributes(stager):
    source = torch.arange(3.0).as_subclass(Named)
    source.unit = "m"
    source.other = torch.ones(2)
    staged = stager.stage([source])[0]
    assert type(staged) is Named and staged.unit == "m"
    assert torch.equal(staged.as_subclass(torch.Tensor), torch.arange(3.0))
    source.other.zero_()
    assert torch.equal(staged.other, torch.ones(2))


def test_untyped_storages_are_staged(stager):
    tensor = torch.arange(4, dtype=torch.uint8)
    staged = stager.stage({"s": tensor.untyped_storage(), "t": tensor})
    assert staged["s"].tolist() == [0, 1, 2, 3]
    assert staged["s"].data_ptr() == staged["t"].data_ptr()


# Identity: the storage, not the address.

def test_a_new_storage_never_writes_over_what_another_was_staged_to(stager):
    kept = []
    for i in range(50):  # the allocator gives freed addresses again
        source = torch.full((1000,), float(i))
        kept.append(stager.stage(source))
        del source
    for i, staged in enumerate(kept):
        assert torch.equal(staged, torch.full((1000,), float(i)))


def test_the_memory_of_a_dead_storage_is_used_again(stager):
    addresses = set()
    for _ in range(20):
        source = torch.zeros(100_000)
        addresses.add(stager.stage(source).data_ptr())
        del source
    assert len(mapping(stager)) == 0
    assert len(addresses) < 5


def test_a_tensor_whose_data_was_replaced_is_followed(stager):
    source = torch.zeros(4)
    stager.stage([source])
    source.data = torch.ones(8)
    assert torch.equal(stager.stage([source])[0], torch.ones(8))


def test_a_storage_that_was_resized_is_followed(stager):
    source = torch.zeros(4)
    first = stager.stage([source])[0]
    source.resize_(1000).fill_(2)
    second = stager.stage([source])[0]
    assert torch.equal(second, torch.full((1000,), 2.0))
    assert torch.equal(first, torch.zeros(4))


def test_what_was_staged_can_be_staged(stager):
    source = torch.arange(3.0)
    first = stager.stage([source])[0]
    second = stager.stage([first])[0]
    source.zero_()
    assert torch.equal(second, torch.arange(3.0))
    assert second.data_ptr() != first.data_ptr()


def test_a_result_that_torch_puts_into_other_memory_is_left_alone(stager):
    source = torch.zeros(4)
    state = {"a": source, "b": torch.ones(2)}
    results = []
    for i in range(5):  # the slow walk and the plan
        source.fill_(i)
        result = stager.stage(state)
        results.append(result["a"].share_memory_())
        assert torch.equal(results[-1], torch.full((4,), float(i)))
    source.fill_(9)
    assert torch.equal(stager.stage(state)["a"], torch.full((4,), 9.0))


def test_the_stager_keeps_no_source_alive(stager):
    source = torch.zeros(10)
    staged = stager.stage({"a": source})
    reference = torch.utils.weak.WeakTensorKeyDictionary()
    reference[source] = True
    del source
    gc.collect()
    assert len(reference) == 0
    assert torch.equal(staged["a"], torch.zeros(10))


# Structures that were staged before are walked by a plan.

def planned():
    weight = torch.arange(6.0).reshape(2, 3)
    inner = collections.OrderedDict(w=weight, b=torch.ones(2, requires_grad=True))
    inner._metadata = {"version": 1}
    return {"inner": inner, "list": [1, torch.zeros(3), "x"], "tie": weight, "t": (2, weight[1:]),
            "twin": weight.view_as(weight), "one": torch.ones(1, 4),
            "nibbles": torch.arange(4, dtype=torch.uint8).view(torch.uint4)}  # fmt: skip


def _set(path, value):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value(state[path[-1]]) if callable(value) else value

    return change


KEPT: list = []


def _attribute(state):
    state["inner"]["w"].unit = "m"


@pytest.mark.parametrize(
    "change",
    [
        lambda state: None,
        lambda state: state["list"][1].fill_(7),
        _set(["list", 0], 5),
        _set(["list", 2], None),
        _set(["list", 0], torch.ones(1)),
        _set(["list", 1], 3),
        _set(["list", 1], lambda t: torch.zeros(3)),
        _set(["list", 1], lambda t: KEPT.append(t) or torch.full((3,), 5.0)),  # both are alive
        lambda state: state["list"][1].untyped_storage().resize_(4000),
        _set(["list", 1], lambda t: t.double()),
        _set(["list", 1], lambda t: t.view(torch.int32)),
        _set(["list", 1], lambda t: t[1:]),
        _set(["list", 1], lambda t: t.view(3, 1)),
        _set(["one"], lambda t: t.as_strided((1, 4), (9, 1))),
        _set(["nibbles"], lambda t: t[1:]),
        _set(["nibbles"], lambda t: t.view(torch.uint8)),
        _set(["twin"], lambda t: t[:1]),
        _set(["list", 1], lambda t: torch.nn.Parameter(t)),
        lambda state: state["inner"]["w"].t_(),
        lambda state: state["list"][1].resize_(100).fill_(3),
        _set(["tie"], lambda t: t.view_as(t)),
        _set(["tie"], lambda t: t.clone()),
        _set(["list", 1], lambda t: [t]),
        _attribute,
        lambda state: state["list"].append(1),
        lambda state: state.update(more=torch.ones(2)),
        lambda state: state.update(same=state["list"]),
        lambda state: state["inner"]._metadata.update(version=2),
        lambda state: state["inner"].move_to_end("w"),
        lambda state: state.pop("tie"),
    ],
)
def test_a_state_that_changed_after_it_was_planned(stager, change):
    state = planned()
    first = stager.stage(state)
    assert len(stager._plans) == 1
    first["list"][1].resize_(0)  # a result is its owner's
    first["inner"]["w"].t_()
    with torch.no_grad():
        change(state)
    fresh = StateDictStager().stage(state)
    for _ in range(2):
        staged = stager.stage(state)
        assert_same(staged, fresh)
        assert (staged["list"] is staged.get("same")) == ("same" in state)
        assert (staged["inner"]["w"] is staged.get("tie")) == (
            state["inner"]["w"] is state.get("tie")
        )
        assert staged["inner"]._metadata == state["inner"]._metadata
        assert staged["inner"]._metadata is not state["inner"]._metadata


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.stride(), a.storage_offset(), a.__dict__, a.requires_grad) == (
            b.dtype, b.shape, b.stride(), b.storage_offset(), b.__dict__, b.requires_grad,
        )  # fmt: skip
        assert a.untyped_storage().tolist() == b.untyped_storage().tolist()
        assert a.untyped_storage().nbytes() == b.untyped_storage().nbytes()
    elif isinstance(a, dict):
        assert [*a] == [*b]
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b


def test_two_tensors_of_one_storage_become_one_tensor(stager):
    weight = torch.ones(3)
    state = {"a": weight, "b": weight.view_as(weight)}
    assert stager.stage(state)["a"] is not stager.stage(state)["b"]
    state["b"] = weight
    for _ in range(2):
        staged = stager.stage(state)
        assert staged["a"] is staged["b"]


@pytest.mark.parametrize("of", ["sparse", "conjugate", "negative", "key"])
def test_what_a_plan_cannot_know_is_the_slow_walks(stager, of):
    base = torch.arange(4.0).to(torch.complex64)
    state = {"a": torch.ones(2), "b": torch.view_as_real(base)[:, 1] if of == "negative" else base, 1: 2}
    kept = dict(state)  # a source that is gone takes its plans with it
    stager.stage(state)
    assert stager._plans
    if of == "sparse":
        state["a"] = torch.ones(2).to_sparse()
        with pytest.raises(InvalidArgument, match="the tensor at 'a' has layout torch.sparse_coo"):
            stager.stage(state)
        assert stager._plans and kept
        return
    if of == "key":
        del state[1]
        state[True] = 2  # equal, and not the same
    else:
        state["b"] = base.conj() if of == "conjugate" else base.conj().imag
    staged = stager.stage(state)
    assert [*map(type, staged)] == [*map(type, state)]
    assert torch.equal(staged["b"], state["b"])
    assert staged["b"].is_conj() == (of == "conjugate") and staged["b"].is_neg() == (of == "negative")


def test_a_plan_does_not_outlive_its_sources():
    stager = StateDictStager()
    state = planned()
    stager.stage(state)
    assert stager._plans
    del state["list"][1]
    assert not stager._plans and len(mapping(stager)) == 4


def test_deepcopy_with_tensor_offload_uses_the_memo(stager):
    source = torch.ones(2)
    memo = {id(source): "mine"}
    assert stager.deepcopy_with_tensor_offload([source], memo) == ["mine"]


# Refused, by path.

@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.eye(3).to_sparse(), "layout"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.empty(3, device="meta"), "meta"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch._efficientzerotensor((3,)), "no memory"),
    ],
    ids=["sparse", "quantized", "meta", "nested", "no memory"],
)
def test_refused_with_the_path(stager, make, why):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = make()
    with pytest.raises(InvalidArgument, match=f"optimizer.state.0.*{why}") as caught:
        stager.stage({"optimizer": {"state": [tensor]}})
    assert caught.value.path == "optimizer.state.0"
    assert torch.equal(stager.stage(torch.ones(2)), torch.ones(2))  # still usable


class Opaque(torch.Tensor):
    """A wrapper that does not say which tensors it wraps."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):
        raise NotImplementedError(function)


class Known(Opaque):
    def __tensor_flatten__(self):
        return ["inner"], "context"

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        assert context == "context"
        return Known(inner["inner"])


def test_wrappers_are_walked_where_they_say_how_and_refused_elsewhere(stager):
    inner = torch.arange(3.0)
    staged = stager.stage({"w": Known(inner), "inner": inner})
    assert type(staged["w"]) is Known and staged["w"].inner is staged["inner"]
    inner.zero_()
    assert torch.equal(staged["w"].inner, torch.arange(3.0))
    with pytest.raises(InvalidArgument, match="layer.weight.*wrapper") as caught:
        stager.stage({"layer": {"weight": Opaque(inner)}})
    assert caught.value.path == "layer.weight"


# Options, closing, memory.

def test_pin_memory_without_cuda_warns_and_goes_on():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.warns(UserWarning, match="CUDA"):
        stager = StateDictStager(pin_memory=True)
    assert torch.equal(stager.stage(torch.ones(3)), torch.ones(3))
    assert not stager.pin_memory


def test_close_leaves_results_alone(stager):
    source = torch.ones(3)
    staged = stager.stage([source])
    stager.close()
    stager.close()
    assert len(stager._cached_storage_mapping) == 0
    assert torch.equal(staged[0], torch.ones(3))
    with pytest.raises(InvalidState, match="closed"):
        stager.stage([source])


def test_a_stager_without_users_is_freed_at_once():
    import weakref

    stager = StateDictStager()
    stager.stage([torch.ones(3)])
    gone = weakref.ref(stager)
    gc.disable()
    try:
        del stager
        assert gone() is None
    finally:
        gc.enable()


def test_staging_many_times_does_not_grow():
    import resource

    stager = StateDictStager()
    def once():
        stager.stage({"w": torch.zeros(1_000_000), "n": [torch.zeros(100) for _ in range(20)]})

    once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        once()
    # A copy that is kept is 400 MB; the C library's heap keeps up to a dozen that were given back.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_structures_take_turns(stager):
    states = [{f"t{i}": torch.full((i + 1,), float(i))} for i in range(7)]
    for _ in range(3):
        staged = [stager.stage(state) for state in states]
    for i, one in enumerate(staged):
        assert torch.equal(one[f"t{i}"], torch.full((i + 1,), float(i)))
    assert len(mapping(stager)) == 7
