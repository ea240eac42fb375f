"""read_by_python.py FILE SMALL|full: an image of the GPT-2 state opens in Python's safetensors, every tensor
is there under its path, and the values are right. Exits 77 where safetensors or numpy is missing."""
import sys

try:
    import numpy as np
    from safetensors import safe_open
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

path, size = sys.argv[1:3]
vocabulary, layers, d, context = (50257, 12, 768, 1024) if size == "full" else (131, 3, 16, 32)
shapes = {"wte.weight": (vocabulary, d), "wpe.weight": (context, d)}
for i in range(layers):
    shapes |= {f"h.{i}.{name}": shape for name, shape in {
        "ln_1.weight": (d,), "ln_1.bias": (d,), "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,), "mlp.c_proj.weight": (4 * d, d),
        "mlp.c_proj.bias": (d,)}.items()}
shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}


def escaped(key):
    return key.replace(".", "%2E")


def ramp(shape, first):
    n = int(np.prod(shape))
    return (np.float32(first) + (np.arange(n) % 1024).astype(np.float32) / 1024).reshape(shape)


with safe_open(path, "numpy") as file:
    names = set(file.keys())
    expected = set()

    def check(name, value):
        expected.add(name)
        got = file.get_tensor(name)
        assert got.shape == value.shape and got.dtype == value.dtype, (name, got.shape, got.dtype)
        assert got.tobytes() == value.tobytes(), name

    for k, (name, shape) in enumerate(shapes.items()):
        check("model." + escaped(name), ramp(shape, k))
        check(f"optimizer.{escaped(name)}.exp_avg", ramp(shape, -k))
        check(f"optimizer.{escaped(name)}.exp_avg_sq", np.full(shape, 0.25, np.float32))
        check(f"optimizer.{escaped(name)}.step", np.array(1.0, np.float32))
    assert "model." + escaped("lm_head.weight") not in names, "the tied head is stored twice"
    if size != "full":
        check("every.c128", np.array([[1, -2], [1, -2]], np.float64))
        check("every.c64", np.array([[3 + 4j], [3 + 4j]], np.complex64))
        check("every.empty", np.empty((0, 3), np.float16))
        check("every.flags", np.array([True, False, True]))
        check("every.a%2Eb.0", np.array(-5, np.int64))
        expected |= {"every.bf16", "every.f8"}  # numpy has no such dtypes
        assert file.get_slice("every.bf16").get_shape() == [3]
        part = [n for n in names if n.startswith("__meshstage__.storage.")]
        assert len(part) == 1 and file.get_tensor(part[0]).view(np.int32).tolist() == list(range(10))
        expected.add(part[0])
    reserved = {n for n in names if n.startswith("__meshstage__.")} - expected
    assert names == expected | reserved, names - expected - reserved
    assert {"__meshstage__.values", "__meshstage__.trailer"} <= reserved
print(f"{len(expected)} tensors, {len(reserved)} reserved entries")
