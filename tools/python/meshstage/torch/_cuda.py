"""CUDA's part in torch's doors: which devices are taken, and on which streams."""

import functools
import warnings

import torch

from meshstage import _meshstage
from meshstage.errors import InvalidState


def problem() -> str | None:
    """Why tensors on CUDA devices cannot be read by meshstage; None where they can."""
    return _meshstage.cuda_problem()


@functools.cache
def copied_by_torch() -> bool:
    """Whether torch has to copy what is on a CUDA device. Warns once, at the first such tensor."""
    why = problem()
    if why is not None:
        warnings.warn(f"tensors on CUDA devices are copied by torch, more slowly: {why}", stacklevel=2)
    return why is not None


def number(device: torch.device) -> int:
    """What the module takes for a device: -1 for the CPU."""
    return device.index if device.type == "cuda" else -1


class Streams:
    """Puts the copies of one staging or recovery behind the work on torch's current streams.

    meshstage copies behind the legacy default stream of each device, which is torch's default
    stream. Where torch's current stream is another one, the default stream is made to wait for it.
    """

    def __init__(self):
        self._devices: set[int] = set()

    def order(self, device: int) -> None:
        """Once for each device, on the caller's thread, before anything is copied from it."""
        if device in self._devices:
            return
        self._devices.add(device)
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                raise InvalidState(f"the current stream of cuda:{device} is being captured")
        current, default = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
        if current != default:
            default.wait_stream(current)
