"""meshstage: checkpoints in the ranks' memory, for trainers in Python.

``meshstage.torch`` has what takes the place of PyTorch's classes; this package needs no torch.
"""

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
