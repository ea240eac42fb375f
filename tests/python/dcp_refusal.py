"""What a user reads when dcp.load refuses a checkpoint."""

import re
import warnings

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException


def refusal(load, match):
    """``load`` fails, with a reason that has ``match``. Returns the reason: DCP's error, and where
    that hides why the metadata could not be read (torch before 2.15), the Reader's warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(CheckpointException) as raised:
            load()
    reason = str(raised.value)
    if torch.__version__ < (2, 15) and "metadata is None" in reason:
        reason += "\n".join(str(warning.message) for warning in caught)
    assert re.search(match, reason), reason
    return reason
