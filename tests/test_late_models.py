"""Models that are read lazily: the same answer, one leaf at a time, in little memory."""

import math
import tracemalloc
import weakref
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from git_rebasin import PermutationSpec, merge_many, weight_matching
from git_rebasin.checkpoints import late as late_module
from git_rebasin.checkpoints.late import Source
from git_rebasin.checkpoints.opened import open_checkpoint
from git_rebasin.checkpoints.safetensors_files import write_safetensors
from git_rebasin.matching import scores as scores_module
from git_rebasin.matching.match import bind_models
from git_rebasin.merging.files import average, permuted
from git_rebasin.symmetry.entries import Group, Product
from git_rebasin.symmetry.permutation import apply_permutation, random_permutation

LAYERS, WIDTH = 8, 96
ROWS = {"embed": (None, "R"), "head": (None, "R")}
SHAPES = {"embed": (40, WIDTH), "head": (40, WIDTH)}
for _i in range(LAYERS):
    _heads = Group(f"H{_i}")
    ROWS |= {
        f"{_i}.v": (Product(_heads, Group(f"V{_i}", within=f"H{_i}")), "R"),
        f"{_i}.o": ("R", Product(_heads, f"V{_i}")),
        f"{_i}.up": (f"F{_i}", "R"),
        f"{_i}.down": ("R", f"F{_i}"),
        f"{_i}.norm": ("R",),
    }
    SHAPES |= {f"{_i}.{x}": (WIDTH, WIDTH) for x in ("v", "o", "up", "down")}
    SHAPES |= {f"{_i}.norm": (WIDTH,)}
ROWS |= {"heads": tuple(f"H{i}" for i in range(LAYERS))}
SHAPES |= {"heads": (2,) * LAYERS}
SPEC = PermutationSpec(ROWS)


class Late:
    """A leaf of a file: its values are made when they are asked for, and counted while they live."""

    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()
    most = reads = 0

    def __init__(self, values: np.ndarray):
        self._values, self.shape, self.dtype = values, values.shape, values.dtype

    def __array__(self, dtype=None, copy=None):
        values = self._values.view(Counted).copy()
        Late.alive.add(values)
        Late.reads += 1
        Late.most = max(Late.most, sum(w.nbytes for w in Late.alive))
        return values


class Counted(np.ndarray):
    """An array that can be looked at while it lives."""

    __hash__ = object.__hash__


def pair(seed: int, dtype=np.float32) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    a = {p: rng.standard_normal(s).astype(dtype) for p, s in SHAPES.items()}
    plant = random_permutation(jax.random.key(seed), SPEC.bind(a))
    b = apply_permutation(SPEC, {g: np.asarray(p) for g, p in plant.items()}, a)
    return a, {p: w + 0.5 * rng.standard_normal(w.shape).astype(dtype) for p, w in b.items()}


def late(model: dict) -> dict:
    return {path: Late(np.asarray(w)) for path, w in model.items()}


@pytest.mark.parametrize(
    ("dtype", "init", "budget"),
    [
        (np.float32, "identity", None),
        (np.float32, "greedy", 0),
        (np.float64, "identity", 0),
        (np.float64, "greedy", None),
        (jnp.bfloat16, "identity", 100_000),
    ],
)
def test_the_same_match_as_of_models_in_memory(dtype, init, budget):
    a, b = pair(0, dtype)
    here = weight_matching(jax.random.key(1), SPEC, a, b, init=init)
    there = weight_matching(jax.random.key(1), SPEC, late(a), late(b), init=init, budget=budget)
    assert all(np.array_equal(here.perm[g], there.perm[g]) for g in here.perm)
    assert here.sweeps == there.sweeps and here.converged and there.converged
    if budget is None:  # nothing was forgotten
        assert here.objective == there.objective
    np.testing.assert_allclose(here.objective, there.objective, rtol=1e-6)


