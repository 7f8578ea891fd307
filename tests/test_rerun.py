"""The tool that computes records again and compares them with those that are kept."""

import copy
import dataclasses
import json
import math

import pytest

from git_rebasin.experiments import counterexample, mlp_matchers, mnist_mlp, run_times
from tools.rerun import RECORDS, cheapest, kept_records, main, matches, outcome, rerun, seconds_of


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The records of two experiments, at their smallest."""
    folder, experiments = tmp_path_factory.mktemp("records"), []
    for module in (counterexample, mnist_mlp):
        presets = {"smoke": module.EXPERIMENT.preset("smoke")}
        experiments.append(dataclasses.replace(module.EXPERIMENT, presets=presets, borrowed={}))
        experiments[-1].run("smoke", folder)
    return list(kept_records(experiments, folder))


def test_a_record_comes_out_as_it_is_kept(kept, tmp_path):
    results = list(rerun(kept, tmp_path, 1e-4))
    assert [one.name for one in kept] == ["counterexample/relu/0", "mnist-mlp/0"]
    assert [same for same, _ in results] == [True, True] and all(one.current for one in kept)
    assert [row[3] for _, row in results] == ["same bits"] * 2
    # What was computed is found again; a record that was changed since then is another.
    (file,) = (tmp_path / "mnist-mlp").glob("*.json")
    record = json.loads(file.read_text())
    record["barrier"]["naive"]["train"] *= 1 + 1e-15
    file.write_text(json.dumps(record))
    ((same, row),) = rerun(kept[1:], tmp_path, 1e-4)
    assert not same and row[3].startswith("differs: barrier.naive.train: ")


def test_what_differs_is_named_with_its_place(kept):
    old = kept[1].record
    assert outcome(old, old, 1e-4) == (True, "same bits")

    def changed(*path, value, machine=None):
        new = copy.deepcopy(old)
        if machine:
            new["provenance"]["processor"] = machine
        *inner, last = path
        part = new
        for key in inner:
            part = part[key]
        part[last] = value
        return outcome(old, new, 1e-4)

    barrier = old["barrier"]["naive"]["train"]
    assert changed("seconds", value=0) == changed("provenance", "revision", value="ab+")
    assert changed("seconds", value=0) == (True, "same bits")
    same, words = changed("barrier", "naive", "train", value=barrier * 1.00001)
    assert not same and words.startswith("differs: barrier.naive.train: ") and " → " in words
    same, words = changed("barrier", "naive", "train", value=barrier * 1.00001, machine="other")
    assert same and words == "perhaps another machine: 1 numbers differ, by up to 0.0001"
    same, words = changed("barrier", "naive", "train", value=barrier * 1.01, machine="other")
    assert not same and words.startswith("perhaps another machine, differs: barrier.naive.train: ")
    silent = copy.deepcopy(old) | {"provenance": {**old["provenance"], "model": None}}
    near = copy.deepcopy(silent)
    near["barrier"]["naive"]["train"] *= 1.00001
    assert outcome(silent, near, 1e-4)[0]  # it does not say on which machine it was made
    assert changed("lambdas", value=[0.0])[1].startswith("differs: lambdas: [")
    assert changed("lambdas", 1, value=1)[1].startswith("differs: lambdas[1]: 0.")
    assert changed("more", value=1)[1] == "differs: more is new"
    one = {key: value for key, value in old.items() if key != "barrier"}
    assert outcome(old, one, 1e-4)[1] == "differs: barrier is gone"
    assert outcome(one | {"a": [1, 2, 3, 4, 5]}, one | {"a": [0] * 5}, 0)[1].endswith("and 2 more")


def test_the_cheapest_are_taken_and_shared_networks_count_once(kept):
    def taking(name, seconds, networks=None):
        runs = mlp_matchers.PRESETS["smoke"]["digits"]
        config = dataclasses.replace(runs.config, checkpoints=networks)
        presets = {"smoke": {"": dataclasses.replace(runs, config=config)}}
        experiment = dataclasses.replace(kept[1].experiment, name=name, presets=presets)
        record = {"provenance": {}, "seconds": seconds}
        return dataclasses.replace(kept[1], experiment=experiment, record=record)

    slow, fast = taking("slow", {"match": 50}), taking("fast", {"train A": 20, "match": 5})
    assert [one.experiment.name for one in cheapest([slow, fast], 75)] == ["fast", "slow"]
    assert [one.experiment.name for one in cheapest([slow, fast], 74)] == ["fast"]
    both = [taking(name, {"train A": 30, "match": 2}, "nets") for name in "ab"]
    assert len(cheapest(both, 34)) == 2 and len(cheapest(both, 33)) == 1
    unknown = taking("unknown", {})
    assert seconds_of(unknown.record) == math.inf and cheapest([unknown], 1e9) == []
    assert cheapest([unknown], math.inf) == [unknown]
    tries = {"provenance": {"seconds": 3.0}, "rows": [{"seconds": 1.5}, {"seconds": 2.5}]}
    assert seconds_of(tries) == 4.0


def test_records_are_named_by_any_part():
    name = "baselines/mnist-512-0/2"
    assert all(matches(name, [p]) for p in ("baselines", "baselines/mnist-512-0", name, "*/2", "*"))
    assert not any(matches(name, [p]) for p in ("base", "mnist-512-0", "baselines/mnist"))


def test_times_are_not_compared():
    assert list((RECORDS / "run-times").glob("*.json"))
    assert not list(kept_records([run_times.EXPERIMENT], RECORDS))


def test_a_record_of_another_configuration_is_none_to_compare(kept):
    one = kept[1]
    other = copy.deepcopy(one.record)
    other["config"]["lambdas"] += 2
    assert one.current and not dataclasses.replace(one, record=other).current


def test_what_fails_is_no_reason_to_stop(kept, tmp_path):
    def fail(config, seed, context):
        raise FileNotFoundError("no data here\nnor there")

    experiment = dataclasses.replace(kept[0].experiment, run_pair=fail)
    results = list(rerun([dataclasses.replace(kept[0], experiment=experiment)], tmp_path, 1e-4))
    assert [(same, row[3]) for same, row in results] == [
        (False, "did not run: FileNotFoundError: no data here")
    ]


def test_the_command_lists_what_it_would_run(capsys, monkeypatch):
    arguments = ["rerun", "--list", "--only", "weight-matching-starts/digits", "--minutes", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "digits" in line]
    assert 2 <= len(rows) <= 8
