"""Write the digits that the package ships (needs scikit-learn): `python tools/make_digits.py`.

Reads scikit-learn's `load_digits` and writes `git_rebasin/zoo/data_files/digits.safetensors`, and
beside it `digits.md`, which gives the source, the licence, the split and checksums.
"""

import hashlib
from pathlib import Path

import numpy as np

from git_rebasin.checkpoints.io import save_params

OUT = Path(__file__).resolve().parents[1] / "git_rebasin/zoo/data_files"
NUM_TEST = 360
README = """# Digits

1,797 real handwritten digits, 8 × 8 pixels, gray, in 10 classes.

- **Source.** The test part of *Optical Recognition of Handwritten Digits* by E. Alpaydin and
  C. Kaynak (UCI Machine Learning Repository, 1998, doi 10.24432/C50P49), as scikit-learn {sklearn}
  ships it (`sklearn.datasets.load_digits`).
- **Licence.** The data set is published under the Creative Commons Attribution 4.0 International
  licence (CC BY 4.0).
- **Changes made.** The pixels count ink from 0 to 16; they are stored here as
  `round(255 * v / 16)`, from 0 to 255. `round(16 * x / 255)` gives the original values.
- **Split.** Original order; the last {test} are the test split, the {train} before them are for
  training; each class has {fewest} to {most} of the {test}. Neighbours in the original order are
  often by one writer, so cutting the list once keeps most writers on one side. It is the harder
  split: the nearest training digit misnames 4.4 % of these test digits, against 1.4 % of {test}
  digits drawn at random.
- **Layout.** `digits.safetensors` holds `train/images`, `train/labels`, `test/images` and
  `test/labels`, all uint8; images are (number, row, column, channel).
- **Made by** `tools/make_digits.py`.

Training pixels, scaled to [0, 1]: mean {mean:.4f}, standard deviation {std:.4f}.

| split | digits | SHA-256 of pixels, then labels |
|---|---|---|
{rows}
"""


def write(images: np.ndarray, labels: np.ndarray, sklearn: str) -> None:
    """Write the file and its description; `sklearn` is the version that the digits come from."""
    cut = len(images) - NUM_TEST
    parts = {"train": slice(0, cut), "test": slice(cut, None)}
    splits = {s: {"images": images[part], "labels": labels[part]} for s, part in parts.items()}
    save_params(OUT / "digits.safetensors", splits)
    rows = [
        f"| {name} | {len(split['labels']):,} | "
        f"`{hashlib.sha256(split['images'].tobytes() + split['labels'].tobytes()).hexdigest()}` |"
        for name, split in splits.items()
    ]
    train, counts = images[:cut] / 255, np.bincount(labels[cut:])
    text = README.format(
        sklearn=sklearn,
        test=NUM_TEST,
        train=f"{cut:,}",
        fewest=counts.min(),
        most=counts.max(),
        mean=train.mean(),
        std=train.std(),
        rows="\n".join(rows),
    )
    (OUT / "digits.md").write_text(text, encoding="utf-8")


def main() -> None:
    import sklearn
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)
    assert np.array_equal(np.round(images * 16.0 / 255), digits.images)
    write(images[..., None], digits.target.astype(np.uint8), sklearn.__version__)


if __name__ == "__main__":
    main()
