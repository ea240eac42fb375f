"""The training loop around a Checkpointer: ``Checkpointer.steps``."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from meshstage.errors import (
    Error,
    InvalidArgument,
    InvalidState,
    RejoinNeeded,
    Unrecoverable,
)

if TYPE_CHECKING:
    from meshstage._checkpointer import Checkpointer, Staging


#: The exit status that asks a launcher to start all ranks anew (tools/run).
RESTART_ALL = 75
_LOOK_AGAIN = 0.05  # seconds


class Step:
    """One step, as the body of the loop sees it.

    Leaving its ``with`` block by RejoinNeeded ends the generation, not the program: the loop goes
    on at the step that was recovered. So does the failure of a process group of torch's, where the
    state uses one (see ``Checkpointer.steps``). Every other exception passes.
    """

    def __init__(self, number: int, run: "_Run", may_change: bool):
        #: the steps that were trained before; after a recovery numbers come again
        self.number = number
        #: the state that is trained: what ``build`` returned, after a loss
        self.state = run.state
        self._last = run.last
        self._is_loss = run.is_loss
        self._may_change = may_change
        self._entered = self._left = self._stopped = False
        self._lost: Exception | None = None

    def before_update(self) -> None:
        """Returns when the state may be changed: on the host, or for arrays on CUDA devices by
        work on torch's current streams (see Staging). Does nothing without ``overlap``."""
        if not self._may_change:
            self._may_change = True
            try:
                self._last.before_update()
            except RejoinNeeded:
                raise
            except Error:  # nothing was put behind the copies
                _wait_copied(self._last)

    def stop(self) -> None:
        """Makes this step the last one; for all ranks at the same step."""
        self._stopped = True

    def _let_go(self, run: "_Run") -> None:
        """Of the state, and of the error, whose traceback has the step's body: before build()."""
        self.state, self._last, self._lost = None, run.last, None

    def __enter__(self) -> "Step":
        self._entered = True
        return self

    def __exit__(self, kind, value, trace) -> bool:
        self._left = True
        if isinstance(value, Exception) and self._is_loss(value):
            self._lost = value
            return True
        return False


def steps(
    ckpt: "Checkpointer", state: Any, count: int, stage_every: int, overlap: bool,
    max_losses: int, max_failed_steps: int, finish: bool, recovered, build,
) -> Iterator[Step]:  # fmt: skip
    """See Checkpointer.steps; what Checkpointer::run does in C++, turned inside out."""
    if stage_every < 1:
        raise InvalidArgument("stage_every is not positive")
    run = _Run(ckpt, state, max_losses, max_failed_steps, build)
    del state  # the run lets go of it before build() makes another
    step = None
    while True:
        try:
            run.make_state()
            got = ckpt.recover(run.state)
            if recovered is not None:
                recovered(got)
            number = got.step
            while number < count:
                if not overlap:
                    _wait_copied(run.last)
                step = Step(number, run, not overlap)
                yield step
                run.check(step)
                number += 1
                ends = step._stopped or number == count
                if not ends and number % stage_every == 0:
                    if ckpt._waits_when_busy:
                        run.wait_outcome()
                    ends = ckpt.ending
                    if not ends:
                        run.stage(number)
                if ends:
                    run.stage_last(number)
                    break
            if finish:
                ckpt.finish()
            return
        except Exception as error:
            if not run.is_loss(error):
                raise
            run.lost(error)
        if step is not None:  # the user's loop still has it
            step._let_go(run)
        ckpt.rejoin()


def _wait_copied(staging: "Staging") -> None:
    """What went wrong in the copying fails the step on every rank, and is counted there."""
    try:
        staging.wait()
    except RejoinNeeded:
        raise
    except Error:
        pass


