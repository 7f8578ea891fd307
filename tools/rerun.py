"""Compute the cheap records again, and compare them with those that are kept, bit for bit.

    python -m tools.rerun                            the cheapest, as many as take 20 minutes in all
    python -m tools.rerun --minutes 60
    python -m tools.rerun --only weight-matching-starts/digits 'baselines/*-0/2'
    python -m tools.rerun --list                     run nothing: what would be, and what it took

A record is named `experiment/family/pair`, without a family where it has none. It is computed in a
temporary folder, networks and all, with the configuration and the seed of its preset; networks that
several records share are trained once. One that says nothing of its time is left to `--minutes
inf`. All is compared but times and where a record was made. Where the processor, its model and
number of cores and the versions are the same, so must the bits be; elsewhere, and where a record
does not say so much, numbers may differ by a tolerance, which long trainings may not keep, as
rounding grows in them.
"""

import argparse
import fnmatch
import importlib
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from git_rebasin.experiments.records import provenance, read_record
from git_rebasin.experiments.runner import EXPERIMENTS, Experiment, _same
from git_rebasin.tables import markdown_table
from tools.project import ROOT

RECORDS = ROOT / "nbs/experiments/records"
ASIDE = ("seconds", "provenance", "config")  # not compared; configurations are beforehand
MEASURED = ("run-times",)  # what they record is time
TOLERANCE = 1e-4  # relative, and a hundredth of it absolute, where the machine is another
SHOWN = 3  # differences of a record


@dataclass(frozen=True)
class Kept:
    """A record that is kept, and how it is computed again."""

    experiment: Experiment
    preset: str
    family: str
    seed: int
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.experiment.name, self.family, str(self.seed))))

    @property
    def config(self) -> Any:
        return self.experiment.presets[self.preset][self.family].config

    @property
    def current(self) -> bool:
        """Is its configuration that of the preset?"""
        return _same(self.record["config"], self.config)

    @property
    def networks(self) -> tuple[str, int] | None:
        """Where its networks are, if they are another experiment's too."""
        folder = getattr(self.config, "checkpoints", None)
        return (folder, self.seed) if folder else None

    def run(self, out: Path) -> dict[str, Any]:
        """Compute it again, in a folder that may have its networks."""
        which = {"families": [self.family], "seeds": [self.seed]}
        (file,) = self.experiment.run(self.preset, out, **which)
        return read_record(file)


# ---- which


def kept_records(experiments: Iterable[Experiment], folder: Path) -> Iterator[Kept]:
    """All records that are kept of some experiments, but those of times."""
    for experiment in experiments:
        for preset in experiment.presets.keys() - experiment.borrowed.keys():
            for family, runs in experiment.presets[preset].items():
                for seed in runs.seeds:
                    file, _ = experiment._place(folder, preset, family, seed)
                    if file.exists() and experiment.name not in MEASURED:
                        yield Kept(experiment, preset, family, seed, read_record(file))


def seconds_of(record: dict[str, Any], training: bool = True) -> float:
    """What a record took, with the training of its networks or without; infinite if unknown."""
    stages = record.get("seconds", {})
    if isinstance(stages, dict) and not training:
        return sum(t for name, t in stages.items() if not name.startswith("train")) or math.inf
    own = {name: part for name, part in record.items() if name != "provenance"}
    return max(record["provenance"].get("seconds", 0.0), sum(times(own))) or math.inf


def times(value: Any, inside: bool = False) -> Iterator[float]:
    """All times that a record names; those of its tries only if it names none as a whole."""
    if isinstance(value, dict):
        if not inside and "seconds" in value:
            yield from times(value["seconds"], True)
            return
        for part in value.values():
            yield from times(part, inside)
    elif isinstance(value, list):
        for part in value:
            yield from times(part, inside)
    elif inside and isinstance(value, int | float):
        yield value


def cheapest(kept: Iterable[Kept], seconds: float) -> list[Kept]:
    """As many as take so long in all, the cheapest first; networks that are shared count once."""
    chosen, trained, total = [], set(), 0.0
    for one in sorted(kept, key=lambda one: (seconds_of(one.record), one.name)):
        alone = seconds_of(one.record, one.networks is None or one.networks not in trained)
        if total + alone <= seconds:
            total += alone
            chosen.append(one)
            trained.add(one.networks)
    return chosen


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Is a record meant: by its name, by that of a part of it, or by a pattern?"""
    return any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(name, f"{p}/*") for p in patterns)


# ---- the comparison


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Were two records made where the same bits are to be expected?"""
    keys = ("versions", "device", "processor", "model", "cores")
    return all(one.get(key) == other.get(key) is not None for key in keys)


