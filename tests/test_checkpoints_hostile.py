"""Hostile and damaged checkpoints of every format, disks that are full, two writers, and links."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from git_rebasin.checkpoints import files
from git_rebasin.checkpoints.opened import open_checkpoint
from git_rebasin.checkpoints.safetensors_files import write_safetensors
from git_rebasin.checkpoints.torch_writing import write_torch
from git_rebasin.checkpoints.written import write_checkpoint

w = np.arange(6, dtype=np.float32).reshape(2, 3)
FILES = ["m.safetensors", "m.pt", "m.npz", "m.msgpack", "m.weights.h5", "m.keras"]
KERAS = Path(__file__).parent / "keras_files/trained.keras"


def written(path, scale=1):
    """A checkpoint in the format of a suffix, and the arrays in it."""
    like = open_checkpoint(KERAS)
    arrays = {name: scale * np.asarray(x).astype("f4") for name, x in like.arrays.items()}
    return write_checkpoint(path, arrays, like), arrays


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes with limits")
def test_damaged_files_are_opened_or_refused(tmp_path):
    script = Path(__file__).with_name("fuzz_checkpoints.py")
    command = [sys.executable, "-W", "ignore", str(script), "200", "--seed", "7"]
    done = subprocess.run([*command, "--keep", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 files, 0 findings" in done.stdout and done.stdout.count(" opened") == 8, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_whole_or_as_it_was_where_the_disk_is_full(tmp_path, name):
    resource = pytest.importorskip("resource")
    file, arrays = written(tmp_path / name)
    before, limit = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    large = {**arrays, "layers/dense/vars/0": np.ones((400, 400), np.float32)}
    like = open_checkpoint(file)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match=f"{name} was not written"):
            write_checkpoint(file, large, like)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_bytes() == before and os.listdir(tmp_path) == [name]


def test_a_folder_is_whole_or_not_there_where_the_disk_is_full(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "a" / "model.safetensors", {"v": w, "w": w})
    like, place = open_checkpoint(tmp_path / "a"), files._take_place

    def full(file, target, old):
        if "00002" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        place(file, target, old)

    monkeypatch.setattr(files, "_take_place", full)
    with pytest.raises(OSError, match="No space left on device") as info:
        write_checkpoint(tmp_path / "b", like.arrays, like, shard_bytes=30)
    assert info.value.errno == errno.ENOSPC and os.listdir(tmp_path) == ["a"]


def write_many(path, scale):
    for _ in range(10):
        written(path, scale)


@pytest.mark.parametrize("name", ["m.safetensors", "m.weights.h5", "m.keras"])
def test_of_two_writers_one_is_there_whole(tmp_path, name):
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=write_many, args=(tmp_path / name, scale)) for scale in (2, 3)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert os.listdir(tmp_path) == [name]
    found = {n: np.asarray(x) for n, x in open_checkpoint(tmp_path / name).arrays.items()}
    _, arrays = written(tmp_path / "one.npz")
    scales = {float((found[n] / np.where(x == 0, 1, x)).max()) for n, x in arrays.items()}
    assert scales in ({2.0}, {3.0})


def sharded(folder, write, suffix, index):
    """A folder of two files with an index."""
    folder.mkdir()
    names = [f"model-0000{k}-of-00002{suffix}" for k in (1, 2)]
    for k, name in enumerate(names):
        write(folder / name, {"vw"[k]: w + k})
    weights = {"v": names[0], "w": names[1]}
    (folder / index).write_text(json.dumps({"weight_map": weights}))
    return names, weights


@pytest.mark.parametrize(
    ("write", "suffix", "index"),
    [
        (write_safetensors, ".safetensors", "model.safetensors.index.json"),
        (write_torch, ".bin", "pytorch_model.bin.index.json"),
    ],
)
def test_shards(tmp_path, write, suffix, index):
    folder = tmp_path / "m"
    names, weights = sharded(folder, write, suffix, index)
    assert sorted(open_checkpoint(folder).arrays) == ["v", "w"]
    for odd in ("../x", "/etc/passwd", f"sub/{names[1]}", "..", ""):
        (folder / index).write_text(json.dumps({"weight_map": {**weights, "w": odd}}))
        with pytest.raises(ValueError, match="is no file beside it"):
            open_checkpoint(folder)
    (folder / index).write_text(json.dumps({"weight_map": {**weights, "x": names[1]}}))
    with pytest.raises(ValueError, match="name different arrays, .*'x'"):
        open_checkpoint(folder)
    (folder / index).write_text(json.dumps({"weight_map": {"v": names[0]}}))
    assert list(open_checkpoint(folder).arrays) == ["v"]  # what no index names is not read
    (folder / index).write_text(json.dumps({"weight_map": weights}))
    (tmp_path / "blobs").mkdir()
    (folder / names[1]).rename(tmp_path / "blobs/0123")
    with pytest.raises(ValueError, match=r"missing|no file beside it"):
        open_checkpoint(folder)
    (folder / names[1]).symlink_to("../blobs/0123")  # as the hub keeps files
    np.testing.assert_array_equal(np.asarray(open_checkpoint(folder).arrays["w"]), w + 1)
    like = open_checkpoint(folder)
    write_checkpoint(tmp_path / "new", like.arrays, like)
    assert not any(path.is_symlink() for path in (tmp_path / "new").iterdir())
    (folder / names[1]).unlink()
    (folder / names[1]).symlink_to("/dev/zero")  # which has no end
    with pytest.raises((ValueError, OSError)):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["m.npz", "m.pt", "m.keras"])
def test_bombs_are_refused_before_they_are_unpacked(tmp_path, name):
    file, _ = written(tmp_path / name)
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    head = (
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8', 'fortran_order': False, 'shape': (50000000,), }"
    )
    bombs = {"m.npz": ("b.npy", head.ljust(127) + b"\n"), "m.pt": ("archive/data/0", b"")}
    inside, begin = bombs.get(name, ("model.weights.h5", b""))
    with zipfile.ZipFile(file, "w") as archive:
        for other, data in entries.items():
            if other != inside:
                archive.writestr(other, data)
        archive.writestr(inside, begin + bytes(4 * 10**8), zipfile.ZIP_DEFLATED, 9)
    assert file.stat().st_size < 10**6
    if name == "m.npz":  # deflate made it, so it is what it claims, and is read when asked for
        assert open_checkpoint(file).arrays["b"].shape == (50_000_000,)
    else:
        with pytest.raises(ValueError, match=f"{name}.* is compressed or encrypted"):
            open_checkpoint(file)
