"""Every experiment from end to end, at its smallest: it runs, it goes on where it stopped, it repeats
itself, and its tables and verdicts read its records. What an experiment alone must show of its records
stands in a function of its own below."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from git_rebasin.experiments.compare import Effort, shares_left, tries_of, ways_to_match
from git_rebasin.experiments.runner import EXPERIMENTS, Finding, _same, load_experiment

RECORDS = Path(__file__).parent.parent / "nbs/experiments/records"

SLOW = ("real-resnets", "rescaled-resnets")  # a minute of compilation each
OWN = ("imagenet-resnet50",)  # on a stream of images: see its own file
TIMED = ("seconds", "provenance")  # keys of a record that differ from run to run
MEASURED = ("run-times",)  # what they record is time


def repeatable(value):
    """A record without what depends on the machine and the moment."""
    if isinstance(value, dict):
        return {key: repeatable(part) for key, part in value.items() if key not in TIMED}
    return [repeatable(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in EXPERIMENTS
        if name not in OWN
    ],
)
def test_the_smoke_preset_runs_resumes_and_repeats(name, tmp_path):
    experiment, first, later = load_experiment(name), [], []
    files = experiment.run("smoke", tmp_path, callback=first.append)
    texts = [file.read_text() for file in files]
    assert len(files) == sum(len(runs.seeds) for runs in experiment.preset("smoke").values())
    assert experiment.run("smoke", tmp_path) == files
    assert [file.read_text() for file in files] == texts
    # A pair whose record is lost finds its networks, and gives the same record but for the times.
    files[-1].unlink()
    assert experiment.run("smoke", tmp_path, callback=later.append) == files
    *same, last = (file.read_text() for file in files)
    assert same == texts[:-1]
    if name not in MEASURED:
        assert repeatable(json.loads(last)) == repeatable(json.loads(texts[-1]))
    assert not any("train" in progress.stage.split(", ")[-1] for progress in later)
    records = [json.loads(text) for text in texts]
    for record in records:
        assert record["experiment"] == name and record["preset"] == "smoke"
        assert record.get("family", "") in experiment.preset("smoke")
        assert "|--:|" in experiment.format(record)
        assert experiment.format(record).startswith(record.get("family", "pair"))
    assert all(isinstance(finding, Finding) for finding in experiment.findings(records))
    check = globals().get(f"check_{name.replace('-', '_')}", lambda *_: None)
    check(experiment, records, [progress.stage for progress in first])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_records_that_are_kept_are_those_of_the_presets(name):
    experiment = load_experiment(name)
    for preset in experiment.presets.keys() - experiment.borrowed.keys():
        kept = experiment.kept(RECORDS, preset)
        assert len(kept) == len(list((RECORDS / name).glob(f"{preset}-*.json")))
        for record in kept:
            config = experiment.preset(preset)[record.get("family", "")].config
            assert _same(record["config"], config), (preset, record.get("family"))


def test_the_page_that_compares_all_ways_has_records_of_all():
    """The configuration of a record names no ways: a new one leaves the old records as they are."""
    ways = list(ways_to_match(Effort()))
    for record in load_experiment("how-to-choose").kept(RECORDS):
        tried = list(dict.fromkeys(row["way"] for row in record["tries"]))
        assert tried == ways, "delete the record, and run how-to-choose anew"


def check_mnist_mlp(experiment, records, stages):
    (record,) = records
    assert record["barrier"]["matched"]["train"] < record["barrier"]["naive"]["train"]


def check_weight_matching_starts(experiment, records, stages):
    from git_rebasin.experiments.weight_matching_starts import STARTS

    assert "digits, pair 1, train B" in stages and len(records) == 2
    for record in records:
        keys = [(t["start"], t["key"]) for t in record["tries"]]
        assert keys == [(s, k) for s in STARTS for k in (0, 1)] and record["family"] == "digits"
    assert all(t["converged"] and t["output_change"] < 1e-4 for t in records[0]["tries"])


def check_matching_defaults(experiment, records, stages):
    from git_rebasin.experiments.choices import tries

    mlp, cnn = records
    assert "cnn, pair 0, train B" in stages and "mlp, pair 0, match and walk" in stages
    assert {*cnn["lines"][0]} == {"as it is", "reset"} and {*mlp["lines"][0]} == {"as it is"}
    assert len({row["by"] for row in cnn["rows"]}) == 7 and len(cnn["test"]) >= 2
    for record in records:
        reached = {
            how: [row["objective"] for row in tries(record, "weights", how)]
            for how in ("identity", "greedy", "auto")
        }
        both = zip(reached["identity"], reached["greedy"], strict=True)
        assert np.allclose(reached["auto"], [max(pair) for pair in both])
    assert len(experiment.findings(records)) == 8


def check_mlp_matchers(experiment, records, stages):
    from git_rebasin.experiments.mlp_matchers import WAYS

    assert tuple(tries_of(records)) == WAYS
    assert "straight-through" in experiment.format(records[0])


def check_resnet_width(experiment, records, stages):
    assert "mlp-8, pair 0, train B" in stages and len(records) == 2
    # Images are held out, and neither they nor any other choice is in what is reported.
    assert all(end.keys() == {"train", "test"} for record in records for end in record["ends"])
    assert all("left, test" in experiment.format(record) for record in records)
    assert len(experiment.findings(records)) == 2


def check_loss_contour(experiment, records, stages):
    (record,) = records
    assert len(record["losses"]) == 25 and "middle of A and π(B)" in experiment.format(record)
    # A lies on the grid, and the middle of A and B too; π(B) computes what B does.
    assert abs(record["losses"][6] - record["ends"]["A"]["loss"]) < 1e-3
    assert abs(record["losses"][11] - record["middles"]["A and B"]["loss"]) < 1e-3
    assert abs(record["ends"]["π(B)"]["loss"] - record["ends"]["B"]["loss"]) < 1e-5
    for of in record["correlations"].values():
        assert -1 <= of["before"] < of["after"] <= of["most"] <= 1


def check_otfusion(experiment, records, stages):
    from git_rebasin.experiments.otfusion import WAYS, accuracies

    (record,) = records
    assert [t["way"] for t in record["tries"]] == list(WAYS)
    assert all(p["output_change"] < 1e-4 for p in record["permutations"])
    assert list(accuracies(records)) == [*WAYS, "ends", "ensemble"]
    assert "ensemble" in experiment.format(record) and len(experiment.findings(records)) == 3
    assert "85.98" not in str(experiment.findings(records))  # which is of CIFAR-10


def check_single_pass(experiment, records, stages):
    def verdicts(these):
        return [finding.verdict for finding in experiment.findings(these)]

    assert len(records[0]["cases"]) == 2 and all("of" in experiment.format(r) for r in records)
    assert verdicts(records) == ["reproduced", "reproduced"]
    # The verdicts follow the records.
    worse = copy.deepcopy(records)
    worse[0]["cases"][0]["ways"]["weights"]["objective"][1] /= 2  # one key misses the best
    worse[1]["cases"][-1]["ways"]["weights"]["objective"][1] = worse[1]["cases"][-1]["best"]
    assert verdicts(worse) == ["partly", "partly"]
    for record in worse[:2]:
        for case in record["cases"]:
            for way in case["ways"].values():
                way["objective"] = [case["best"] / 10] * len(way["objective"])
    assert verdicts(worse) == ["not", "not"]


def check_counterexample(experiment, records, stages):
    (record,) = records
    assert len(record["alignments"]) == 4 and experiment.format(record).count("%") == 8
    assert experiment.findings(records)[0].verdict == "reproduced"


def check_barrier_vs_width(experiment, records, stages):
    from git_rebasin.experiments.barrier_vs_width import WAYS, by_width

    assert list(by_width(records)["mlp"]) == [4, 8]
    assert experiment.format(records[1]).count("\n| ") == 2
    assert [t["way"] for t in records[0]["tries"]] == list(WAYS)
    assert len(experiment.findings(records)) == 1


def check_barrier_vs_epoch(experiment, records, stages):
    (record,) = records
    rows = record["epochs"]
    assert [row["epoch"] for row in rows] == [0, 2, 3]
    assert rows[-1]["late"] == rows[-1]["matched"] and rows[0]["late"] != rows[0]["matched"]
    assert all(row["matched"]["cosine"] > row["naive"]["cosine"] for row in rows)
    assert experiment.format(record).count("\n| ") == 4  # epochs and the head


def check_merging_many(experiment, records, stages):
    (record,) = records
    assert record["converged"] and record["objective"] == sorted(record["objective"])
    text = experiment.format(record)
    assert all(name in text for name in ("network 2", "plain mean", "ensemble"))


def check_split_data(experiment, records, stages):
    (record,) = records
    middle = record["curves"]["matched"]["test"]["loss"][1]
    np.testing.assert_allclose(middle, record["judged"]["merged"]["loss"], rtol=1e-4)
    assert "| ensemble |" in experiment.format(record) and len(record["judged"]) == 6


def check_how_to_choose(experiment, records, stages):
    assert {"digits, pair 0, train B", "digits, pair 0, match"} <= set(stages)
    (record,), tries = records, tries_of(records)
    ways = ways_to_match(experiment.preset("smoke")["digits"].config.effort)
    assert list(tries) == list(ways) and all(len(t) == 1 for t in tries.values())
    assert record["permutations"][0]["cosine"] < min(
        t["cosine"] for way, (t,) in tries.items() if way.startswith("weights")
    )
    assert all(p["output_change"] < 1e-4 for p in record["permutations"])
    assert all(f"| {way} |" in experiment.format(record) for way in ways)


def check_modadd_transformers(experiment, records, stages):
    assert set(stages) == {f"random, pair 0, match, heads {move}" for move in ("move", "stay")}
    (record,), config = records, experiment.preset("smoke")["random"].config
    moving, staying = record["specs"].values()
    assert tuple(tries_of([moving])) == config.ways
    assert tuple(tries_of([staying])) == config.contrast
    assert record["control"]["matched"]["cosine"] == pytest.approx(1)
    assert min(record["control"]["correlation"].values()) == pytest.approx(1)
    assert max(record["correlation"].values()) < 0.999
    assert all(f"| {way} |" in experiment.format(record) for way in config.ways)
    (finding,) = experiment.findings(records)
    best = min(np.mean(left) for left in shares_left([moving], "all").values())
    assert (finding.verdict == "not") == (best >= 0.5)
    assert f"leaves {100 * best:.0f} %" in finding.ours


def check_real_resnets(experiment, records, stages):
    from git_rebasin.experiments.real_resnets import BESIDE, STATISTICS, choose_midpoint, tested

    (record,) = records
    config = experiment.preset("smoke")[record["family"]].config
    tries = [("none", 0), *((way, k) for way in config.ways for k in range(config.keys))]
    assert [(row["way"], row["key"]) for row in record["rows"]] == tries
    assert len(stages) == len(tries) and record["start"] == "correlation"
    for row in record["rows"]:
        assert list(row["mended"]) == list(STATISTICS)
        assert all(0 <= m["accuracy"] <= 1 and m["loss"] > 0 for m in row["mended"].values())
    assert len({row["mended"]["as it is"]["loss"] for row in record["rows"]}) >= 3  # they differ
    # Test images are looked at for what validation chose, and for what is always beside it.
    best = choose_midpoint(record["rows"])
    looked_at = list(dict.fromkeys((row["way"], row["statistics"]) for row in record["tested"]))
    assert looked_at == list(dict.fromkeys([*BESIDE, best]))
    assert len(tested(record, "weights", "reset")) == config.keys
    assert "weights" in experiment.format(record)


def check_leaderboard(experiment, records, stages):
    from git_rebasin.experiments.board import Learning, methods_of

    mlp, cnn = records
    assert [row["method"] for row in mlp["rows"]] == list(methods_of(Learning(), False))
    assert "mlp digits, pair 0, scaling" in stages and len(cnn["rows"]) == 4
    for record, kinds in ((mlp, 2), (cnn, 3)):
        assert {len(checksum) for checksum in record["files"].values()} == {64}
        for row in record["rows"]:
            assert len(row["accuracy"]) == len(row["kept"]) == kinds
            for kind, (low, high) in row["kept_interval"].items():
                assert low <= row["kept"][kind] <= high
            if reached := row["validation"]:
                assert reached[row["setting"]] == max(reached.values())
    assert {row["method"] for row in mlp["rows"] if row["validation"]} == {"weights", "activations"}


def check_rescaled_resnets(experiment, records, stages):
    from git_rebasin.experiments.rescaled_resnets import LINES, lowest

    (record,) = records
    keys = record["config"]["pair"]["keys"]
    assert [len(lowest(record, name)) for name in LINES] == [1, *[keys] * (len(LINES) - 1)]
    for row in record["rows"]:
        assert row["output_change"] < 1e-3 and 0 < row["share"]["median"] < 1
        assert len(row["line"]["accuracy"]) == len(record["lambdas"]) == 3
    assert len({row["line"]["loss"][1] for row in record["rows"]}) >= len(LINES)
    assert "| permuted, rescaled for the line |" in experiment.format(record)


def check_baselines(experiment, records, stages):
    from git_rebasin.experiments.baselines import format_scale, midpoint, sweep

    decays = sweep(records, "digits", "weight decay")
    assert list(decays) == [0.0, 0.01] and format_scale(decays, "decay").count("\n| ") == 2
    assert experiment.format(records[1]).count("\n| ") == 2
    assert midpoint(records[0], None)["rise"] < 0  # the ensemble is better than its members
    assert all(0.5 < share <= 1 for record in records for share in record["alive"])
    for record in records:
        for line in ("naive", "matched"):
            cold, warm = (record[line][way] for way in ("as it is", "tempered"))
            assert warm["train"]["loss"] <= cold["train"]["loss"]  # the best temperature
            assert warm["test"]["accuracy"] == cold["test"]["accuracy"]  # and no other choices
            assert len(record[line]["kept"]) == 3 and record[line]["temperature"] > 0
    assert records[0]["naive"] != records[0]["matched"]


def check_negative_results(experiment, records, stages):
    (record,), ways = records, records[0]["ways"]
    assert ways["steepest descent"]["slope"] < min(ways[w]["slope"] for w in ("none", "weights"))
    cosines = {name: way["cosine"] for name, way in ways.items()}
    assert cosines["weights"] > max(cosines["none"], cosines["steepest descent"])
    for way in ways.values():  # the slope is that of the line
        change = np.subtract(way["near"][:2], way["curves"]["train"]["loss"][0])
        one, three = change / record["near"][:2]  # at distances 1 to 3: without the curvature
        assert abs((3 * one - three) / 2 - way["slope"]) < 0.01 * abs(way["slope"]) + 1e-3
    assert experiment.format(record).count("\n| ") == 5 and len(experiment.findings(records)) == 2


def check_run_times(experiment, records, stages):
    from git_rebasin.experiments.run_times import MATCHERS

    (record,) = records
    assert tuple(record["matchers"]) == MATCHERS
    assert record["parameters"] == 64 * 16 + 16 * 17 + 16 + 170
    for times in record["matchers"].values():
        assert len(times["seconds"]) == len(times["sweeps"]) == 2 and min(times["seconds"]) > 0
        assert times["first"] > 0
    assert [t["recovered"] for t in record["planted"]] == [True, True] and len(record["load"]) == 2
    text = experiment.format(record)
    assert "MLP 16 × 16" in text and "| 500 |" in text and len(experiment.findings(records)) == 3