def differences(old: Any, new: Any, tolerance: float = 0.0, place: str = "") -> Iterator[str]:
    """Where two records differ: in bits, or by more than a tolerance; not in times."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            there = f"{place}.{key}" if place else key
            if key in ASIDE:
                continue
            if key not in old or key not in new:
                yield f"{there} is {'new' if key in new else 'gone'}"
            else:
                yield from differences(old[key], new[key], tolerance, there)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, tolerance, f"{place}[{index}]")
    elif not equal(old, new, tolerance):
        yield f"{place}: {short(old)} → {short(new)}"


def equal(old: Any, new: Any, tolerance: float) -> bool:
    floats = isinstance(old, float) and isinstance(new, float)
    if floats and tolerance:
        return math.isclose(old, new, rel_tol=tolerance, abs_tol=tolerance / 100)
    return type(old) is type(new) and old == new


def short(value: Any) -> str:
    return text if len(text := repr(value)) < 30 else f"{text[:27]}…"


def outcome(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> tuple[bool, str]:
    """Whether a record is what it was, and in words."""
    exact = same_machine(old["provenance"], new["provenance"])
    found = list(differences(old, new, 0.0))
    if not found:
        return True, "same bits"
    far = found if exact else list(differences(old, new, tolerance))
    if not far:
        return True, f"perhaps another machine: {len(found)} numbers differ, by up to {tolerance:g}"
    more = f"; and {len(far) - SHOWN} more" if len(far) > SHOWN else ""
    where = "" if exact else "perhaps another machine, "
    return False, f"{where}differs: {'; '.join(far[:SHOWN])}{more}"


def rerun(chosen: Iterable[Kept], out: Path, tolerance: float) -> Iterator[tuple[bool, list[str]]]:
    """Compute records again; of each, whether it is what it was, and a row of the table."""
    for one in chosen:
        start = time.perf_counter()
        try:
            same, words = outcome(one.record, one.run(out), tolerance)
        except Exception as error:
            same, words = False, f"did not run: {type(error).__name__}: {error}".split("\n")[0]
        took = time.perf_counter() - start
        print(f"{took:7.1f} s  {one.name}: {words}", file=sys.stderr, flush=True)
        yield same, [one.name, f"{seconds_of(one.record):.0f}", f"{took:.0f}", words]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", default=["*"], help="these records")
    parser.add_argument(
        "--minutes", type=float, default=20, help="in all, by the records (default: %(default)s)"
    )
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="on other machines")
    parser.add_argument("--list", action="store_true", help="run nothing")
    options = parser.parse_args()
    experiments = [importlib.import_module(path).EXPERIMENT for path in EXPERIMENTS.values()]
    kept = [k for k in kept_records(experiments, RECORDS) if matches(k.name, options.only)]
    if old := [one.name for one in kept if not one.current]:
        print(f"of another configuration than their preset's, and left out: {', '.join(old)}\n")
    kept = [one for one in kept if one.current]
    chosen = cheapest(kept, 60 * options.minutes)
    if not chosen:
        parser.error(f"of {len(kept)} records that are meant, none takes {options.minutes} minutes")
    if options.list:
        rows = [[one.name, f"{seconds_of(one.record):.0f}", made(one.record)] for one in chosen]
        print(markdown_table(["record", "seconds", "revision"], rows, text=(0, 2)))
        return 0
    print(f"{len(chosen)} of {len(kept)} records, at {made({'provenance': provenance()})}")
    with tempfile.TemporaryDirectory() as folder:
        results = list(rerun(chosen, Path(folder), options.tolerance))
    heads = ["record", "seconds then", "now", "compared"]
    print(markdown_table(heads, [row for _, row in results], text=(0, 3)))
    return 0 if all(same for same, _ in results) else 1


def made(record: dict[str, Any]) -> str:
    revision = record["provenance"]["revision"] or "no revision"
    return revision[:12] + "+" * revision.endswith("+")


if __name__ == "__main__":
    sys.exit(main())