def test_two_starts_share_what_can_be_read_once():
    a, b = pair(0)
    reads = {}
    for budget in (0, None):
        for init in ("identity", "greedy", "auto"):
            Late.reads = 0
            models = late(a), late(b)
            match = weight_matching(jax.random.key(1), SPEC, *models, init=init, budget=budget)
            reads[init] = Late.reads
        assert len(match.starts) == 2
        shared = 3 * len(a) * 2  # finite or not, norms, the objective at the identity
        if budget == 0:  # the searches themselves read what they need, each for itself
            assert reads["auto"] <= reads["identity"] + reads["greedy"] - shared
        else:  # all is kept that was read
            assert reads["auto"] < 1.5 * max(reads["identity"], reads["greedy"])
        Late.reads = 0
        aligned = weight_matching(jax.random.key(1), SPEC, late(a), late(a), budget=budget)
        one = Late.reads
        assert [start.name for start in aligned.starts] == ["identity"]
        assert one <= reads["identity"]  # what cannot be bettered is not searched again


def test_leaves_are_read_one_at_a_time():
    a, b = pair(1)
    Late.most = Late.reads = 0
    weight_matching(jax.random.key(0), SPEC, late(a), late(b), budget=0)
    largest = max(w.nbytes for w in a.values())
    assert Late.reads > 2 * len(a) and Late.most <= 4 * largest
    assert not Late.alive
    bind_models(SPEC, late(a), late(b))
    assert Late.most <= 4 * largest


def test_thin_terms_are_not_collected_without_bound(monkeypatch):
    rows = {f"w{i}": ("P", f"Q{i}") for i in range(60)}
    spec = PermutationSpec(rows)
    rng = np.random.default_rng(0)
    a, b = ({p: rng.standard_normal((64, 8)).astype(np.float32) for p in rows} for _ in range(2))
    want = weight_matching(jax.random.key(0), spec, a, b)
    monkeypatch.setattr(scores_module, "_STACK", 1500)
    Late.most = 0
    got = weight_matching(jax.random.key(0), spec, late(a), late(b), budget=0)
    assert all(np.array_equal(want.perm[g], got.perm[g]) for g in want.perm)
    assert Late.most <= 10 * a["w0"].nbytes


def test_memory_beside_the_models_is_bounded():
    a, b = pair(2)
    both = 2 * 4 * sum(math.prod(s) for s in SHAPES.values())
    files = late(a), late(b)
    weight_matching(jax.random.key(0), SPEC, *files, budget=0)
    tracemalloc.start()
    try:
        weight_matching(jax.random.key(0), SPEC, *files, budget=both // 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    largest = max(w.nbytes for w in a.values())
    assert peak < both // 20 + 8 * largest + 400_000  # the rest is Python's own, of small things


def test_other_matchers_take_them_too():
    spec = PermutationSpec({"w": (None, "P"), "v": ("P", None)})
    rng = np.random.default_rng(0)
    models = [
        {"w": rng.standard_normal((4, 6)), "v": rng.standard_normal((6, 2))} for _ in range(3)
    ]
    here = merge_many(jax.random.key(0), spec, models)
    there = merge_many(jax.random.key(0), spec, [late(m) for m in models])
    for p, q in zip(here.perms, there.perms, strict=True):
        np.testing.assert_array_equal(p["P"], q["P"])
    for path, w in there.params.items():
        np.testing.assert_array_equal(w, here.params[path])


def test_long_leaves_of_files_are_read_by_stretches(tmp_path, monkeypatch):
    a, b = pair(2, np.float16)
    files = {name: write_safetensors(tmp_path / f"{name}.safetensors", x) for name, x in (("a", a), ("b", b))}
    key, reads = jax.random.key(3), []
    read = Source.read

    def noted(self, begin, count):
        reads.append(count)
        return read(self, begin, count)

    def merged(name):
        models = [open_checkpoint(path).arrays for path in files.values()]
        match = weight_matching(key, SPEC, *models, budget=0)
        spec = SPEC.bind(models[0])
        mean = average([models[0], permuted(spec, match.perm, models[1])], [0.5, 0.5])
        return match, write_safetensors(tmp_path / name, mean).read_bytes()

    whole, want = merged("whole")
    monkeypatch.setattr(late_module, "LONG", 5 * WIDTH)  # 5 of the 40 rows of both tables of words
    monkeypatch.setattr(Source, "read", noted)
    parts, got = merged("parts")
    assert got == want and whole.sweeps == parts.sweeps
    assert all(np.array_equal(whole.perm[g], parts.perm[g]) for g in whole.perm)
    np.testing.assert_allclose(whole.objective, parts.objective, rtol=1e-6)
    tables = {a[name].nbytes for name in ("embed", "head")}
    assert tables.isdisjoint(reads) and 2 * 5 * WIDTH in reads  # bytes of float16
