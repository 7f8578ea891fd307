"""Files that Keras wrote (`make_keras_files.py`) are read without it; where it is installed, it
reads what is written here."""

import os
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from git_rebasin.checkpoints.opened import open_checkpoint
from git_rebasin.checkpoints.written import write_checkpoint

FOLDER = Path(__file__).parent / "keras_files"
SHAPES = {
    "layers/dense/vars/0": (4, 3),
    "layers/dense/vars/1": (3,),
    **{f"layers/batch_normalization/vars/{k}": (3,) for k in range(4)},
    "layers/dense_1/vars/0": (3, 2),
    "layers/dense_1/vars/1": (2,),
}
FIRST = dict(zip(SHAPES, (0, 1, 2, 3, 4, 5, 6, 7), strict=True))  # entry of each variable
OLD = {
    **{f"first/sequential/first/{name}": k for k, name in enumerate(("kernel", "bias"))},
    **{
        f"norm/sequential/norm/{name}": k
        for k, name in enumerate(("gamma", "beta", "moving_mean", "moving_variance"), 2)
    },
    **{f"last/sequential/last/{name}": k for k, name in enumerate(("kernel", "bias"), 6)},
}


def expected(k: int) -> np.ndarray:
    """The k-th variable: its first entry is its number, the others follow in quarters."""
    shape = list(SHAPES.values())[k]
    values = k + np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 4
    return values.astype(ml_dtypes.bfloat16) if k > 5 else values


def check(found, names) -> None:
    assert found.arrays.keys() == names.keys()
    for name, k in names.items():
        np.testing.assert_array_equal(np.asarray(found.arrays[name]), expected(k), strict=True)


def test_a_file_of_keras_3():
    found = open_checkpoint(FOLDER / "trained.keras")
    assert (found.format, found.within) == ("keras", ())
    assert found.beside == {"optimizer": "2 arrays"}
    check(found, FIRST)


def test_a_file_of_keras_2():
    found = open_checkpoint(FOLDER / "trained.h5")
    assert (found.format, found.within) == ("hdf5", ("model_weights",))
    assert found.beside == {"optimizer_weights": "2 arrays"}
    check(found, OLD)


def test_the_weights_of_a_file(tmp_path):
    with zipfile.ZipFile(FOLDER / "trained.keras") as archive:
        file = Path(archive.extract("model.weights.h5", tmp_path))
    found = open_checkpoint(file)
    assert (found.format, found.within) == ("hdf5", ())
    check(found, FIRST)
    write_checkpoint(tmp_path / "again.weights.h5", found.arrays, found)
    again = open_checkpoint(tmp_path / "again.weights.h5")
    check(again, FIRST)
    assert not again.beside


def test_keras_reads_what_is_written_here(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    like = open_checkpoint(FOLDER / "trained.keras")
    new = {key: np.asarray(x) * 2 for key, x in like.arrays.items()}
    file = write_checkpoint(tmp_path / "new.keras", new, like)
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        model = keras.saving.load_model(file)
    for key, x in zip(FIRST, model.weights, strict=True):
        assert (np.asarray(x.value).astype("f4") == new[key].astype("f4")).all()
