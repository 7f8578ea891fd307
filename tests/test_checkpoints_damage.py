"""Files that were damaged, processes that were killed, disks that are full."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import safetensors

from git_rebasin.checkpoints.files import replacing, write_atomic
from git_rebasin.checkpoints.io import load_arrays, load_metadata, load_params, save_params


def with_header(text, data=b""):
    text = text.encode() if isinstance(text, str) else text
    return len(text).to_bytes(8, "little") + text + data


def table(data=b"", **entries):
    "A file with `name=(begin, end, shape, dtype)` in its table"
    keys = ("data_offsets", "shape", "dtype")
    rows = {n: dict(zip(keys, ([a, b], s, d), strict=True)) for n, (a, b, s, d) in entries.items()}
    return with_header(json.dumps(rows), data)


ENTRY = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
DAMAGED = {
    "nothing": b"",
    "three bytes": b"abc",
    "no table": bytes(8),
    "zeros": bytes(1000),
    "length 3 GB": (3 * 10**9).to_bytes(8, "little") + b"{}      ",
    "length 2^40": (2**40).to_bytes(8, "little") + b"{}      ",
    "length 2^63": (2**63).to_bytes(8, "little") + b"{}",
    "length 2^64 - 1": b"\xff" * 100,
    "a zip file": b"PK\x03\x04" + bytes(1000),
    "a list": with_header("[]"),
    "a number": with_header("1"),
    "cut off": with_header('{"a": '),
    "something behind": with_header("{} x"),
    "no UTF-8": with_header(b'{"\xff": 1}'),
    "deep lists": with_header("[" * 200_000),
    "deep objects": with_header('{"a":' * 100_000),
    "metadata a number": with_header('{"__metadata__": 123}'),
    "metadata a list": with_header('{"__metadata__": []}'),
    "metadata with a number": with_header('{"__metadata__": {"a": 1}}'),
    "metadata twice": with_header('{"__metadata__": {"a": "1"}, "__metadata__": {"b": "2"}}'),
    "one text twice": with_header('{"__metadata__": {"a": "1", "a": "2"}}'),
    "a name twice": with_header(f"{{{ENTRY}, {ENTRY}}}", bytes(4)),
    "an entry a number": with_header('{"a": 1}'),
    "an entry without shape": with_header('{"a": {"dtype": "F32", "data_offsets": [0, 4]}}'),
    "overlap": table(bytes(6), a=(0, 4, [1], "F32"), b=(2, 6, [1], "F32")),
    "a hole": table(bytes(12), a=(0, 4, [1], "F32"), b=(8, 12, [1], "F32")),
    "beyond the end": table(bytes(4), a=(0, 4, [1], "F32"), b=(4, 8, [1], "F32")),
    "bytes left over": table(bytes(9), a=(0, 4, [1], "F32")),
    "before the start": table(bytes(4), a=(-4, 0, [1], "F32")),
    "another shape": table(bytes(4), a=(0, 4, [2], "F32")),
    "a huge shape": table(bytes(4), a=(0, 4, [2**40, 2**40], "F32")),
    "a negative shape": table(bytes(4), a=(0, 4, [-1], "F32")),
    "an unknown dtype": table(bytes(4), a=(0, 4, [1], "Q32")),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, name):
    file = tmp_path / "m.safetensors"
    file.write_bytes(DAMAGED[name])
    for read in (load_params, load_metadata):
        tracemalloc.start()
        with pytest.raises(
            ValueError, match=r"m\.safetensors is not a whole safetensors file .*: "
        ):
            read(file)
        assert tracemalloc.get_traced_memory()[1] < 2e7
        tracemalloc.stop()


def test_unusual_files_that_are_whole(tmp_path):
    file = tmp_path / "m.safetensors"
    for data in (with_header("{}"), with_header(' {"__metadata__": null} ')):
        file.write_bytes(data)
        assert load_params(file) == load_metadata(file) == {}
    file.write_bytes(with_header("{" + ENTRY.replace('"a"', '"b/a"') + "}", b"\0\0\x80?"))  # at 79
    np.testing.assert_equal(load_params(file), {"b": {"a": np.ones(1, np.float32)}})
    file.write_bytes(table(bytes(2), a=(0, 2, [4], "F4")))
    with pytest.raises(ValueError, match=r"m\.safetensors: 'a' has the dtype F4, which numpy lack"):
        load_params(file)
    file.write_bytes(table(b"ab", **{"a": (0, 1, [1], "U8"), "a/b": (1, 2, [1], "U8")}))
    with pytest.raises(ValueError, match=r"m\.safetensors: .*'a/b'.*or load it with flat=True"):
        load_params(file)
    assert load_params(file, flat=True).keys() == {"a", "a/b"}


def test_every_cut_and_a_flipped_bit_in_every_byte_of_the_table(tmp_path):
    rng = np.random.default_rng(0)
    params = {"a": {"w": rng.normal(size=(3, 2)), "b": rng.integers(0, 9, 3)}, "c": np.ones(0)}
    file = save_params(tmp_path / "m.safetensors", params, {"format": "pt"})
    whole = file.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    flips = [(k, 1 << rng.integers(8)) for k in range(size)]
    changed = [whole[:k] + bytes([whole[k] ^ bit]) + whole[k + 1 :] for k, bit in flips]
    for data in [*changed, *(whole[:k] for k in range(len(whole)))]:
        file.write_bytes(data)
        for read in (load_params, load_metadata):
            try:
                read(file)  # names, and the like of two dtypes of one size, may have changed
            except ValueError as e:
                assert str(file) in str(e)


@pytest.mark.parametrize("before", [True, False])
def test_what_is_read_is_of_one_moment(tmp_path, monkeypatch, before):
    file, checked = tmp_path / "m.safetensors", safetensors.safe_open
    models = [{"w": np.full(k + 2, k)} for k in range(3)]
    moments = iter(models[1:])

    def replaced_meanwhile(*args):
        "Another process writes the file, just before or after it is checked"
        new = next(moments, None)
        if before and new:
            save_params(file, new, {"k": str(len(new["w"]))})
        with checked(*args) as found:
            pass
        if not before and new:
            save_params(file, new, {"k": str(len(new["w"]))})
        return contextlib.nullcontext(found)

    save_params(file, models[0], {"k": "2"})
    monkeypatch.setattr(safetensors, "safe_open", replaced_meanwhile)
    arrays, metadata = load_arrays(file)
    np.testing.assert_array_equal(arrays["w"], models[2]["w"], strict=True)
    assert metadata == {"k": "4"} == load_metadata(file)


RUN = """
import sys
import numpy as np
from git_rebasin.checkpoints.io import save_params
k = 0
while True:
    k += 1
    save_params(sys.argv[1], {"w": np.full(3_000_000, k), "k": np.array(k)})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_process_leaves_a_whole_file_and_nothing_for_good(tmp_path):
    file = tmp_path / "m.safetensors"
    left = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", RUN, str(file)])
        try:
            deadline = time.monotonic() + 120
            while not (file.exists() and [p for p in tmp_path.iterdir() if p != file]):
                assert process.poll() is None and time.monotonic() < deadline
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        back = load_params(file)
        assert (back["w"] == back["k"]).all()
        left += [p for p in tmp_path.iterdir() if p != file]
    assert left  # one of them at least was killed while it wrote
    save_params(file, {"w": np.zeros(1)})
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_many_threads_write_one_file(tmp_path):
    file, failed = tmp_path / "f", []

    def write(k):
        try:
            for _ in range(100):
                write_atomic(file, bytes([k]) * 1000)
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and os.listdir(tmp_path) == ["f"]
    assert len(set(file.read_bytes())) == 1 and file.stat().st_size == 1000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a umask")
def test_the_umask_holds_and_is_left_alone(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
        file = write_atomic(tmp_path / "f", b"new")
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        file.chmod(0o604)
        with replacing(file) as out:
            assert stat.S_IMODE(os.stat(out.name).st_mode) & ~0o604 == 0  # never more than it had
        assert stat.S_IMODE(file.stat().st_mode) == 0o604
    finally:
        monkeypatch.undo()
        os.umask(before)


def test_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource")
    file = save_params(tmp_path / "m.safetensors", {"w": np.ones(3)})
    before, limit = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(
            OSError, match=r"m\.safetensors was not written \(File too large\), and"
        ):
            save_params(file, {"w": np.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="nothing is read-only to root")
def test_read_only(tmp_path):
    file = write_atomic(tmp_path / "folder/f", b"old")
    file.chmod(0o444)
    with pytest.raises(PermissionError, match="f was not written .the file there is read-only"):
        write_atomic(file, b"new")
    file.chmod(0o644)
    file.parent.chmod(0o555)
    with pytest.raises(PermissionError, match="f was not written .Permission denied"):
        write_atomic(file, b"new")
    file.parent.chmod(0o755)
    assert file.read_bytes() == b"old"
