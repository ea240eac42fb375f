"""read_exported.py FILE: the GPT-2 state that `meshstage export` wrote opens in Python's safetensors: plain names,
the tied head repeated, complex128 as pairs, scalars in the metadata. Exits 77 where safetensors or numpy is missing."""
import json
import sys

try:
    import numpy as np
    from safetensors import safe_open
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

with safe_open(sys.argv[1], framework="np") as file:
    names = set(file.keys())
    metadata = file.metadata()
    wanted = {"model.wte.weight", "model.lm_head.weight", "optimizer.h.0.ln_1.bias.exp_avg", "every.c128",
              "every.c64", "every.empty", "every.part", "every.a.b.0"}
    assert wanted <= names, wanted - names
    assert not [n for n in names if n.startswith("__meshstage__")]
    wte = file.get_tensor("model.wte.weight")
    assert wte.shape == (131, 16)
    assert np.array_equal(wte.ravel(), ((np.arange(131 * 16) % 1024) / 1024).astype(np.float32))
    assert np.array_equal(file.get_tensor("model.lm_head.weight"), wte)
    assert np.array_equal(file.get_tensor("every.c128"), np.array([[1.0, -2.0]] * 2))
    assert np.array_equal(file.get_tensor("every.part"), np.arange(2, 7, dtype=np.int32))
    assert file.get_tensor("every.empty").shape == (0, 3)
    assert file.get_tensor("every.a.b.0") == -5
    assert json.loads(metadata["meshstage.values"]) == {"step": 1}, metadata
print(f"{len(names)} tensors read")
