"""meshstage.lightning.CheckpointIO in a Trainer of Lightning's, where one is installed."""

import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("pytorch_lightning")

from meshstage import errors  # noqa: E402
from meshstage.lightning import CheckpointIO  # noqa: E402

pytestmark = pytest.mark.usefixtures("quiet")


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, _):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(24.0).reshape(8, 3), batch_size=2)


def trainer(tmp_path, epochs):
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, plugins=[CheckpointIO()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def test_a_trainer_saves_by_it_and_goes_on(tmp_path):
    torch.manual_seed(1)
    start = Model()
    first = {name: value.clone() for name, value in start.state_dict().items()}
    trainer(tmp_path, 4).fit(start)  # undisturbed

    cut = Model()
    cut.load_state_dict(first)
    stopped = trainer(tmp_path, 2)
    stopped.fit(cut)
    stopped.save_checkpoint(tmp_path / "deep" / "x.ckpt")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["x.ckpt"]
    again = Model()
    trainer(tmp_path, 4).fit(again, ckpt_path=str(tmp_path / "deep" / "x.ckpt"))
    for name, value in again.state_dict().items():
        assert torch.equal(value, start.state_dict()[name]), name


def test_a_save_that_fails_leaves_the_file_of_before(tmp_path, monkeypatch):
    io, path = CheckpointIO(), tmp_path / "x.ckpt"
    io.save_checkpoint({"w": torch.ones(3)}, path)

    def cut(*_):
        raise OSError("no power")

    with monkeypatch.context() as patch:
        patch.setattr("meshstage._publish.os.replace", cut)
        with pytest.raises(OSError, match="no power"):
            io.save_checkpoint({"w": torch.zeros(3)}, path)
    assert torch.equal(io.load_checkpoint(path)["w"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]
    io.remove_checkpoint(path)
    assert not path.exists()


def test_what_is_not_local_is_refused(tmp_path):
    with pytest.raises(errors.InvalidArgument, match="is not local"):
        CheckpointIO().save_checkpoint({}, "s3://bucket/x.ckpt")
    with pytest.raises(TypeError):
        CheckpointIO().save_checkpoint({}, tmp_path / "x", storage_options={})
