"""The benchmarks' own parts: the published algorithm as an oracle, the count of operations, and what
the records hold. No timings."""

import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from git_rebasin.symmetry import builders
from git_rebasin import weight_matching as match_weights
from git_rebasin.experiments.records import read_record, write_record

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def script(name: str):
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


speed = script("weight_matching")
recovery = script("planted_recovery")
inference = script("inference")
depth = script("inference_depth")
descent = script("straight_through")
modules = script("torch_modules")

MLP = speed.Case(
    "mlp:init_mlp",
    lambda: builders.mlp_permutation_spec(2),
    {"input_shape": (4, 4, 1), "features": (12, 8)},
    keys=2,
)
CASES = {"mlp": MLP, "resnet20": speed.resnet20(0.25, keys=1)}


def bound(case):
    return speed.bind(case.spec(), case.shapes())


# ---- the published algorithm


@pytest.mark.parametrize("kind", list(speed.KINDS))
@pytest.mark.parametrize("name", list(CASES))
def test_same_start_and_order_give_what_the_published_algorithm_gives(name, kind):
    spec, key = bound(CASES[name]), 3
    a, b = speed.models(spec, key, speed.shuffle(spec, kind, key))
    perm, sweeps, converged = speed.published(jax.random.key(key), spec, a, b)
    ours = match_weights(jax.random.key(key), spec, a, b, init="identity")
    assert converged and ours.converged and sweeps == ours.sweeps
    for group in spec.groups:
        np.testing.assert_array_equal(ours.perm[group], perm[group])
    np.testing.assert_allclose(ours.objective[-1], speed.objective(spec, a, b, perm), rtol=1e-5)


def test_the_published_algorithm_stops_at_the_most_sweeps():
    spec = bound(MLP)
    a, b = speed.models(spec, 0, None)
    assert speed.published(jax.random.key(0), spec, a, b, max_sweeps=1)[1:] == (1, False)


# ---- models and measures


def test_planted_models_are_one_model_in_another_order():
    spec = bound(MLP)
    planted = speed.shuffle(spec, "P", 5)
    a, b = speed.models(spec, 5, planted)
    expected = np.asarray(a["Dense_1/kernel"])[planted["P_0"]][:, planted["P_1"]]
    np.testing.assert_array_equal(b["Dense_1/kernel"], expected)
    assert speed.shuffle(spec, "I", 5) is None


def test_operations_of_a_sweep_counted_by_hand():
    first = 2 * 16 * 12 * 12 + 2 * 12 * 12 + 2 * 12 * 8 * 12  # what P_0 writes, adds and is read by
    second = 2 * 12 * 8 * 8 + 2 * 8 * 8 + 2 * 8 * 10 * 8
    assert speed.sweep_flops(bound(MLP)) == first + second


def test_the_objective_is_the_inner_product_of_the_models():
    spec = bound(MLP)
    a, b = speed.models(spec, 1, None)
    identity = {g: np.arange(n) for g, n in spec.groups.items()}
    expected = sum(np.vdot(np.float64(a[p]), np.float64(b[p])) for p in a)
    assert speed.objective(spec, a, b, identity) == pytest.approx(expected, rel=1e-12)


def test_cases_have_the_sizes_of_the_papers_networks():
    mlp, resnet50 = (
        sum(np.prod(s) for s in speed.CASES[name].shapes().values()) for name in ("mlp", "resnet50")
    )
    assert mlp == 784 * 512 + 2 * 512 * 512 + 512 * 10 + 3 * 512 + 10
    assert 25e6 < resnet50 < 26e6


# ---- records


def test_the_record_of_speed(tmp_path):
    lines = []
    record = speed.benchmark({"mlp": MLP}, ask=speed.answer, size=32, progress=lines.append)
    file = write_record(tmp_path / "record.json", record)
    assert read_record(file) == json.loads(json.dumps(record))
    assert {"date", "provenance", "machine", "default_start", "seconds"} <= record.keys()
    assert len(record["runs"]) == len(lines) == 2 * 2 * 4  # kinds, keys, contenders
    assert [(r["kind"], r["start"]) for r in record["summary"]] == [
        (kind, start) for kind in "IP" for start in ("identity", "greedy", "auto")
    ]
    for row in record["summary"]:
        assert row["floor"] > 0 and row["over_floor"] > 0 and row["keys"] == 2
        assert all(0 < share < 1 for share in row["assignments"].values())
        assert row["warm"]["ratio"] == row["warm"]["baseline"] / row["warm"]["ours"]
    assert all(row["objective"]["lowest"] == 1 for row in record["summary"] if row["kind"] == "P")
    printed = [*speed.machine_lines(record), *speed.table(record), *speed.target_lines(record)]
    assert len(printed) == 4 + 1 + 6 + len(record["targets"])


def test_targets_compare_the_figures_with_their_bounds():
    row = {
        "case": "resnet50",
        "kind": "I",
        "start": "greedy",
        "cold": {"ratio": 14.0},
        "warm": {"ratio": 16.0},
        "memory": 2.5,
        "objective": {"lowest": 1 - 1e-7},
        "over_identity": 2.6,
    }
    met = {t["what"]: t["met"] for t in speed.targets(row)}
    assert met == {"cold": False, "warm": True, "memory": False, "objective": True}
    slow = {t["what"]: t["met"] for t in speed.targets(row | {"start": "auto"})}
    assert slow == met | {"over_identity": False}


