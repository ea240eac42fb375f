"""meshstage.torch.state: a training of torch's, as it was, in the next process."""

import copy

import pytest

torch = pytest.importorskip("torch")

import meshstage  # noqa: E402
import meshstage.torch  # noqa: E402
from meshstage import errors  # noqa: E402

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p),
}


class Training:
    """A small model with frozen parameters, dropout, batch norm and a schedule."""

    def __init__(self, optimizer):
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5),
            torch.nn.Linear(8, 2),
        )  # fmt: skip
        self.model[0].bias.requires_grad = False
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        self.state = None

    def as_state(self):
        self.state = meshstage.torch.state(
            model=self.model, optimizer=self.optimizer, scheduler=self.scheduler, rng=True, seen=0
        )
        return self.state

    def train(self, steps):
        for _ in range(steps):
            self.model(torch.randn(16, 4)).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            if self.state is not None:
                self.state["seen"] += 1

    def bits(self):
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))


def assert_same_bits(a, b):
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_recovered_training_goes_on_with_the_same_bits(make, optimizer):
    undisturbed = Training(optimizer)
    undisturbed.train(9)  # without a state: what torch does by itself

    first = Training(optimizer)
    state = first.as_state()
    ckpt = make()
    assert ckpt.recover(state).step == 0
    first.train(5)
    staging = ckpt.stage(state, 5)
    assert staging.wait(60) and staging.outcome(60) == "complete"
    first.train(1)

    second = Training(optimizer)  # a new process would: nothing has stepped yet
    weight = second.model[0].weight.data_ptr()
    state = second.as_state()
    assert make().recover(state).step == 5
    assert state["seen"] == 5
    second.train(4)
    assert second.model[0].weight.data_ptr() == weight
    assert_same_bits(second.bits(), undisturbed.bits())
    assert second.scheduler.state_dict() == undisturbed.scheduler.state_dict()


def test_optimizer_state_goes_by_the_parameters_names(make):
    first = Training("adamw")
    state = first.as_state()
    assert "model.3.weight" in state.read()["optimizer"]["state"]
    assert "model.0.bias" not in state.read()["optimizer"]["state"]  # frozen


class Counted(torch.nn.Module):
    """A module with an extra state, a tensor and a number, beside its parameter."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.mean = 0, 0.0

    def get_extra_state(self):
        return {"seen": self.seen, "mean": torch.tensor(self.mean)}

    def set_extra_state(self, state):
        self.seen, self.mean = state["seen"], float(state["mean"])


def recovered_in_another(make, first, second):
    """Stages the state first() gives, and recovers into the one second() gives."""
    ckpt = make()
    ckpt.recover(first)
    assert ckpt.stage(first, 3).outcome(60) == "complete"
    assert make().recover(second).step == 3


@pytest.mark.parametrize("wrap", ["plain", "nested", "compiled"])
def test_a_modules_extra_state_comes_back(make, wrap):
    def build():
        counted = Counted()
        if wrap == "nested":
            return torch.nn.ModuleDict({"a": counted}), counted
        return torch.compile(counted) if wrap == "compiled" else counted, counted

    (model, counted), (again, got) = build(), build()
    counted.seen, counted.mean = 7, 0.25
    counted.w.data.fill_(3)
    recovered_in_another(make, meshstage.torch.state(model=model), meshstage.torch.state(model=again))
    assert (got.seen, got.mean, got.w.item()) == (7, 0.25, 3)


class Copied(torch.nn.Linear):
    """As FSDP1's full state: state_dict() gives copies."""

    def state_dict(self, *args, **kwargs):
        return {name: tensor.clone() for name, tensor in super().state_dict(*args, **kwargs).items()}


class OneWay(torch.nn.Linear):
    """An extra state that nobody takes back."""

    def get_extra_state(self):
        return 7


def test_what_could_not_be_put_back_is_refused_by_name(make):
    with pytest.raises(errors.InvalidArgument, match="'model': .* Copied gives a copy of 'weight'.* fully_shard"):
        make().recover(meshstage.torch.state(model=Copied(2, 2)))
    with pytest.raises(errors.InvalidArgument, match="'model': '_extra_state' could not be given back"):
        make().recover(meshstage.torch.state(model=OneWay(2, 2)))


