"""Make the small files in `tests/keras_files` with Keras, which the tests read without it.

    KERAS_BACKEND=jax python tests/make_keras_files.py

They were made with Keras 3.15.1 and h5py 3.16.0. `tests/test_keras_files.py` says what is in them.
"""

from pathlib import Path

import keras
import numpy as np

FOLDER = Path(__file__).parent / "keras_files"


def numbered(model: keras.Model) -> keras.Model:
    """A model whose k-th variable has the entries k, k + 1/4, …"""
    for k, x in enumerate(model.variables):
        x.assign(np.reshape(k + np.arange(np.prod(x.shape)) / 4, x.shape).astype("float32"))
    return model


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    dense = keras.layers.Dense
    layers = [dense(3, name="first"), keras.layers.BatchNormalization(name="norm")]
    mlp = keras.Sequential([keras.Input((4,)), *layers, dense(2, name="last", dtype="bfloat16")])
    mlp.compile("sgd", "mse")
    mlp.fit(np.ones((2, 4)), np.ones((2, 2)), verbose=0)
    numbered(mlp)
    mlp.save(FOLDER / "trained.keras")
    mlp.save(FOLDER / "trained.h5")


if __name__ == "__main__":
    main()
