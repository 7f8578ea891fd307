"""Files that PyTorch wrote (`make_torch_files.py`) are read without it; where it is installed, it
reads what is written here."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from git_rebasin.checkpoints.opened import open_checkpoint
from git_rebasin.checkpoints.pickles import NotRead
from git_rebasin.checkpoints.torch_files import read_torch
from git_rebasin.checkpoints.torch_writing import write_torch

FOLDER = Path(__file__).parent / "torch_files"
W = np.arange(12, dtype=np.float32).reshape(3, 4)
DTYPES = "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
EXPECTED = {name: W.astype(getattr(ml_dtypes, name, name)) for name in DTYPES.split()}
EXPECTED |= {"transposed": W.T, "strided": W[1:, ::2], "expanded": np.ones(5, np.float32)}
EXPECTED |= {"scalar": np.array(7.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
EXPECTED |= dict.fromkeys(["tied.a", "tied.b"], np.arange(5, dtype=np.float32))
EXPECTED |= {"parameter": np.ones(2, np.float32)}


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt"])
def test_tensors_of_all_kinds(name):
    found = open_checkpoint(FOLDER / name)
    assert (found.format, found.within) == ("torch", ("state_dict",))
    assert found.beside == {"epoch": "3", "lr": "0.5"}
    assert list(found.arrays) == list(EXPECTED)
    for key, expected in EXPECTED.items():
        np.testing.assert_array_equal(np.asarray(found.arrays[key]), expected, strict=True)
    assert found.ties == {"tied.b": "tied.a"}


def test_dtypes_without_a_storage_of_their_own():
    found = open_checkpoint(FOLDER / "later.pt").arrays
    for name in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32"):
        expected = W.astype(getattr(ml_dtypes, name, name))
        np.testing.assert_array_equal(np.asarray(found[name]), expected, strict=True)


@pytest.mark.parametrize("name", ["odd.pt", "odd_legacy.pt"])
def test_what_numpy_lacks_is_marked(name):
    found = read_torch(FOLDER / name)
    np.testing.assert_array_equal(np.asarray(found["w"]), W)
    assert found["quantized"] == NotRead("torch.qtensor")
    assert found["sparse"] == NotRead("torch.sparse_tensor")


def test_a_state_of_training():
    found = open_checkpoint(FOLDER / "training.pt")
    assert found.within == ("model_state_dict",) and list(found.arrays) == ["weight", "bias"]
    assert found.beside == {"args": "argparse.Namespace", "optimizer": "6 arrays"}


@pytest.mark.parametrize(
    ("name", "words"),
    [("whole_model.pt", "torch.nn.modules.linear.Linear"), ("script.pt", "a TorchScript program")],
)
def test_what_would_have_to_run_code_is_refused(name, words):
    with pytest.raises(ValueError, match=f"{name} was not read: it is .*{words}.*state_dict"):
        open_checkpoint(FOLDER / name)


def test_pytorch_reads_what_is_written_here(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = {name: x for name, x in EXPECTED.items() if name != "transposed"}
    arrays |= {
        name: W.astype(getattr(ml_dtypes, name)) for name in ("float8_e4m3fn", "float8_e5m2")
    }
    arrays["tied.b"] = arrays["tied.a"]
    file = write_torch(tmp_path / "m.pt", {"state_dict": arrays})
    for mmap in (False, True):
        found = torch.load(file, weights_only=True, mmap=mmap)["state_dict"]
        assert list(found) == list(arrays)
        for name, expected in arrays.items():
            assert str(found[name].dtype) == f"torch.{expected.dtype.name}"
            wide = "complex128" if expected.dtype.kind == "c" else "float64"
            values = found[name].to(getattr(torch, wide)).numpy()
            np.testing.assert_array_equal(values, expected.astype(wide))
        assert found["tied.a"].data_ptr() == found["tied.b"].data_ptr()