@pytest.mark.parametrize("before", [12, 25])
def test_a_schedule_of_several_comes_back_after_its_milestone(make, before):
    """SequentialLR shares a list with the schedule that works now, which changes at the milestone."""
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

    def build():
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        several = [LinearLR(optimizer), CosineAnnealingLR(optimizer, 100), MultiStepLR(optimizer, [3, 5])]
        return optimizer, SequentialLR(optimizer, several, [10, 20])

    (optimizer, schedule), (again, got) = build(), build()
    for _ in range(before):
        optimizer.step()
        schedule.step()
    recovered_in_another(
        make,
        meshstage.torch.state(optimizer=optimizer, schedule=schedule),
        meshstage.torch.state(optimizer=again, schedule=got),
    )
    for _ in range(5):
        for one, steps in ((optimizer, schedule), (again, got)):
            one.step()
            steps.step()
        assert schedule.get_last_lr() == got.get_last_lr()


def test_groups_of_an_optimizer_do_not_share_their_options(make):
    def build(betas=(0.9, 0.99)):
        model = torch.nn.Linear(2, 2)
        groups = [{"params": [model.weight]}, {"params": [model.bias]}]
        optimizer = torch.optim.AdamW(groups, betas=betas)  # one tuple for both
        return meshstage.torch.state(model=model, optimizer=optimizer), optimizer

    (state, optimizer), (again, got) = build(), build()
    assert "params" not in state.read()["optimizer"]["groups"][0]  # which differ in a pipeline
    optimizer.param_groups[1]["betas"] = (0.5, 0.6)
    recovered_in_another(make, state, again)
    assert [group["betas"] for group in got.param_groups] == [(0.9, 0.99), (0.5, 0.6)]


def test_a_compiled_modules_names_are_the_plain_ones():
    model = torch.nn.Linear(2, 2)
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(compiled.parameters())
    read = meshstage.torch.state(model=compiled, optimizer=optimizer).read()
    assert set(read["model"]) == {"weight", "bias"}
    assert set(read["optimizer"]["state"]) == {"model.weight", "model.bias"}


def test_sgd_with_dampening_is_refused_before_its_first_step():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, dampening=0.1)
    with pytest.raises(errors.InvalidArgument, match="dampening"):
        meshstage.torch.state(model=model, optimizer=optimizer)


def test_steps_takes_a_state(make):
    training = Training("adamw")
    state = training.as_state()
    for step in make().steps(state, 7, stage_every=3, finish=False):
        with step:
            training.train(1)
    assert state["seen"] == 7
    again = Training("adamw")
    state = again.as_state()
    assert make().recover(state).step == 7
    assert_same_bits(again.bits(), training.bits())


class OwnLoader:
    """A loader by itself: an epoch's order, how much of it has been given, and a generator."""

    def __init__(self, count):
        self._count = count
        self._generator = torch.Generator().manual_seed(5)
        self._order, self._given = torch.randperm(count, generator=self._generator), 0

    def __iter__(self):
        while self._given < self._count:
            self._given += 1
            yield self._order[self._given - 1].clone()
        self._order, self._given = torch.randperm(self._count, generator=self._generator), 0

    def state_dict(self):
        return {"order": self._order, "given": self._given, "generator": self._generator.get_state()}

    def load_state_dict(self, state):
        self._order, self._given = state["order"].clone(), state["given"]
        self._generator.set_state(state["generator"])


def torchdatas_loader(workers):
    module = pytest.importorskip("torchdata.stateful_dataloader")
    torch.manual_seed(5)  # for the order
    return module.StatefulDataLoader(list(range(30)), batch_size=2, shuffle=True, num_workers=workers)


LOADERS = {
    "own": lambda: OwnLoader(15),
    "torchdata's": lambda: torchdatas_loader(0),
    "torchdata's, workers": lambda: torchdatas_loader(2),
}


def samples(loader):
    while True:
        for batch in loader:
            yield batch.tolist()


@pytest.mark.filterwarnings("ignore::UserWarning:torchdata")
@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_goes_on_at_the_same_sample(make, kind):
    every = samples(LOADERS[kind]())
    undisturbed = [next(every) for _ in range(40)]  # epochs of 15 batches

    loader = LOADERS[kind]()
    state, ckpt, given = meshstage.torch.state(loader=loader, rng=True), make(), samples(loader)
    assert ckpt.recover(state).step == 0
    got = [next(given) for _ in range(20)]
    assert ckpt.stage(state, 20).outcome(60) == "complete"
    next(given)  # of the step that is lost

    torch.manual_seed(6)  # a process that has started otherwise
    loader = LOADERS[kind]()
    state = meshstage.torch.state(loader=loader, rng=True)
    assert make().recover(state).step == 20
    given = samples(loader)
    assert got + [next(given) for _ in range(20)] == undisturbed
