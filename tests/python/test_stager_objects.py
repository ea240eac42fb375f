"""meshstage.torch.StateDictStager: containers and other objects around the tensors."""

import collections
import copy
import dataclasses
import enum

import pytest

torch = pytest.importorskip("torch")


@dataclasses.dataclass
class Plain:
    tensor: torch.Tensor
    names: list


@dataclasses.dataclass(frozen=True)
class Frozen:
    tensor: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots:
    tensor: torch.Tensor


class Reads:
    """Its state setter reads the tensor's bytes, which must be there by then."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.sum = self.tensor.sum().item()


class Rebuilt:
    def __init__(self, tensor):
        self.tensor = tensor
        self.sum = tensor.sum().item()

    def __reduce__(self):
        return Rebuilt, (self.tensor,)


class Color(enum.Enum):
    RED = 1


class ListOf(list):
    pass


class DictOf(dict):
    pass


def test_objects_by_the_deepcopy_protocol(stager):
    tensor = torch.arange(4.0)
    state = {
        "plain": Plain(tensor, ["a"]),
        "frozen": Frozen(tensor),
        "slots": FrozenSlots(tensor),
        "reads": Reads(tensor),
        "rebuilt": Rebuilt(tensor),
        "color": Color.RED,
        "set": {1, 2},
        "list": ListOf([tensor, 1]),
        "dict": DictOf(a=tensor),
        "ordered": collections.OrderedDict(b=tensor),
        "default": collections.defaultdict(list, c=[tensor]),
        "bound": Plain(tensor, []).__repr__,
        (1, "key"): None,
    }
    staged = stager.stage(state)
    tensor_staged = staged["plain"].tensor
    tensor.zero_()
    expected = torch.arange(4.0)
    for found in (
        staged["plain"].tensor, staged["frozen"].tensor, staged["slots"].tensor,
        staged["reads"].tensor, staged["rebuilt"].tensor, staged["list"][0], staged["dict"]["a"],
        staged["ordered"]["b"], staged["default"]["c"][0], staged["bound"].__self__.tensor,
    ):  # fmt: skip
        assert torch.equal(found, expected)
        assert found is tensor_staged
    assert staged["reads"].sum == staged["rebuilt"].sum == 6.0
    assert staged["color"] is Color.RED and staged["set"] == {1, 2}
    assert type(staged["list"]) is ListOf and type(staged["dict"]) is DictOf
    assert staged["default"].default_factory is list
    assert staged["plain"].names == ["a"] and staged["plain"].names is not state["plain"].names
    assert (1, "key") in staged


def test_sharing_and_cycles_in_containers_are_kept(stager):
    inner = [torch.ones(2)]
    loop: list = [inner]
    loop.append(loop)
    state = {"a": inner, "b": inner, "loop": loop}
    staged = stager.stage(state)
    assert staged["a"] is staged["b"] and staged["a"] is not inner
    assert staged["loop"][1] is staged["loop"] and staged["loop"][0] is staged["a"]


def test_a_module_and_its_optimizer(stager):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    expected = copy.deepcopy(state)
    staged = stager.stage(state)
    assert staged["model"]._metadata == state["model"]._metadata
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name, tensor in expected["model"].items():
        assert torch.equal(staged["model"][name], tensor)
    assert staged["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    fresh = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    fresh.load_state_dict(staged["model"])
