"""state(): modules, optimizers and the like as the state of a Checkpointer, recovered in place."""

import copy
from typing import Any

import torch

from meshstage.errors import InvalidArgument
from meshstage.torch import _groups


def state(*, rng: bool = False, **parts: Any) -> "State":
    """What a Checkpointer stages and recovers of a training:

        state = meshstage.torch.state(model=model, optimizer=optimizer, scheduler=scheduler, rng=True)
        for step in ckpt.steps(state, 1000): ...

    A module gives its parameters and buffers by name (names of a compiled module are the plain
    module's), and its extra states; a module whose state_dict() gives copies, as FSDP1's full one,
    is refused. An optimizer gives its state by the names that the given modules have for its
    parameters, and its options; whatever has state_dict() and load_state_dict() gives that; all
    else is taken as it is. Tensors are recovered in place; numbers go back to where they came from.
    ``rng`` adds torch's generators of random numbers: the CPU's, and those of the modules' CUDA
    devices.

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
        self._checked: set[int] = set()  # modules, by id
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
                _make_state(part, _stateful(value))

    def read(self) -> dict[str, Any]:
        """The state as it is now: tensors are views of the parts' own."""
        tree = {name: self._read(name, value) for name, value in self._parts.items()}
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
                for key, inner in _extra_states(value).items():  # all else is in place
                    if key in tree[name]:
                        inner.set_extra_state(tree[name][key])
            elif isinstance(value, torch.optim.Optimizer):
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

    def _read(self, part: str, value: Any) -> Any:
        if isinstance(value, torch.nn.Module):
            tensors = value.state_dict()
            if id(value) not in self._checked:
                _check_in_place(part, value, tensors)
                self._checked.add(id(value))
            return {_plain(name): tensor for name, tensor in tensors.items()}
        if isinstance(value, torch.optim.Optimizer):
            return self._read_optimizer(value)
        if _has_state(value):
            return _apart(value.state_dict())
        return value

    def _read_optimizer(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        states, groups = {}, []
        stateful = _stateful(optimizer)
        for i, group in enumerate(optimizer.param_groups):
            for j, parameter in enumerate(group["params"]):
                if parameter in stateful.state:
                    name = self._names.get(parameter, f"{i}.{j}")
                    states[name] = {key: _apart(x) for key, x in stateful.state[parameter].items()}
            options = {key: _apart(value) for key, value in group.items() if key != "params"}
            groups.append({"options": options})
        return {"state": states, "groups": groups}

    def _write_optimizer(self, optimizer: torch.optim.Optimizer, tree: dict[str, Any]) -> None:
        stateful = _stateful(optimizer)
        for i, (group, saved) in enumerate(zip(optimizer.param_groups, tree["groups"])):
            group.update(saved["options"])
            for j, parameter in enumerate(group["params"]):
                name = self._names.get(parameter, f"{i}.{j}")
                if name in tree["state"]:
                    stateful.state[parameter].update(tree["state"][name])


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _has_state(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _apart(value: Any) -> Any:
    """The same leaves in dicts and lists of their own at each place. Which of its places share a list
    changes while an object works (SequentialLR's _last_lr), and the object is given all of them."""
    if isinstance(value, dict):
        made = copy.copy(value)  # a Counter stays one
        for key, inner in value.items():
            made[key] = _apart(inner)
        return made
    if isinstance(value, list):
        made = copy.copy(value)
        made[:] = [_apart(inner) for inner in value]
        return made
    return value


def _stateful(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that has the parameters' state: ZeroRedundancyOptimizer has it in another one,
    for this rank's share of the parameters."""
    if type(optimizer).__name__ != "ZeroRedundancyOptimizer":
        return optimizer
    if not isinstance(getattr(optimizer, "optim", None), torch.optim.Optimizer):
        raise InvalidArgument(
            "a ZeroRedundancyOptimizer with overlap_with_ddp has no state before its first steps: "
            "make it without"
        )
    return optimizer.optim


def _check_in_place(part: str, module: torch.nn.Module, tensors: dict[str, Any]) -> None:
    """Throws if a tensor of state_dict() is not the module's own memory: recovering it would change
    a copy, and the module nothing. Also if an extra state cannot be given back."""
    own = {_memory(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    own.add(None)  # of what hides its memory nothing is known
    extra = _extra_states(module)
    for name, value in tensors.items():
        if name.rpartition(".")[2] == _EXTRA:
            if _plain(name) not in extra:
                raise InvalidArgument(
                    f"'{part}': '{name}' could not be given back: no module of that name has set_extra_state()"
                )
        elif isinstance(value, torch.Tensor) and _memory(value) not in own:
            raise InvalidArgument(
                f"'{part}': state_dict() of {type(module).__name__} gives a copy of '{name}', which "
                "recover() cannot put back in place. FSDP1 does so for its full state: use "
                "fully_shard (FSDP2), or a module whose state_dict() has its own tensors"
            )


def _memory(tensor: torch.Tensor) -> Any:
    """What tensors of the same memory have in common; None for classes that hide where it is."""
    local = getattr(tensor, "_local_tensor", tensor)  # a DTensor's
    if local.numel() == 0 or type(local) not in (torch.Tensor, torch.nn.Parameter):
        return None
    return local.device, local.untyped_storage().data_ptr()


_EXTRA = "_extra_state"


def _extra_states(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules inside that take an extra state, by its name in state_dict()."""
    found = {}
    for name, inner in module.named_modules(remove_duplicate=False):
        if type(inner).set_extra_state is not torch.nn.Module.set_extra_state:
            name = _plain(f"{name}." if name else "").replace("_checkpoint_wrapped_module.", "")
            found[name + _EXTRA] = inner
    return found


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
