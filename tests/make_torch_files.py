"""Make the small files in `tests/torch_files` with PyTorch, which the tests read without it.

    python tests/make_torch_files.py

They were made with PyTorch 2.13.0. `tests/test_torch_files.py` says what is in them.
"""

import argparse
from collections import OrderedDict
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "torch_files"
W = torch.arange(12, dtype=torch.float32).reshape(3, 4)
DTYPES = "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"


def state_dict() -> OrderedDict:
    """Every dtype that has a storage of its own, and views of all kinds."""
    state = OrderedDict((name, W.to(getattr(torch, name))) for name in DTYPES.split())
    state |= {"transposed": W.T, "strided": W[1:, ::2], "expanded": torch.ones(1).expand(5)}
    state |= {"scalar": torch.tensor(7.5), "empty": torch.zeros(0, 3)}
    state["tied.a"] = state["tied.b"] = torch.arange(5.0)
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    return state


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    whole = {"state_dict": state_dict(), "epoch": 3, "lr": 0.5}
    torch.save(whole, FOLDER / "zip.pt")
    torch.save(whole, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    later = ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32")
    torch.save({name: W.to(getattr(torch, name)) for name in later}, FOLDER / "later.pt")
    model = torch.nn.Linear(2, 3)
    torch.save(model, FOLDER / "whole_model.pt")
    torch.jit.save(torch.jit.trace(model, torch.ones(1, 2)), FOLDER / "script.pt")
    quantized = torch.quantize_per_tensor(W, 0.1, 0, torch.qint8)
    odd = {"w": W, "quantized": quantized, "sparse": W.to_sparse()}
    torch.save(odd, FOLDER / "odd.pt")
    torch.save(odd, FOLDER / "odd_legacy.pt", _use_new_zipfile_serialization=False)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    training = {"args": argparse.Namespace(lr=0.1), "model_state_dict": model.state_dict()}
    torch.save({**training, "optimizer": optimizer.state_dict()}, FOLDER / "training.pt")


if __name__ == "__main__":
    main()
