"""state(): modules, optimizers and the like as the state of a Checkpointer, recovered in place."""

from typing import Any

import torch

from meshstage.errors import InvalidArgument
from meshstage.torch import _groups


def state(*, rng: bool = False, **parts: Any) -> "State":
    """What a Checkpointer stages and recovers of a training:

        state = meshstage.torch.state(model=model, optimizer=optimizer, scheduler=scheduler, rng=True)
        for step in ckpt.steps(state, 1000): ...

    A module gives its parameters and buffers by name (names of a compiled module are the plain
    module's); an optimizer its state by the names that the given modules have for its parameters,
    and its options; whatever has state_dict() and load_state_dict() gives that; all else is taken
    as it is. Tensors are recovered in place; numbers go back to where they came from. ``rng`` adds
    torch's generators of random numbers: the CPU's, and those of the modules' CUDA devices.

    An optimizer that has not stepped yet gets the state that its first step would begin with, so
    that a process that has just started can recover: Adam, AdamW, RMSprop, SGD. Of others, and of
    SGD with momentum and dampening, make the state (one step) before the first recover().
    """
    return State(parts, rng)


class State:
    """See state(). Read anew at each staging, so parts may replace their tensors."""

    def __init__(self, parts: dict[str, Any], rng: bool):
        self._parts = parts
        self._rng = rng
        self._devices: set[int] = set()  # CUDA's, by number
        names: dict[torch.Tensor, str] = {}
        for part, value in parts.items():
            if isinstance(value, torch.nn.Module):
                for name, parameter in value.named_parameters():
                    names.setdefault(parameter, f"{part}.{_plain(name)}")
                    if parameter.device.type == "cuda":
                        self._devices.add(parameter.device.index)
        self._names = names
        for part, value in parts.items():
            if isinstance(value, torch.optim.Optimizer):
                _make_state(part, value)

    def read(self) -> dict[str, Any]:
        """The state as it is now: tensors are views of the parts' own."""
        tree = {name: self._read(value) for name, value in self._parts.items()}
        if self._rng:
            tree["rng"] = torch.get_rng_state()
            if self._devices:
                tree["cuda_rng"] = {  # by place: another rank may have it on another device
                    i: torch.cuda.get_rng_state(device)
                    for i, device in enumerate(sorted(self._devices))
                }
        return tree

    def write(self, tree: dict[str, Any]) -> None:
        """Puts what is no tensor back, after a recovery into what read() returned."""
        for name, value in self._parts.items():
            if isinstance(value, torch.nn.Module):
                continue  # in place
            if isinstance(value, torch.optim.Optimizer):
                self._write_optimizer(value, tree[name])
            elif _has_state(value):
                value.load_state_dict(tree[name])
            else:
                self._parts[name] = tree[name]
        if self._rng:
            torch.set_rng_state(tree["rng"])
            generators = tree.get("cuda_rng", {})
            for device, i in zip(sorted(self._devices), generators, strict=True):
                torch.cuda.set_rng_state(generators[i], device)

    def plain_kinds(self) -> dict[str, str]:
        """The parts that each rank has for itself, as Checkpointer's ``any_world`` names them."""
        return {"rng": "per rank", "cuda_rng": "per rank"} if self._rng else {}

    def user_of_groups(self) -> str:
        """What of the parts uses a process group of torch's (DDP, FSDP, FSDP2, DTensors on a mesh
        with groups), in words for a log: "'model' is a DistributedDataParallel"; "" for none."""
        return _groups.user_of_groups(self._parts)

    def __getitem__(self, name: str) -> Any:
        return self._parts[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Replaces a part that is taken as it is: a number, say."""
        if name not in self._parts:
            raise KeyError(name)
        self._parts[name] = value

    def _read(self, value: Any) -> Any:
        if isinstance(value, torch.nn.Module):
            return {_plain(name): part for name, part in value.state_dict().items()}
        if isinstance(value, torch.optim.Optimizer):
            return self._read_optimizer(value)
        if _has_state(value):
            return value.state_dict()
        return value

    def _read_optimizer(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        states, groups = {}, []
        for i, group in enumerate(optimizer.param_groups):
            members = []
            for j, parameter in enumerate(group["params"]):
                name = self._names.get(parameter, f"{i}.{j}")
                members.append(name)
                if parameter in optimizer.state:
                    states[name] = dict(optimizer.state[parameter])
            options = {key: value for key, value in group.items() if key != "params"}
            groups.append({"params": members, "options": options})
        return {"state": states, "groups": groups}

    def _write_optimizer(self, optimizer: torch.optim.Optimizer, tree: dict[str, Any]) -> None:
        for i, (group, saved) in enumerate(zip(optimizer.param_groups, tree["groups"])):
            group.update(saved["options"])
            for j, parameter in enumerate(group["params"]):
                name = self._names.get(parameter, f"{i}.{j}")
                if name in tree["state"]:
                    optimizer.state[parameter].update(tree["state"][name])


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _has_state(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


@torch.no_grad()
def _make_state(part: str, optimizer: torch.optim.Optimizer) -> None:
    """The state that a first step begins with, where there is none yet."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and not optimizer.state.get(parameter):
                made = _first_state(part, optimizer, group, parameter)
                if made:
                    optimizer.state[parameter].update(made)


def _first_state(part, optimizer, group, parameter) -> dict[str, Any]:
    def zeros():
        return torch.zeros_like(parameter, memory_format=torch.preserve_format)

    kind = type(optimizer)
    if kind is torch.optim.SGD:
        if not group["momentum"]:
            return {}
        if group["dampening"]:
            raise InvalidArgument(
                f"'{part}' is SGD with momentum and dampening, which begins with the first "
                "gradient: step once before state()"
            )
        return {"momentum_buffer": zeros()}
    if kind not in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop):
        return {}
    on_device = group.get("capturable") or group.get("fused")
    step = torch.zeros(
        (),
        dtype=torch.float32 if group.get("fused") else _step_dtype(),
        device=parameter.device if on_device else None,
    )
    if kind is torch.optim.RMSprop:
        made = {"step": step, "square_avg": zeros()}
        if group["momentum"] > 0:
            made["momentum_buffer"] = zeros()
        if group["centered"]:
            made["grad_avg"] = zeros()
        return made
    made = {"step": step, "exp_avg": zeros(), "exp_avg_sq": zeros()}
    if group["amsgrad"]:
        made["max_exp_avg_sq"] = zeros()
    return made


def _step_dtype() -> torch.dtype:
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