class _Run:
    """The state and the newest staging of a run, and how many went wrong."""

    def __init__(self, ckpt, state, max_losses, max_failed_steps, build):
        from meshstage._checkpointer import Staging

        self._ckpt, self.state = ckpt, state
        self._build: Callable[[], Any] | None = build
        self._max_losses, self._max_failed = max_losses, max_failed_steps
        self._losses = self._failed = 0
        self._empty = Staging()
        self.last = self._empty

    def check(self, step: Step) -> None:
        if step._lost is not None:
            raise step._lost
        if not (step._entered and step._left):
            raise InvalidState(f"the body of step {step.number} is not inside 'with step:'")
        if not step._may_change:
            raise InvalidState(
                f"steps() with overlap: the body of step {step.number} did not call "
                "before_update(), so it may have changed what is being staged"
            )

    def stage(self, number: int) -> None:
        before = self.last
        staged = self._ckpt.stage(self.state, number)
        if before is not self._empty and not before._inner.outcome_ready():
            return  # left out: the one before is not over
        self._count(before)
        self.last = staged

    def stage_last(self, number: int) -> None:
        self.wait_outcome()
        self._count(self.last)
        self.last = self._ckpt.stage(self.state, number)
        self.wait_outcome()
        if self._count(self.last) != "complete":
            raise Unrecoverable(f"the last step, {number}, failed; the warnings say why")

    def wait_outcome(self) -> None:
        if self.last is self._empty:
            return
        while self.last.outcome(self._ckpt._deadline) is None:
            self._ckpt.tell_waiting()  # a rank that keeps this one waiting names itself

    def make_state(self) -> None:
        """After a loss, where the user has said how."""
        if self.state is None:
            self.state = self._build()

    def is_loss(self, error: Exception) -> bool:
        """Whether the generation has ended, or torch's process groups have with the state on them:
        a survivor may meet the loss of a rank in torch first."""
        if isinstance(error, RejoinNeeded):
            return True
        return _is_group_failure(error) and bool(self._build or _user_of_groups(self.state))

    def lost(self, error: Exception) -> None:
        """Counts the loss. Drops the state if build() can make another; else, of a state on torch's
        process groups, raises SystemExit."""
        self._wait_for_loss(error)
        last, self.last = self.last, self._empty
        try:  # a step that is complete all the same counts: another rank may have ended by it
            if last is not self._empty and last._inner.outcome_ready():
                self._count(last)
        except RejoinNeeded:
            pass
        self._losses += 1
        if self._losses > self._max_losses:
            raise Unrecoverable(
                f"no step became complete in {self._losses} generations in a row; the last "
                f"one ended so: {error}"
            ) from error
        if self._build is not None:
            self.state = None
            return
        user = _user_of_groups(self.state)
        if user:
            self._ckpt.close()  # the vault stays
            self._say(
                f"rank {self._ckpt.rank} ends with status {RESTART_ALL}, and its launcher starts "
                f"all ranks anew: {user}, and torch's process groups ended with the loss of a "
                f"rank ({error}). With steps(build=...) a process goes on",
            )
            raise SystemExit(RESTART_ALL)

    def _wait_for_loss(self, error: Exception) -> None:
        """torch may see the loss of a rank first. If the engine sees none for a deadline, all ranks
        live, and the error is the user's: raises it. Waits for no rank, so it looks again and
        again. Before recover(), in build(), there is nothing to look at."""
        if isinstance(error, RejoinNeeded) or self.state is None:
            return
        until = time.monotonic() + self._ckpt._deadline
        while True:
            try:
                self._ckpt._throw_if_lost()
            except RejoinNeeded:
                return
            if time.monotonic() > until:
                raise error
            time.sleep(_LOOK_AGAIN)

    def _say(self, text: str) -> None:
        """The thread that hands on log lines has ended with the Checkpointer."""
        try:
            self._ckpt._log(True, text)
        except Exception:
            logging.getLogger("meshstage").exception("the log callback failed for: %s", text)

    def _count(self, staging: "Staging") -> str | None:
        if staging is self._empty:
            return None
        outcome = staging.outcome()
        if outcome == "complete":
            self._losses = self._failed = 0
        elif outcome == "failed":
            self._failed += 1
            if self._failed > self._max_failed:
                raise Unrecoverable(
                    f"{self._failed} staged steps in a row failed, the last was {staging.step}; "
                    "the warnings say on which rank, and why"
                )
        return outcome


def _user_of_groups(state: Any) -> str:
    """See meshstage.torch.State.user_of_groups; for any state."""
    if not isinstance(state, dict):
        return state.user_of_groups() if hasattr(state, "user_of_groups") else ""
    if "torch" not in sys.modules:
        return ""
    from meshstage.torch import _groups

    return _groups.user_of_groups(state)


def _is_group_failure(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return False
    from meshstage.torch import _groups

    return _groups.is_group_failure(error)
