"""What takes the place of PyTorch's classes. Importing it imports torch."""

from meshstage.torch._async_stager import Stager
from meshstage.torch._stager import StateDictStager
from meshstage.torch._state import State, state

__all__ = ["Stager", "State", "StateDictStager", "state"]
