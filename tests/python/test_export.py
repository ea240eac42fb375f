"""`meshstage export` gives PyTorch a file that load_state_dict takes, of a tied model, too."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

import meshstage  # noqa: E402
import meshstage.torch  # noqa: E402


class Tied(torch.nn.Module):
    """A language model's ends: the head is the embedding."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.wte = torch.nn.Embedding(50, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.head = torch.nn.Linear(8, 50, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens):
        return self.head(self.norm(self.wte(tokens)))


def export(source, *arguments):
    """The file that the command writes of it, as PyTorch's users read it."""
    out = source.parent / "exported.safetensors"
    subprocess.run(
        [sys.executable, "-m", "meshstage", "export", source, *arguments, "--force", "-o", out],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return safetensors.load_file(out)


def same_answers(one, other):
    tokens = torch.arange(50)
    return torch.equal(one(tokens), other(tokens))


def test_a_persisted_tied_model_loads_by_its_names(tmp_path):
    model = Tied(1)
    optimizer = torch.optim.AdamW(model.parameters())
    state = meshstage.torch.state(model=model, optimizer=optimizer)
    with meshstage.Checkpointer(
        job="tied", directory=tmp_path, vault_directory=tmp_path, rank=0, world_size=1
    ) as ckpt:
        for step in ckpt.steps(state, 2, stage_every=1):
            with step:
                model(torch.arange(50)).square().mean().backward()
                step.before_update()
                optimizer.step()
                optimizer.zero_grad()
    (image,) = tmp_path.glob("*.safetensors")
    # By itself the image has each storage once, under names of its own: no state dict.
    assert set(safetensors.load_file(image)) & set(model.state_dict()) == set()

    exported = export(image, "--path", "model")
    other = Tied(2)
    assert not same_answers(model, other)
    assert set(exported) == set(model.state_dict())  # the tied tensor under both names
    other.load_state_dict(exported, strict=True)
    assert same_answers(model, other)
    assert other.head.weight is other.wte.weight


def test_a_checkpoint_in_several_files_loads_as_one_state_dict(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    files = {"0": "model-1-of-2.safetensors", "1": "model-2-of-2.safetensors"}
    state = model.state_dict()
    for part, name in files.items():
        safetensors.save_file(
            {k: v for k, v in state.items() if k.startswith(part)}, tmp_path / name
        )
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: files[name[0]] for name in state}}))

    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    other.load_state_dict(export(index), strict=True)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name]), name
