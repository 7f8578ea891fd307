"""Damaged and hostile checkpoints: is each opened, or refused with a text that names it?

    python tests/fuzz_checkpoints.py 100000 --seed 1

changes so many valid small files, of every format in turn, and opens each in a process with little
memory and time. What may come out is arrays, or a ValueError, an OSError or a ModuleNotFoundError
whose text names the file. Anything else is printed with its seed, and the file is saved in
`--keep`: another exception, a process that dies, one that computes for more than two seconds, or
more memory than fifty times the file and 50 MB. `--only numpy` changes files of one format,
`--minutes 10` ends then.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from git_rebasin.checkpoints.numpy_files import write_npz
from git_rebasin.checkpoints.opened import open_checkpoint
from git_rebasin.checkpoints.safetensors_files import write_safetensors
from git_rebasin.checkpoints.torch_writing import write_torch

HERE = Path(__file__).parent
SECONDS, WAIT = 2, 120  # of computing for one file; of waiting for it
MORE = 2**32  # bytes of address space beside what a process has
ALLOWED = (ValueError, OSError, ModuleNotFoundError)
w = np.arange(12, dtype=np.float32).reshape(3, 4)
ARRAYS = {"fc.weight": w, "fc.bias": np.ones(4, np.float16), "layers/0/w": w[:2].copy()}
Data = bytearray


# ---- files that are whole: format → files of a folder


def in_file(write: Callable, name: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as d:
        write(f"{d}/{name}")
        return {name: Path(d, name).read_bytes()}


def in_folder(write: Callable) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as d:
        write(f"{d}/m")
        files = [path for path in Path(d, "m").rglob("*") if path.is_file()]
        return {f"m/{path.relative_to(f'{d}/m')}": path.read_bytes() for path in files}


def seeds() -> dict[str, list[dict[str, bytes]]]:
    """Small files of all formats that this environment can write."""
    one = lambda path: {path.name: path.read_bytes()}
    found = {
        "safetensors": [in_file(lambda p: write_safetensors(p, ARRAYS, {"format": "pt"}), "m")],
        "torch": [
            in_file(lambda p: write_torch(p, {"state_dict": ARRAYS, "epoch": {"a": w}}), "m")
        ],
        "numpy": [
            in_file(lambda p: write_npz(p, ARRAYS), "m"),
            in_file(
                lambda p: np.savez_compressed(p, **{k[:2]: x for k, x in ARRAYS.items()}), "m.npz"
            ),
        ],
    }
    found["torch"] += [one(path) for path in sorted((HERE / "torch_files").glob("*.pt"))]
    found["shards"] = [in_folder(shards)]
    try:
        from flax.serialization import msgpack_serialize

        tree = {"params": {"a": {0: w, 1: w}, "b": [w]}, "step": 3, "x": 2.5}
        found["flax"] = [{"m": msgpack_serialize(tree)}]
    except ModuleNotFoundError:
        pass
    try:
        import h5py

        assert h5py
        found["hdf5"] = [in_file(packed, "m"), one(HERE / "keras_files/trained.h5")]
        found["keras"] = [one(HERE / "keras_files/trained.keras")]
    except ModuleNotFoundError:
        pass
    with contextlib.suppress(ModuleNotFoundError):
        found["orbax"] = [in_folder(lambda p, o=o: orbax(p, o)) for o in (True, False)]
    return found


def shards(path: str) -> None:
    for k, (name, x) in enumerate(ARRAYS.items(), 1):
        write_safetensors(f"{path}/model-0000{k}-of-00003.safetensors", {name: x})
    weights = {n: f"model-0000{k}-of-00003.safetensors" for k, n in enumerate(ARRAYS, 1)}
    Path(path, "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def packed(path: str) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["a/w"], file["a/v"] = w, w
        file.create_dataset("b/w", data=w, compression="gzip", shuffle=True, chunks=(2, 2))


def orbax(path: str, ocdbt: bool) -> None:
    """Save in a process of its own, as its threads would be missing in those that read."""
    if importlib.util.find_spec("orbax.checkpoint") is None:
        raise ModuleNotFoundError("orbax")
    if child := os.fork():
        os.waitpid(child, 0)
        return
    try:
        import orbax.checkpoint

        logging_off()
        saver = orbax.checkpoint.PyTreeCheckpointer(use_ocdbt=ocdbt)
        saver.save(path, {"a": {"w": w, "v": w[0]}, "b": [w], "step": 3})
    finally:
        os._exit(0)


def logging_off() -> None:
    import logging

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


# ---- ways to change a file


def flip(rng: random.Random, data: Data) -> None:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def put(rng: random.Random, data: Data) -> None:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])


def cut(rng: random.Random, data: Data) -> None:
    del data[rng.randrange(len(data)) :]


def take_out(rng: random.Random, data: Data) -> None:
    begin = rng.randrange(len(data))
    del data[begin : begin + rng.choice([1, 2, 8, 64])]


def splice(rng: random.Random, data: Data) -> None:
    """Copy a piece to another place, over what is there or before it: names twice, among others."""
    begin, at, n = (
        rng.randrange(len(data)),
        rng.randrange(len(data)),
        rng.choice([1, 4, 8, 32, 128]),
    )
    data[at : at + rng.choice([0, n])] = data[begin : begin + n]


def lie(rng: random.Random, data: Data) -> None:
    """A number that a length, an offset or a shape may be."""
    size, order = rng.choice([2, 4, 8]), rng.choice(["little", "big"])
    value = rng.choice(
        [0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]
    )
    at = rng.randrange(len(data))
    data[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, order)


def digits(rng: random.Random, data: Data) -> None:
    """Another number in JSON, or in the head of an array."""
    places = [k for k, byte in enumerate(data) if 48 <= byte <= 57]
    if places:
        at = rng.choice(places)
        data[at : at + 1] = rng.choice(
            [b"-1", b"0", b"99999999999", b"1e9", b"9" * 30, b"null", b"[]"]
        )


def nest(rng: random.Random, data: Data) -> None:
    """Containers within containers, in the ways of JSON, of pickles and of msgpack."""
    deep = rng.choice(
        [b"[", b'{"a":', b"}", b"(", b"]", b"\x81\xa1a", b"\x91", b"}X\x01\x00\x00\x00a"]
    )
    at = rng.randrange(len(data))
    data[at:at] = deep * rng.choice([3, 70, 3000, 100_000])


def repeat(rng: random.Random, data: Data) -> None:
    data += data[rng.randrange(len(data)) :]


def swap(rng: random.Random, data: Data) -> None:
    """Another text of as many letters: names twice, other dtypes, places beside the file."""
    pairs = [(b"fc.weight", b"fc.bias__"), (b"F32", b"F64"), (b"<f4", b"|O8"), (b"model", b"../..")]
    pairs += [(b"0000", b"../x"), (b"zarr", b"json"), (b"file", b"http"), (b"key", b"KEY")]
    old, new = rng.choice(pairs)
    at = data.find(old)
    if at >= 0:
        data[at : at + len(old)] = new


def in_archive(rng: random.Random, data: Data) -> None:
    """Change an entry of a zip archive and put it together anew, so that sums are right."""
    with tempfile.SpooledTemporaryFile() as old, tempfile.SpooledTemporaryFile() as new:
        warnings.simplefilter("ignore")  # names twice
        old.write(data)
        with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w") as target:
            infos = source.infolist()
            chosen = rng.choice(infos).filename
            for info in infos:
                entry = Data(source.read(info))
                if info.filename == chosen and entry:
                    rng.choice(PLAIN)(rng, entry)
                kind = rng.choice([info.compress_type] * 9 + [zipfile.ZIP_DEFLATED])
                for _ in range(rng.choice([1] * 20 + [2])):
                    target.writestr(info.filename, bytes(entry), kind)
        new.seek(0)
        data[:] = new.read()


def in_table(rng: random.Random, data: Data) -> None:
    """Change the table of a safetensors file, and say truly how long it is."""
    size = struct.unpack("<Q", data[:8])[0]
    table = Data(data[8 : 8 + size])
    rng.choice(PLAIN)(rng, table)
    data[: 8 + size] = len(table).to_bytes(8, "little") + table


PLAIN = [flip, put, cut, take_out, splice, lie, digits, nest, repeat, swap]


def changed(rng: random.Random, kind: str, files: dict[str, bytes]) -> dict[str, bytes]:
    """Files of which one was changed, once or more."""
    name = rng.choice(sorted(files))
    data = Data(files[name])
    ways = PLAIN + [in_archive] * 5 * (data[:2] == b"PK") + [in_table] * 5 * (kind == "safetensors")
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if data:
            try:
                rng.choice(ways)(rng, data)
            except (
                zipfile.BadZipFile,
                ValueError,
                struct.error,
                RuntimeError,
                EOFError,
                OSError,
                zlib.error,
            ):
                pass  # changed already, so that it is no archive any more
    rest = {other: own for other, own in files.items() if rng.random() < 0.98 or other == name}
    return {**rest, name: bytes(data)}


# ---- one file after the other, in a process with limits


def outcome(path: Path, size: int) -> str:
    """What comes of opening a file, and of reading arrays that claim no more than it may."""
    tracemalloc.start()
    try:
        found = open_checkpoint(path)
        most = 50 * size + 50_000_000
        for leaf in found.arrays.values():
            if leaf.size * leaf.dtype.itemsize <= most / 4:
                np.asarray(leaf)
        text = "opened"
    except ALLOWED as e:
        text = type(e).__name__ if isinstance(e, ModuleNotFoundError) else "refused"
        if path.name not in str(e):
            text = f"! {type(e).__name__} without the name of the file: {e}"
    except BaseException as e:
        text = f"! {type(e).__name__}: {e}"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if peak > 50 * size + 50_000_000:
        text = f"! {peak:,} bytes of memory for {size:,}; {text}"
    return text[:300].replace("\n", " ")


def place(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files to a folder, and say which path is to be opened."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        path = folder / "checkpoint" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (own,) = (folder / "checkpoint").iterdir()
    return own


def made(seed: int, known: dict[str, list[dict[str, bytes]]]) -> tuple[str, dict[str, bytes]]:
    """The format of a seed, and its files."""
    rng = random.Random(seed)
    kind = sorted(known)[seed % len(known)]
    return kind, changed(rng, kind, rng.choice(known[kind]))


def work(known: dict, first: int, last: int, folder: Path, pipe: int) -> None:
    """Open the files of some seeds, and report each."""
    logging_off()
    if "orbax" in known:
        importlib.import_module("tensorstore")  # which takes longer than a file may
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc") else 0
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for seed in range(first, last):
        _, files = made(seed, known)
        path = place(folder, files)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # which ends the process, whatever it does
        text = outcome(path, sum(map(len, files.values())))
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(pipe, f"{text}\n".encode("utf-8", "replace"))


def batch(known: dict, first: int, last: int, folder: Path) -> list[str]:
    """The outcomes of some seeds; a process that dies or hangs is replaced, and goes on."""
    found: list[str] = []
    while first + len(found) < last:
        out, pipe = os.pipe()
        if not (child := os.fork()):
            try:
                os.close(out)
                work(known, first + len(found), last, folder, pipe)
            finally:
                os._exit(0)
        os.close(pipe)
        text = ""
        while ready := select.select([out], [], [], WAIT)[0]:
            if not (piece := os.read(out, 2**16).decode()):
                break
            text += piece
        if not ready:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(out)
        found += text.splitlines()
        if first + len(found) < last:
            signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            slow = signalled == signal.SIGPROF or not ready
            found.append("! longer than the limit" if slow else f"! died by signal {signalled}")
    return found


def fuzz(
    count: int,
    seed: int,
    only: str | None = None,
    keep: Path | None = None,
    minutes: float = float("inf"),
) -> tuple[dict[str, Counter], list[str]]:
    """Outcomes by format, and what was found."""
    known = {kind: files for kind, files in seeds().items() if only in (None, kind)}
    counts, findings = {kind: Counter[str]() for kind in known}, []
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as d:
        for first in range(seed, seed + count, 500):
            if time.monotonic() > end:
                break
            last = min(first + 500, seed + count)
            for k, text in enumerate(batch(known, first, last, Path(d)), first):
                kind, files = made(k, known)
                counts[kind]["finding" if text[0] == "!" else text] += 1
                if text[0] == "!":
                    findings.append(f"seed {k}, {kind}: {text[2:]}")
                    print(findings[-1], flush=True)
                    if keep:
                        place(keep / str(k), files)
    return counts, findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0, help="the first; others follow it")
    parser.add_argument("--only", help="files of this format")
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="where findings are saved")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no more than these")
    options = parser.parse_args()
    begin = time.monotonic()
    own = (options.only, options.keep, options.minutes)
    counts, findings = fuzz(options.count, options.seed * 10**9, *own)
    for kind, outcomes in sorted(counts.items()):
        print(f"{kind:12}", ", ".join(f"{n:,} {text}" for text, n in outcomes.most_common()))
    count = sum(outcomes.total() for outcomes in counts.values())
    print(f"{count:,} files, {len(findings)} findings, {time.monotonic() - begin:.0f} s")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
