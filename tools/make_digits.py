"""Write the digits that the package ships (needs scikit-learn): `python tools/make_digits.py`.

Reads scikit-learn's `load_digits` and writes, in the layout that data sets have on the hub,
`git_rebasin/zoo/data_files/digits/digits/{train,test}-00000-of-00001.parquet`, with a README.md
that gives the source, the licence, the split and checksums.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import sklearn
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from sklearn.datasets import load_digits

OUT = Path(__file__).resolve().parents[1] / "git_rebasin/zoo/data_files/digits"
NUM_TEST = 360
README = """# Digits

1,797 real handwritten digits, 8 × 8 pixels, gray, in 10 classes.

- **Source.** The test part of *Optical Recognition of Handwritten Digits* by E. Alpaydin and
  C. Kaynak (UCI Machine Learning Repository, 1998, doi 10.24432/C50P49), as scikit-learn {sklearn}
  ships it (`sklearn.datasets.load_digits`).
- **Licence.** The data set is published under the Creative Commons Attribution 4.0 International
  licence (CC BY 4.0).
- **Changes made.** The pixels count ink from 0 to 16; they are stored here as
  `round(255 * v / 16)`, from 0 to 255, in PNG. `round(16 * x / 255)` gives the original values.
- **Split.** Original order; the last {test} are the test split, the {train} before them are for
  training; each class has {fewest} to {most} of the {test}. Neighbours in the original order are
  often by one writer, so cutting the list once keeps most writers on one side. It is the harder
  split: the nearest training digit misnames 4.4 % of these test digits, against 1.4 % of {test}
  digits drawn at random.
- **Layout.** That of data sets on the hub: `digits/{{train,test}}-00000-of-00001.parquet`, columns
  `image` (PNG bytes) and `label`.
- **Made by** `tools/make_digits.py`.

Training pixels, scaled to [0, 1]: mean {mean:.4f}, standard deviation {std:.4f}.

| split | digits | SHA-256 of pixels, then labels (uint8) | SHA-256 of the file |
|---|---|---|---|
{rows}
"""


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    classes = ClassLabel(names=[str(i) for i in range(10)])
    encoded = {"bytes": Value("binary"), "path": Value("string")}
    records = [{"bytes": png(x), "path": None} for x in images]
    dataset = Dataset.from_dict(
        {"image": records, "label": labels.tolist()},
        features=Features({"image": encoded, "label": classes}),
    )
    dataset.cast(Features({"image": Image(), "label": classes})).to_parquet(file)


def sha256(data: bytes) -> str:
    return f"`{hashlib.sha256(data).hexdigest()}`"


def main() -> None:
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    assert np.array_equal(np.round(images * 16.0 / 255), digits.images)
    cut, rows = len(images) - NUM_TEST, []
    (OUT / "digits").mkdir(parents=True, exist_ok=True)
    for split, part in (("train", slice(0, cut)), ("test", slice(cut, None))):
        file = OUT / "digits" / f"{split}-00000-of-00001.parquet"
        write(file, images[part], labels[part])
        sums = sha256(images[part].tobytes() + labels[part].tobytes()), sha256(file.read_bytes())
        rows.append(f"| {split} | {len(labels[part]):,} | {sums[0]} | {sums[1]} |")
    train, counts = images[:cut] / 255, np.bincount(labels[cut:])
    text = README.format(
        sklearn=sklearn.__version__,
        test=NUM_TEST,
        train=f"{cut:,}",
        fewest=counts.min(),
        most=counts.max(),
        mean=train.mean(),
        std=train.std(),
        rows="\n".join(rows),
    )
    (OUT / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
