"""What takes the place of PyTorch's classes. Importing it imports torch."""

from meshstage.torch._async_stager import Stager
from meshstage.torch._stager import StateDictStager

__all__ = ["Stager", "StateDictStager"]
