"""Random calls of the compiled parts under gcc's sanitizers: `python tests/sanitize_c.py [60]`.

It builds all with checks of every access, then calls them with arrays that fit and with arrays
that do not: other types, byte orders, layouts and sizes, memory that is shared, and memory that
another thread writes to meanwhile. A call must be right or be refused; the first access out of
bounds ends the process. The last line says how many calls there were of each kind.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

PACKAGE = Path(__file__).resolve().parent.parent / "git_rebasin"
PARTS = {"_gather": "symmetry", "_assignment": "matching", "_halves": ""}
LIBRARIES = {"address,undefined": "libasan.so", "thread": "libtsan.so"}
REFUSED = (TypeError, ValueError, IndexError, BufferError)
FLAGS = "-O1 -g -shared -fPIC -ffinite-math-only -fno-sanitize-recover=all".split()
MACROS = ["-DPy_LIMITED_API=0x030B0000", "-DVECTORISED=static"]  # the loader cannot pick yet


# ---- calls: each returns the arguments of one part, which fit


def gather_arguments(rng):
    rows, n, m = rng.integers(0, 40, 3)
    table = rng.normal(size=(rows, n)).astype(rng.choice([np.float32, np.float16]))
    index = rng.integers(0, n, m if n else 0).astype(rng.choice([np.int32, np.intc]))
    return [table, index, np.zeros((rows, len(index)), table.dtype)]


def assignment_arguments(rng):
    count, n = rng.integers(0, 4), rng.integers(0, 90)
    units = rng.normal(size=(count, n, n)) * 10.0 ** rng.integers(-15, 15)
    scores = rng.choice([units, np.round(units), units @ units], axis=0).astype(
        rng.choice([np.float32, np.float64])
    )
    out = np.stack([rng.permutation(n) for _ in range(count)] or [np.zeros(n)]).astype(np.int32)
    return [scores, out[:count], rng.normal(size=(count, n))]


def halves_arguments(rng):
    n = rng.integers(0, 300)
    return [rng.integers(0, 2**16, n).astype(np.uint16), np.zeros(n, np.float32)]


# ---- what is done to one of the arguments


def offset(x):
    return np.frombuffer(bytes(1) + x.tobytes(), x.dtype, x.size, 1).reshape(x.shape)


def read_only(x):
    x.setflags(write=False)
    return x


SPOILED = {
    "other type": lambda rng, x: x.astype(rng.choice(list("bBhHiIlLqQefdg?FO"))),
    "other byte order": lambda rng, x: x.astype(x.dtype.newbyteorder()),
    "every second": lambda rng, x: x[..., ::2],
    "backwards": lambda rng, x: x[..., ::-1],
    "columns first": lambda rng, x: np.asfortranarray(x),
    "unaligned": lambda rng, x: offset(x),
    "read only": lambda rng, x: read_only(x),
    "one axis more": lambda rng, x: x[None],
    "flat": lambda rng, x: x.ravel(),
    "another size": lambda rng, x: np.resize(x, rng.integers(0, 5, x.ndim)),
    "extreme": lambda rng, x: x + np.array(rng.choice([2.0**31 - 1, -1, 2.0**20])).astype(x.dtype),
    "no array": lambda rng, x: rng.choice(np.array([None, 3, b"x", []], object)),
}


def shared(rng, given):
    """Two arguments in the same memory, which they share in part."""
    a, b = rng.choice(len(given), 2, replace=False)
    memory = np.zeros(2 * (given[a].nbytes + given[b].nbytes) + 16, np.uint8)
    for k in (a, b):
        start = 8 * int(rng.integers(0, 2 + given[b].nbytes // 8))
        view = memory[start : start + given[k].nbytes].view(given[k].dtype)
        view = view.reshape(given[k].shape)
        view[...] = 0
        given[k] = view


def nothing(rng, given):
    """Arrays without an entry, of many rows, or of many columns."""
    n = 2 ** int(rng.integers(0, 29))
    for k, x in enumerate(given):
        rest = x.ndim - 1
        shape = (n, *[0] * rest) if rest and rng.integers(2) else (0, *[n] * rest)
        given[k] = np.lib.stride_tricks.as_strided(np.zeros(0, x.dtype), shape)


WHOLE = {"shared": shared, "nothing": nothing, "fits": lambda rng, given: None}


# ---- calls, and whether they were right


def call_gather(part, given, sure=True):
    part.take_columns(*given)
    if sure and given[2].size:
        table, index, out = given
        np.testing.assert_array_equal(out, np.take(table, index, axis=1))


def call_assignment(part, given, sure=True):
    scores, out, prices = given
    warm = bool(np.sum(out) % 2) if isinstance(out, np.ndarray) else False
    done = part.solve(scores, out, prices, warm)
    for k in range(done if sure and out.size else 0):
        assert sorted(out[k]) == list(range(out.shape[1]))
        slack = prices[k] - scores[k].astype(float)
        held = slack[np.arange(len(slack)), out[k]]
        assert np.all(
            held <= slack.min(1, initial=np.inf) + 1e-9 * np.abs(scores[k]).max(initial=0)
        )


def call_halves(part, given, sure=True):
    part.from_float16(*given)
    if sure and given[1].size:
        bits, out = given
        bits, out = bits.ravel(), out.ravel()  # any axes will do
        np.testing.assert_array_equal(out, bits.view(np.float16).astype(np.float32))
        back = np.zeros(bits.shape, np.uint16)
        part.to_float16(out, back)
        same = np.isnan(out) | (bits == back)
        part.from_bfloat16(*given)
        np.testing.assert_array_equal(out.view(np.uint32), bits.astype(np.uint32) << 16)
        part.to_bfloat16(out, back)
        assert np.all(same) and np.all(np.isnan(out) | (bits == back))


CALLS = {
    "_gather": (gather_arguments, call_gather),
    "_assignment": (assignment_arguments, call_assignment),
    "_halves": (halves_arguments, call_halves),
}


def random_call(rng, name, part) -> str:
    """One call, right or refused; returns its kind."""
    arguments, call = CALLS[name]
    given, kind = arguments(rng), rng.choice([*WHOLE, *SPOILED])
    if kind in WHOLE:
        WHOLE[kind](rng, given)
    else:
        k = rng.integers(len(given))
        given[k] = SPOILED[kind](rng, given[k])
    try:
        call(part, given)
    except REFUSED:
        assert kind != "fits"
        return f"{name}: refused"
    return f"{name}: right"


def race(rng, name, part) -> str:
    """A call while another thread writes to one of its arguments."""
    _, call = CALLS[name]
    if name == "_gather":
        table = rng.normal(size=(1000, 300)).astype(rng.choice([np.float32, np.float16]))
        given = [table, rng.permutation(300).astype(np.int32), np.zeros_like(table)]
    elif name == "_halves":
        given = [rng.integers(0, 2**16, 10_000).astype(np.uint16), np.zeros(10_000, np.float32)]
    else:
        scores = rng.normal(size=(2, 100, 100)).astype(rng.choice([np.float32, np.float64]))
        given = [scores, np.tile(np.arange(100, dtype=np.int32), (2, 1)), np.zeros((2, 100))]
    k, stop = rng.integers(len(given)), threading.Event()
    target, kept, at = given[k].reshape(-1), given[k].copy().reshape(-1), rng.integers(0, 100, 9)
    extremes = {"i": [2**31 - 1, -1], "u": [2**16 - 1, 0]}
    bad = extremes.get(target.dtype.kind) or [np.nan, np.inf, -np.inf, np.finfo(target.dtype).max]

    def write():
        while not stop.is_set():
            for value in bad:
                target[at] = value
                target[at] = kept[at]

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            call(part, given, sure=False)
    except REFUSED:
        return f"{name}: race, refused"
    finally:
        stop.set()
        writer.join()
    return f"{name}: race, survived"


def beside_each_other(rng, name, part) -> str:
    """Calls in four threads that read the same arrays and write to their own."""
    arguments, call = CALLS[name]
    given = arguments(rng)
    copies = [[*given[: 2 if name == "_gather" else 1]] for _ in range(4)]
    copies = [[*own, *(x.copy() for x in given[len(own) :])] for own in copies]
    threads = [threading.Thread(target=call, args=(part, own)) for own in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return f"{name}: in four threads"


def load(folder: str, name: str):
    spec = importlib.util.spec_from_file_location(name, Path(folder, f"{name}.so"))
    part = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(part)
    return part


def make_calls(folder: str, seconds: float, races: bool) -> None:
    """Calls for so long; under the thread sanitizer, which reports our own races, without them."""
    np.seterr(all="ignore")
    rng, end, made = np.random.default_rng(0), time.monotonic() + seconds, Counter()
    parts = {name: load(folder, name) for name in PARTS}
    threading.excepthook = lambda args: (sys.excepthook(*args[:3]), os._exit(1))
    sys.setswitchinterval(1e-4)
    while time.monotonic() < end:
        for name, part in parts.items():
            made[race(rng, name, part) if races else beside_each_other(rng, name, part)] += 1
            made.update(random_call(rng, name, part) for _ in range(100))
    print(sum(made.values()), "calls:", dict(sorted(made.items())), flush=True)


def main(seconds: float) -> None:
    for sanitizer, library in LIBRARIES.items():
        with tempfile.TemporaryDirectory() as folder:
            for name, where in PARTS.items():
                source, built = PACKAGE / where / f"{name}.c", Path(folder, f"{name}.so")
                include = sysconfig.get_path("include")
                command = [
                    "gcc",
                    *FLAGS,
                    *MACROS,
                    f"-fsanitize={sanitizer}",
                    f"-I{include}",
                    source,
                ]
                subprocess.run([*command, "-o", built], check=True)
            found = subprocess.run(
                ["gcc", f"-print-file-name={library}"], capture_output=True, text=True, check=True
            )
            checks = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
            checks |= {"LD_PRELOAD": found.stdout.strip(), "OPENBLAS_NUM_THREADS": "1"}
            print(f"-fsanitize={sanitizer}", flush=True)
            races = str(sanitizer != "thread")
            command = ["setarch", "-R", sys.executable, __file__, folder, str(seconds), races]
            subprocess.run(command, check=True, env=os.environ | checks)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        make_calls(sys.argv[1], float(sys.argv[2]), sys.argv[3] == "True")
    else:
        main(float(sys.argv[1]) if sys.argv[1:] else 60.0)
