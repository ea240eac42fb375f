"""The package as a whole: what importing it needs, its order with torch's, its command."""

import subprocess
import sys
import textwrap

import pytest


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def check(code: str, *arguments: str) -> str:
    done = run(code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_imports_neither_torch_nor_numpy():
    check("""
        import sys, meshstage
        assert not {"torch", "numpy"} & set(sys.modules)
    """)


def test_modules_that_need_torch_are_imported_at_their_first_use():
    pytest.importorskip("torch")
    check("""
        import sys
        import meshstage as ms
        assert "torch" not in sys.modules
        state = ms.torch.state(seen=1)
        assert "torch" in sys.modules and state["seen"] == 1
        assert ms.dcp.Writer and hasattr(ms, "errors") and not hasattr(ms, "nothing")
    """)


def test_the_module_links_nothing_of_python_libraries():
    from pathlib import Path

    from meshstage import _meshstage

    listed = subprocess.run(
        ["ldd", _meshstage.__file__], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    libraries = [Path(line.split()[0]).name for line in listed.splitlines() if line.strip()]
    assert any(library.startswith("libc.so") for library in libraries), listed
    for name in ("torch", "c10", "cuda", "gloo"):
        assert not any(name in library for library in libraries), listed


def test_a_wheel_for_others_brings_its_libraries():
    from importlib import metadata

    try:
        about = metadata.distribution("meshstage")
    except metadata.PackageNotFoundError:
        pytest.skip("this package is the build tree's")
    if "manylinux" not in (about.read_text("WHEEL") or ""):
        pytest.skip("this package was not made by tools/wheel")
    folder = str(about.locate_file("").resolve())
    mapped = check("""
        import ctypes, pathlib, meshstage
        from meshstage import _meshstage
        ctypes.CDLL(str(pathlib.Path(_meshstage.__file__).with_name("libmeshstage_gloo.so")))
        print(pathlib.Path("/proc/self/maps").read_text())
    """)
    ours = ("gloo", "ibverbs", "nl-", "fmt", "xxhash", "hiredis")
    found = {word for word in mapped.split() for name in ours if f"/lib{name}" in word}
    assert any("/libgloo" in path for path in found), mapped
    assert all(path.startswith(folder) for path in found), found


@pytest.mark.parametrize("order", ["torch, meshstage.torch", "meshstage.errors, torch"])
def test_either_import_order(order):
    pytest.importorskip("torch")
    check(f"""
        import {order}
        import torch, meshstage.torch
        staged = meshstage.torch.StateDictStager().stage([torch.ones(3)])
        assert torch.equal(staged[0], torch.ones(3))
    """)


def test_errors_have_pythons_classes_too():
    from meshstage import errors

    assert set(errors.BY_KIND.values()) < {
        value for value in vars(errors).values() if isinstance(value, type)
    }
    assert issubclass(errors.OutOfMemory, MemoryError)
    assert issubclass(errors.IoError, OSError)
    assert issubclass(errors.PeerLost, errors.RejoinNeeded)


def test_an_error_of_the_library_has_its_class():
    from meshstage import _meshstage, errors

    with pytest.raises(errors.IoError, match="/nonexistent"):
        _meshstage.map_shared("/nonexistent", 0, 1)
    with pytest.raises(errors.CorruptData, match="too few"):
        _meshstage.map_shared(__file__, 1 << 40, 1)


def test_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "meshstage", "info"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Gloo" in done.stdout
    done = subprocess.run([sys.executable, "-m", "meshstage", "nonsense"], capture_output=True)
    assert done.returncode != 0
