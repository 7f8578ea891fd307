"""Run notebooks, store their outputs, and check the stored ones.

    python -m tools.notebooks run [PATH ...]      run, and store the outputs
    python -m tools.notebooks check [PATH ...]    run, and compare with what is stored
    python -m tools.notebooks stored [PATH ...]   run nothing: are outputs older than their code?

Notebooks run under nbdev's rules: cells marked `#| eval: false` or with one of the `tst_flags` of
settings.ini are passed over and keep what they have. Two outputs are the same if their text is,
with numbers up to 1e-3; of pictures it is only asked that they are there, as their bytes change
with matplotlib's version. A cell marked `#| volatile`, whose numbers change from run to run or
between versions of JAX, must only show the same kinds of output. What cells write to stderr
(progress bars, logs) is not kept. `check` leaves out the test cells that show nothing: they are
tests in `tests/`, which run there, and would take as long again.
"""

import argparse
import difflib
import hashlib
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path

from execnb.nbio import NbCell, write_nb
from execnb.shell import CaptureShell
from fastcore.basics import AttrDict

from tools import pictures, project
from tools.badges import INSTALL
from tools.clean import clean

TOLERANCE = 1e-3
TIMEOUT = 1200  # seconds for one notebook; those of an hour belong behind a flag
PRELOADED = [  # what most notebooks import, and what runs them
    "datasets",
    "execnb.shell",
    "flax.linen",
    "git_rebasin.experiments.runner",
    "matplotlib.pyplot",
    "optax",
    "scipy.optimize",
    "tools.clean",
]
NUMBER = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+)(?:e[-+]?\d+)?|[-+]?\d+e[-+]?\d+", re.IGNORECASE)


# ---- which cells run, and what they were


def skipped_flags() -> set[str]:
    with project.project() as settings:
        return set(settings.tst_flags.split())


def runs(cell: NbCell, skip: set[str]) -> bool:
    """Does the cell run, by nbdev's rules?"""
    return (
        project.is_code(cell)
        and "nbdev_export(" not in cell.source
        and project.option(cell, "eval") != "false"
        and not skip & cell.directives_.keys()
    )


def only_tests(cell: NbCell) -> bool:
    """Is a cell nothing but a test, which pytest runs?"""
    marks = cell.directives_.get("test")
    return marks is not None and marks != ["setup"] and not cell.outputs


def code_hash(nb: AttrDict) -> str:
    """A hash of the notebook's code, the cells that only some machines can run included.

    The cell for Colab is not of the notebook: `tools.badges` writes it, and it runs nowhere else.
    """
    cells = [cell for cell in nb.cells if project.is_code(cell) and cell.id != INSTALL]
    code = "\0".join(cell.source for cell in cells)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def is_stored(nb: AttrDict) -> bool:
    """Do the stored outputs come from this very code?"""
    return nb.metadata.get("executed", {}).get("code") == code_hash(nb)


# ---- run one notebook, in this process


def execute(path: Path, target: Path, tests: bool = True) -> str | None:
    """Run a notebook, with its tests or not, and write it, with its outputs, to `target`; returns
    what went wrong."""
    os.environ["IN_TEST"] = "1"  # nbdev's own sign that a notebook does not run by hand
    nb, skip = project.read(path), skipped_flags()
    os.chdir(path.parent)
    shell = CaptureShell(path, mpl_format="retina")
    for cell in nb.cells:
        if not runs(cell, skip) or (not tests and only_tests(cell)):
            continue
        cell.outputs = []
        shell.cell(cell)
        if shell.exc:
            return describe(shell.exc, cell)
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            pictures.shrink(output)
    nb.metadata["executed"] = {"code": code_hash(nb)}
    clean(nb)
    write_nb(nb, target)
    return None