def test_a_process_of_its_own_gives_an_answer():
    answer = speed.isolated({"ask": "machine", "size": 32})
    assert answer["rates"].keys() == {"numpy", "jax"} and answer["blas"]


def test_the_record_of_recovery_and_how_it_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "provenance", lambda: {"revision": "abc"})
    asked, partial = [], tmp_path / "partial.json"

    def ask(job):
        asked.append(job)
        return recovery.recover(json.loads(json.dumps(job)))

    networks = {"8 × 2": recovery.residual(8, 2), "8 × 1": recovery.residual(8, 1)}
    first = recovery.benchmark({"8 × 2": networks["8 × 2"]}, 2, partial, ask)
    assert len(asked) == 1 and len(first["rows"]) == 3
    both = recovery.benchmark(networks, 2, partial, ask)
    assert len(asked) == 2 and both["rows"][:3] == first["rows"]
    assert all(0 <= r["recovered"] <= r["seeds"] == 2 for r in both["rows"])
    monkeypatch.setattr(recovery, "provenance", lambda: {"revision": "def"})
    recovery.benchmark(networks, 2, partial, ask)
    assert len(asked) == 4  # other code: nothing is taken over


def test_noise_is_in_units_of_each_arrays_deviation():
    spec = bound(CASES["resnet20"])
    _, b = speed.models(spec, 0, None)
    (_, clean), (_, other) = recovery.noises_of(b, (0.0, 0.5), seed=1)
    assert clean is b
    for path, w in b.items():
        if w.size > 100:
            w = np.asarray(w)
            assert np.std(other[path] - w) == pytest.approx(0.5 * np.std(w), rel=0.3)


def test_recovered_means_every_place_of_every_group():
    spec = bound(MLP)
    planted = speed.shuffle(spec, "P", 0)
    inverse = {g: np.argsort(p) for g, p in planted.items()}
    assert recovery.recovered(spec, planted, inverse)
    inverse["P_1"][[0, 1]] = inverse["P_1"][[1, 0]]
    assert not recovery.recovered(spec, planted, inverse)


def test_the_record_of_inference_is_of_all_cases_and_of_this_code():
    runs = read_record(FOLDER / "records" / "inference.json")["runs"]
    assert [run["case"] for run in runs] == list(inference.CASES)
    name = "transformer, 2 layers"
    recorded, measured = runs[list(inference.CASES).index(name)], inference.measure(name)
    for what in ("arrays", "groups", "log10_symmetries"):
        assert measured[what] == pytest.approx(recorded[what])


def test_the_record_of_depth_is_of_this_decoder():
    runs = read_record(FOLDER / "records" / "inference_depth.json")["runs"]
    cases = [(fused, n) for fused in (False, True) for n in depth.DEPTHS]
    assert [(run["fused"], run["layers"]) for run in runs] == cases
    for run in runs:
        leaves = jax.tree.leaves(depth.shapes(run["layers"], run["fused"]))
        assert run["parameters"] == sum(x.size for x in leaves)
        assert run["groups"] == 4 * run["layers"] + 1  # of heads, of units of two kinds; the stream


# ---- the straight-through estimator


def test_the_published_way_starts_where_it_is_told():
    spec = MLP.spec().bind_shapes(MLP.shapes())
    a, b = speed.models(spec, 0, None)
    perm = speed.published(jax.random.key(0), spec, a, b)[0]
    again, sweeps, converged = speed.published(jax.random.key(1), spec, a, b, start=perm)
    assert sweeps == 1 and converged
    assert all(np.array_equal(again[group], perm[group]) for group in perm)


def test_the_record_of_straight_through_holds_what_its_page_reads(tmp_path):
    config = descent.QUICK | {"features": [12], "epochs": 1, "steps": 7, "published": 6}
    record = descent.benchmark(config)
    read = read_record(write_record(tmp_path / "record.json", record))
    assert {name: len(run) for name, run in read["runs"].items()} == {
        **dict.fromkeys(("alone", "step", "projection", "moved", "whole"), 7),
        "published": 6,
    }
    assert [t["what"] for t in read["targets"]] == list(descent.TARGETS)
    assert all(t["met"] in (True, False) and t["value"] > 0 for t in read["targets"])
    assert len(list(descent.lines(read))) == 6 + 2 + 2 + 1


def test_the_record_of_pytorch_modules_is_of_these_networks():
    """Networks and their theory are those of the script, and what is claimed of all holds."""
    record = read_record(modules.RECORD)
    runs = {run["case"]: run for run in record["runs"]}
    assert runs.keys() == modules.CASES.keys() and record["libraries"].keys() == {*modules.LIBRARIES}
    for name, run in runs.items():
        theory = sorted(map(list, modules.CASES[name].theory))
        assert run["complete"] == (run["sizes"] == theory) and run["recovered"]
        assert run["theory_log10"] == pytest.approx(modules.log10_symmetries(theory))
        assert max(run[f"{kind}error"] for kind in ("", "moved_", "merged_")) < 1e-5
