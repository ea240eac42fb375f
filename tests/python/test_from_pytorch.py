"""The names in FROM_PYTORCH.md exist: those of the lines after, and those of the lines before."""

import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("torch.distributed.checkpoint")

PAGE = Path(__file__).parents[2] / "tools" / "python" / "FROM_PYTORCH.md"
OPTIONAL = ("torchft", "torchtitan", "pytorch_lightning")
NEEDS = {"meshstage.torchft": "torchft", "meshstage.torchtitan": "torchtitan",
         "meshstage.lightning": "pytorch_lightning"}  # fmt: skip


def names():
    """Each dotted name, and each pair of an import."""
    found = set()
    for block in re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for line in block.splitlines():
            imported = re.match(r"[-+]from ([\w.]+) import (\w+)$", line)
            if imported:
                found.add(".".join(imported.groups()))
                continue
            roots = "meshstage|dcp|" + "|".join(OPTIONAL)
            found |= set(re.findall(rf"(?<![\w.])(?:{roots})(?:\.\w+)+", line))
    return sorted(found)


def test_the_page_has_what_the_table_has():
    assert len(names()) > 14


@pytest.mark.parametrize("name", names())
def test_a_name_exists(name):
    for needed in OPTIONAL:
        if name.startswith(needed) or any(
            name.startswith(ours) and theirs == needed for ours, theirs in NEEDS.items()
        ):
            pytest.importorskip(needed)
    if name.startswith("dcp."):
        name = "torch.distributed.checkpoint" + name[3:]
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 1):
        if not hasattr(found, part):
            found = importlib.import_module(".".join(parts[: i + 1]))
        else:
            found = getattr(found, part)
