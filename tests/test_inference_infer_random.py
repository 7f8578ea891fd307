"""Random programs: whatever spec is inferred for one, it has to be true."""

from collections import Counter
from collections.abc import Iterator
from functools import cache

import jax
import pytest
from random_operations import OPERATIONS
from random_programs import Program, faults, inferred

from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.jaxprs import double_precision
from git_rebasin.symmetry.spec import BoundSpec, PermutationSpec

SEEDS = range(40)  # `python tests/random_programs.py 1000 --seed …` tries others
VERIFIED = range(6)


@pytest.fixture(autouse=True)
def any_ranks_in_float64() -> Iterator[None]:
    "The programs add arrays of other ranks, and rounding has to be small"
    with jax.numpy_rank_promotion("allow"), double_precision():
        yield


@cache
def case_of(seed: int) -> tuple[Program, BoundSpec]:
    "A program and its spec before it is verified"
    program = Program(seed)
    return program, inferred(program)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_inferred_for_a_random_program_is_true(seed):
    program, spec = case_of(seed)
    assert faults(program, spec)[0] == []
    assert spec.shapes == {name: w.shape for name, w in program.params.items()}
    assert PermutationSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("seed", VERIFIED)
def test_verification_agrees(seed):
    program, spec = case_of(seed)
    if spec.groups:
        assert infer_permutation_spec(program.function(), program.params, program.x) == spec


def test_random_programs_have_symmetries():
    counts = Counter()
    for seed in SEEDS:
        spec = case_of(seed)[1]
        counts["groups"] += len(spec.groups)
        counts["families"] += len(spec.families)
        counts["programs with groups"] += bool(spec.groups)
    assert counts["groups"] >= 40, counts
    assert counts["families"] >= 8, counts
    assert counts["programs with groups"] >= 22, counts


def test_random_programs_use_most_operations():
    used = {name for seed in SEEDS for step in case_of(seed)[0].used for name in step.split(" of ")}
    names = {make.__name__ for make in OPERATIONS}
    assert used - {"lift"} <= names and len(used) > 0.9 * len(names), names - used


def test_faults_are_found():
    program = next(p for p, s in map(case_of, SEEDS) if "p0" in s.rows and any(s.rows["p0"]))
    rows = {name: (None,) * w.ndim for name, w in program.params.items()}
    first = next(iter(program.params))
    rows[first] = (*rows[first][:-1], "P")  # units that come out of a layer, by themselves
    assert any(faults(program, PermutationSpec(rows).bind(program.params)))
