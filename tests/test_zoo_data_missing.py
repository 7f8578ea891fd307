"""Data sets that are absent, damaged or in odd places, with no network and no home folder."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from git_rebasin.zoo import data, hub

NOWHERE = "http://127.0.0.1:9"  # nothing listens there


def run(code, **environment):
    "Run code in a new process that has no home folder and no network"
    clean = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper() and "HF_" not in k}
    clean.pop("GIT_REBASIN_DATA", None)
    clean |= {"HOME": "/proc/nowhere", "HF_ENDPOINT": NOWHERE, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", f"from git_rebasin.zoo.data import *\n{code}"]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True)


def raised(code, **environment):
    "The error that ends the code, and nothing else is printed"
    report = "try:\n    {}\nexcept Exception as e:\n    print(type(e).__name__, e)"
    done = run(report.format(code), **environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def test_absent_without_a_network():
    start = time.monotonic()
    text = raised("fashion_mnist()")
    assert time.monotonic() - start < 60
    assert text.startswith("DataNotFoundError the train split of fashion_mnist was not found")
    assert "GIT_REBASIN_DATA is not set" in text
    assert "the hub's zalando-datasets/fashion_mnist: the network or the hub cannot be" in text
    assert "set GIT_REBASIN_DATA to a folder that holds fashion_mnist/" in text


def test_the_folder_lacks_it(tmp_path):
    (tmp_path / "cifar100/cifar100").mkdir(parents=True)
    text = raised("cifar100('test')", GIT_REBASIN_DATA=str(tmp_path))
    assert f"GIT_REBASIN_DATA='{tmp_path}' has no test*.parquet anywhere below cifar100/" in text
    assert "the hub's uoft-cs/cifar100: " in text
    text = raised("mnist()", GIT_REBASIN_DATA=str(tmp_path))
    assert "holds no folder mnist/" in text and "the hub's ylecun/mnist: " in text
    text = raised("mnist()", GIT_REBASIN_DATA=str(tmp_path / "typo"))
    assert "is not a folder that can be read" in text


def test_shipped_digits_are_those_that_their_description_gives():
    text = (Path(data.__file__).parent / "data_files/digits.md").read_text(encoding="utf-8")
    for name in ("train", "test"):
        split = data.digits(name)
        content = split.images.tobytes() + split.labels.astype(np.uint8).tobytes()
        assert f"| {name} | {len(split):,} | `{hashlib.sha256(content).hexdigest()}` |" in text


def test_shipped_digits_need_neither_home_nor_network():
    done = run("print(digits('test'))")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "digits, shipped with the package" in done.stdout


def test_a_given_path_is_the_only_place(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "from_hub", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(data.DataNotFoundError, match="holds no folder digits/"):
        data.digits(path=tmp_path)
    shipped = data.digits("test")
    names = list(shipped.classes)
    write(tmp_path / "digits", "image", "label", shipped.images[..., 0], shipped.labels, names)
    before = settings()
    split = data.digits("test", path=tmp_path)
    assert settings() == before
    assert np.array_equal(split.images, shipped.images) and split.classes == shipped.classes
    assert np.array_equal(split.labels, shipped.labels) and split.source == "digits, a local folder"
    monkeypatch.setenv("GIT_REBASIN_DATA", str(tmp_path))
    assert data.digits("test").source == "digits, a local folder"
    assert data.digits("train").source == "digits, shipped with the package"


def settings():
    "What the packages that read data sets have for all who use them"
    bars, level = datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    return bars, level, datasets.config.HF_HUB_OFFLINE


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path / "digits", "image", "label", np.zeros((4, 8, 8), np.uint8), [0, 1, 2, 3])
    file = tmp_path / "digits/test-00000-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"cannot read {file.parent}.*fetch digits again"):
        data.digits("test", path=tmp_path)


def write(folder, column, label, images, labels, names=("a", "b", "c", "d")):
    "Parquet files in the hub's layout, in two parts"
    folder.mkdir(parents=True)
    classes = datasets.ClassLabel(names=list(names))
    features = datasets.Features({column: datasets.Image(), label: classes})
    columns = {column: [Image.fromarray(x) for x in images], label: labels}
    table = datasets.Dataset.from_dict(columns, features=features)
    for i in range(2):
        table.shard(2, i, contiguous=True).to_parquet(folder / f"test-0000{i}-of-00002.parquet")


def test_colours_and_parts(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    labels = [3, 0, 1, 2, 2, 1, 3]
    folder = tmp_path / "cifar100/cifar100"
    write(folder, "img", "fine_label", images, labels)
    split = data.cifar100("test", path=tmp_path)
    assert np.array_equal(split.images, images) and split.labels.tolist() == labels
    assert split.classes == ("a", "b", "c", "d") and len(split.mean) == len(split.std) == 3
    with pytest.raises(data.DataNotFoundError, match=r"has no train\*.parquet"):
        data.cifar100("train", path=tmp_path)
    with pytest.raises(ValueError, match="columns image and label wanted, but found"):
        shutil.move(tmp_path / "cifar100", tmp_path / "mnist")
        data.mnist("test", path=tmp_path)


def test_a_part_of_a_split_is_not_the_split(tmp_path):
    images, folder = np.zeros((6, 28, 28), np.uint8), tmp_path / "mnist/mnist"
    write(folder, "image", "label", images, [0, 1, 2, 0, 1, 2], ["a", "b", "c"])
    assert len(data.mnist("test", path=tmp_path)) == 6
    one, two = (folder / f"test-0000{i}-of-00002.parquet" for i in range(2))
    away = two.rename(tmp_path / "away")
    with pytest.raises(ValueError, match=rf"of the 2 files .*{one}, .* \[1\] are missing: fetch"):
        data.mnist("test", path=tmp_path)
    away.rename(two)
    shutil.copy(one, tmp_path / "mnist/test.parquet")
    with pytest.raises(ValueError, match="the test split is there more than once, in .*mnist/test"):
        data.find_split("mnist", "test", path=tmp_path)


def test_columns_of_another_kind_are_refused(tmp_path):
    folder = tmp_path / "mnist/mnist"
    folder.mkdir(parents=True)
    pictures = [Image.fromarray(np.zeros((28, 28), np.uint8))] * 3
    for label, kind, words in (
        ([0.5, 1, 2], datasets.Value("float64"), "integers wanted in column label, but found"),
        ([0, 1, None], datasets.Value("int64"), "label of example 2 is None"),
        ([0, -1, 1], datasets.ClassLabel(names=["a", "b"]), "label of example 1 is -1"),
    ):
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        table = datasets.Dataset.from_dict({"image": pictures, "label": label}, features=features)
        table.to_parquet(folder / "train.parquet")
        with pytest.raises(ValueError, match=rf"cannot read {folder} .*{words}.*: fetch mnist aga"):
            data.mnist(path=tmp_path)


def test_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.delenv("GIT_REBASIN_DATA", raising=False)
    images = np.random.default_rng(1).integers(0, 256, (4, 28, 28), np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": [Image.fromarray(x) for x in images], "label": [1, 0, 2, 1]}
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_dict(columns, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    split = data.mnist("test")
    assert asked == [("ylecun/mnist", "test")] and split.source == "ylecun/mnist, the hub"
    assert np.array_equal(split.images[..., 0], images) and split.classes == ("0", "1", "2")


@pytest.mark.skipif("GIT_REBASIN_DATA" not in os.environ, reason="needs local data sets")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_constants_are_those_of_the_training_pixels(name):
    root = Path(os.environ["GIT_REBASIN_DATA"])
    if not (root / name).is_dir():
        pytest.skip(f"GIT_REBASIN_DATA has no {name}")
    split = data.load(name, "train")
    pixels = split.images / np.float32(255)
    np.testing.assert_allclose(pixels.mean((0, 1, 2), dtype=np.float64), split.mean, atol=1e-4)
    np.testing.assert_allclose(pixels.std((0, 1, 2), dtype=np.float64), split.std, atol=1e-4)
    assert len(split.classes) == 10 and len(split) in (50_000, 60_000)
