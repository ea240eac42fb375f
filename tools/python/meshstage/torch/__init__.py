"""What takes the place of PyTorch's classes. Importing it imports torch."""

from meshstage.torch._async_stager import Stager
from meshstage.torch._stager import StateDictStager
from meshstage.torch._state import State, state

__all__ = ["PGTransport", "ReplicationStager", "Stager", "State", "StateDictStager", "state"]


def __getattr__(name):
    if name in ("PGTransport", "ReplicationStager"):  # these import torch.distributed
        from meshstage.torch import _pg_transport

        return getattr(_pg_transport, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
