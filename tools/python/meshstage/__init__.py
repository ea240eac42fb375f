"""meshstage: checkpoints in the ranks' memory, for trainers in Python.

``meshstage.torch`` has what takes the place of PyTorch's classes; this package needs no torch, and
imports it where ``meshstage.torch`` is first used.
"""

import importlib

from meshstage import errors
from meshstage._checkpointer import Checkpointer, Recovered, Staging
from meshstage._steps import Step
from meshstage.errors import (
    Cancelled,
    CorruptData,
    Error,
    Fenced,
    InvalidArgument,
    InvalidState,
    IoError,
    NotFound,
    OutOfMemory,
    PeerLost,
    PeerSilent,
    RejoinNeeded,
    StructureMismatch,
    Timeout,
    Unrecoverable,
)

__all__ = [
    "Cancelled",
    "Checkpointer",
    "CorruptData",
    "Error",
    "Fenced",
    "InvalidArgument",
    "InvalidState",
    "IoError",
    "NotFound",
    "OutOfMemory",
    "PeerLost",
    "PeerSilent",
    "Recovered",
    "RejoinNeeded",
    "Staging",
    "Step",
    "StructureMismatch",
    "Timeout",
    "Unrecoverable",
    "errors",
]

_MODULES_OF_TORCH = ("dcp", "lightning", "torch", "torchft", "torchtitan")  # imported at first use


def __getattr__(name):
    if name in _MODULES_OF_TORCH:
        return importlib.import_module(f"meshstage.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
