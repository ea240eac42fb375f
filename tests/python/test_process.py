"""What a Checkpointer does to the process around it: signals, threads, fork, exit, logs."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("numpy")

HEAD = """
import os, signal, sys, threading, time
import numpy as np
import meshstage
from meshstage import errors

def make(directory=sys.argv[1], world_size=1, **options):
    return meshstage.Checkpointer(
        job="process", directory=directory, vault_directory=directory, rank=0,
        world_size=world_size, **options)
"""


def run(tmp_path, code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-X", "dev", "-c", HEAD + textwrap.dedent(code), str(tmp_path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90)


def check(tmp_path, code: str) -> str:
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "Fatal" not in done.stderr, done.stderr
    return done.stdout


def test_a_signal_ends_a_wait_within_a_tenth_of_a_second_or_so(tmp_path):
    # The other rank never comes: without a look at signals the constructor would wait a minute.
    check(tmp_path, """
        def alarm(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, alarm)
        began = time.monotonic()
        try:
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            make(world_size=2, forming_deadline=60.0)
        except KeyboardInterrupt:
            took = time.monotonic() - began
            assert took < 10, took
            os._exit(0)  # the call goes on until the process ends
        sys.exit("it was not interrupted")
    """)


def test_a_program_that_was_interrupted_ends(tmp_path):
    done = run(tmp_path, """
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        make(world_size=2, forming_deadline=60.0)
    """)
    assert done.returncode in (1, 130, -2) and "KeyboardInterrupt" in done.stderr, done


def test_other_threads_of_python_run_during_a_wait(tmp_path):
    check(tmp_path, """
        def count():
            for _ in range(10):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell ignores it
        threading.Thread(target=count, daemon=True).start()
        try:
            make(world_size=2, forming_deadline=60.0)
        except KeyboardInterrupt:
            os._exit(0)  # the call goes on until the process ends
        sys.exit("the other thread did not run")
    """)


def test_leaving_without_close_ends_cleanly(tmp_path):
    check(tmp_path, """
        ckpt = make()
        state = {"a": np.ones(100_000)}
        ckpt.recover(state)
        staging = ckpt.stage(state, 1)
    """)


def test_an_exception_leaves_the_vault_and_a_clean_end_removes_it(tmp_path):
    check(tmp_path, """
        state = {"a": np.ones(3)}
        try:
            with make() as ckpt:
                ckpt.recover(state)
                assert ckpt.stage(state, 5).outcome() == "complete"
                raise LookupError
        except LookupError:
            pass
        with make() as ckpt:
            got = ckpt.recover(state)
            assert (got.step, got.source) == (5, "own memory"), got
        with make() as ckpt:
            got = ckpt.recover(state)
            assert (got.step, got.source) == (5, "disk"), got
    """)


def test_a_forked_child_is_disarmed(tmp_path):
    check(tmp_path, """
        import warnings
        warnings.simplefilter("ignore")  # Python's own about fork with threads
        ckpt = make()
        state = {"a": np.ones(3)}
        ckpt.recover(state)
        child = os.fork()
        if child == 0:
            try:
                ckpt.stage(state, 1)
            except errors.InvalidState as error:
                assert "forked" in str(error)
                ckpt.close()
                sys.exit(7)  # through atexit
            sys.exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert ckpt.stage(state, 1).outcome() == "complete"
        ckpt.finish()
    """)


def test_logs_come_on_a_thread_of_pythons(tmp_path):
    check(tmp_path, """
        lines = []
        def log(warning, text):
            lines.append((threading.current_thread().name, warning, text))
        with meshstage.Checkpointer(directory=sys.argv[1], vault_directory=sys.argv[1], log=log):
            pass  # without a name the job gets one, and says so; nothing to finish
        assert lines and {name for name, *_ in lines} == {"meshstage-log"}, lines
    """)


def test_a_log_callback_that_fails_ends_nothing(tmp_path):
    done = run(tmp_path, """
        def fail(warning, text):
            raise LookupError(text)
        with meshstage.Checkpointer(
            directory=sys.argv[1], vault_directory=sys.argv[1], log=fail
        ) as ckpt:
            ckpt.recover({"a": np.ones(3)})
    """)
    assert done.returncode == 0 and "LookupError" in done.stderr


def test_one_that_nobody_closes_leaves_no_thread(tmp_path):
    check(tmp_path, """
        before = threading.active_count()
        native = len(os.listdir("/proc/self/task"))
        for _ in range(3):
            ckpt = make()
            ckpt.recover({"a": np.ones(3)})
            del ckpt
        deadline = time.monotonic() + 30
        while threading.active_count() > before or len(os.listdir("/proc/self/task")) > native:
            assert time.monotonic() < deadline, threading.enumerate()
            time.sleep(0.01)
    """)


def test_calls_after_the_end_are_refused(tmp_path):
    check(tmp_path, """
        ckpt = make()
        ckpt.close()
        ckpt.close()
        for call in (ckpt.finish, ckpt.rejoin, ckpt.stats, lambda: ckpt.stage({}, 1)):
            try:
                call()
            except errors.InvalidState:
                continue
            sys.exit("not refused")
    """)


def test_steps_must_be_entered_and_may_be_stopped(tmp_path):
    check(tmp_path, """
        state = {"a": np.zeros(3)}
        with make() as ckpt:
            for step in ckpt.steps(state, 100, stage_every=2):
                with step:
                    state["a"] += 1
                    if step.number == 6:
                        step.stop()
        assert (state["a"] == 7).all()
        ckpt = make()
        try:
            for step in ckpt.steps(state, 9):
                assert step.number == 7  # from the file that the end of the job has left
        except errors.InvalidState as error:
            assert "with step" in str(error), error
        else:
            sys.exit("not refused")
    """)