def describe(error: BaseException, cell: NbCell) -> str:
    """The cell that failed, and the traceback without the machinery that ran it."""
    trace = error.__traceback__
    while trace and re.search(r"[/\\](execnb|IPython)[/\\]", trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    return f"cell {cell.id}:\n\n{indent(cell.source)}\n\n{''.join(lines)}"


def indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


# ---- run many, each in a process of its own


class Run:
    """A notebook that runs in a process of its own, and where its outputs go."""

    def __init__(self, path: Path, folder: Path, tests: bool, context: BaseContext) -> None:
        self.path, self.start = path, time.perf_counter()
        self.target = folder / "-".join(path.relative_to(project.ROOT).parts)
        self.log = self.target.with_suffix(".log")
        arguments = (path, self.target, tests, self.log)
        self.process = context.Process(target=execute_to, args=arguments)
        self.process.start()

    def result(self) -> tuple[Path, Path, str | None]:
        """The notebook, where it lies with its outputs, and what went wrong."""
        if late := self.process.is_alive():
            self.process.kill()
        self.process.join()
        error = self.log.read_text(encoding="utf-8").strip() if self.log.exists() else ""
        error = error or f"exit code {self.process.exitcode}" if self.process.exitcode else None
        error = f"stopped after {TIMEOUT} s" if late else error
        seconds = time.perf_counter() - self.start
        print(f"{seconds:7.1f} s  {name(self.path)}{'  FAILED' if error else ''}", flush=True)
        return self.path, self.target, error


def execute_to(path: Path, target: Path, tests: bool, log: Path) -> None:
    """What the process of one notebook does; all that it prints goes to `log`."""
    with log.open("w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        if error := execute(path, target, tests):
            file.write(error)
            file.flush()
            sys.exit(1)


def processes() -> BaseContext:
    """How processes start: on Linux as copies of one that has imported what takes seconds.

    That one runs nothing of JAX, whose threads a copy would not have.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_all(
    paths: list[Path], workers: int, folder: Path, tests: bool
) -> Iterator[tuple[Path, Path, str | None]]:
    """Run notebooks, the last first: those of the zoo train networks, and take longest."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "IPYTHONDIR": str(folder / "ipython")}
    os.environ.pop("MPLBACKEND", None)  # the shell draws inline
    context, waiting, running = processes(), list(paths), []
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(Run(waiting.pop(), folder, tests, context))
        wait([run.process.sentinel for run in running], timeout=1)
        late = time.perf_counter() - TIMEOUT
        for run in [r for r in running if r.start < late or not r.process.is_alive()]:
            running.remove(run)
            yield run.result()


def name(path: Path) -> str:
    return path.relative_to(project.ROOT).as_posix()


# ---- compare what is stored with what came out


def kind_and_text(output: AttrDict) -> tuple[str, str]:
    """What sort of output it is, and its text, which pictures have none of."""
    if output.output_type == "stream":
        return output.name, "".join(output.text)
    if output.output_type == "error":
        return "error", f"{output.ename}: {output.evalue}"
    if any(kind.startswith("image/") for kind in output.data):
        return "image", ""
    kinds = ["text/markdown", "text/latex", "text/plain", *output.data]
    kind = next(kind for kind in kinds if kind in output.data)
    return kind, "".join(output.data.get(kind, ""))


def same_text(old: str, new: str) -> bool:
    """Is the text the same, with numbers up to the tolerance, and white space aside?"""
    skeletons = ["".join(NUMBER.sub("#", text).split()) for text in (old, new)]
    pairs = zip(NUMBER.findall(old), NUMBER.findall(new), strict=False)
    return skeletons[0] == skeletons[1] and all(
        a == b or close(float(a), float(b)) for a, b in pairs
    )


def close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(1.0, abs(a))


def same(old: NbCell, new: NbCell) -> bool:
    before, after = ([kind_and_text(output) for output in cell.outputs] for cell in (old, new))
    if [kind for kind, _ in before] != [kind for kind, _ in after]:
        return False
    if project.has(old, "volatile"):
        return True
    return all(same_text(a, b) for (_, a), (_, b) in zip(before, after, strict=True))


def differences(path: Path, target: Path) -> Iterator[str]:
    """A description of every cell whose stored output is not what a run gives."""
    skip = skipped_flags()
    for old, new in zip(project.read(path).cells, project.read(target).cells, strict=True):
        if runs(old, skip) and not same(old, new):
            before, after = (
                [
                    line
                    for kind, text in map(kind_and_text, cell.outputs)
                    for line in [f"<{kind}>", *text.splitlines()]
                ]
                for cell in (old, new)
            )
            diff = difflib.unified_diff(before, after, "stored", "now", lineterm="", n=2)
            yield f"cell {old.id}: the stored output is not what a run gives\n\n" + indent(
                "\n".join(diff)
            )


# ---- the commands


def problems(command: str, paths: list[Path], workers: int) -> Iterator[str]:
    """Run a command, and yield a message for each problem."""
    if command != "run":
        stale = [path for path in paths if not is_stored(project.read(path))]
        yield from (f"{name(path)}: its outputs are older than its code" for path in stale)
    if command == "stored":
        return
    with tempfile.TemporaryDirectory() as folder:
        for path, target, error in run_all(paths, workers, Path(folder), command == "run"):
            if error:
                yield f"{name(path)}, {error}"
            elif command == "run":
                shutil.copyfile(target, path)
            else:
                yield from (
                    f"{name(path)}, {difference}" for difference in differences(path, target)
                )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "check", "stored"])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument(
        "--workers", type=int, default=2, help="how many notebooks run at the same time"
    )
    options = parser.parse_intermixed_args()
    paths = [path.resolve() for path in options.paths] or project.notebooks()
    messages = list(problems(options.command, paths, options.workers))
    for problem in messages:
        print(f"\n{problem}" if "\n" in problem else problem, file=sys.stderr)
    if messages and options.command != "run":
        print("\n`make notebooks` runs them and stores what comes out.", file=sys.stderr)
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
