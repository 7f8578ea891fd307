"""What the compiled gather is given: native int32, and numbers of 16 and 32 bits; else refused."""

import ctypes

import numpy as np
import pytest

from git_rebasin.symmetry.gather import take_units

gather = pytest.importorskip("git_rebasin.symmetry._gather")

TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)
INDEX = np.array([3, 0, 2], np.int32)
WANT = TABLE[:, INDEX]


def taken(table=TABLE, index=INDEX):
    out = np.full((3, 3), np.nan, np.float32)
    gather.take_columns(table, index, out)
    return out


@pytest.mark.parametrize("format", ["i", "@i", "=i", "=l", "<i", "<l"])
def test_every_native_format_of_four_bytes_is_read(format):
    """`l` has four bytes on Windows, where it is numpy's int32, and in the standard sizes."""
    testbuffer = pytest.importorskip("_testbuffer")
    np.testing.assert_array_equal(
        taken(index=testbuffer.ndarray(INDEX.tolist(), shape=[3], format=format)), WANT
    )


@pytest.mark.parametrize("format", ["l", "q", "I", "=L", "h", ">i", "!i", ">l", "f", "2h", "ii"])
def test_other_indices_are_refused(format):
    testbuffer = pytest.importorskip("_testbuffer")
    items = [tuple([i] * 2) if len(format) == 2 and format[0] in "2i" else i for i in (3, 0, 2)]
    with pytest.raises(TypeError, match="in the byte order of the machine"):
        taken(index=testbuffer.ndarray(items, shape=[3], format=format))


def test_arrays_of_ctypes_are_read_in_the_byte_order_of_the_machine_only():
    own, swapped = ctypes.c_int32, ctypes.c_int32.__ctype_be__
    np.testing.assert_array_equal(taken(index=(own * 3)(3, 0, 2)), WANT)
    with pytest.raises(TypeError):
        taken(index=(swapped * 3)(3, 0, 2))
    with pytest.raises(TypeError):
        taken(table=TABLE.astype(">f4"))


@pytest.mark.parametrize("dtype", ["float16", "uint16", "float32", "uint32"])
def test_numbers_of_16_and_32_bits_are_moved_as_they_are(dtype):
    table = (
        np.random.default_rng(0).integers(0, 2**16, (5, 7)).astype(f"u{np.dtype(dtype).itemsize}")
    )
    out = np.zeros((5, 3), table.dtype)
    gather.take_columns(table.view(dtype), INDEX, out.view(dtype))  # NaNs among them, bit by bit
    np.testing.assert_array_equal(out, table[:, INDEX])


@pytest.mark.parametrize("dtype", ["int8", "float64", "complex64", "bool", ">f2", ">u4"])
def test_other_numbers_are_refused(dtype):
    with pytest.raises(TypeError, match="float32 or float16"):
        gather.take_columns(TABLE.astype(dtype), INDEX, np.zeros((3, 3), dtype))


def test_numbers_of_two_kinds_are_refused():
    for table, out in (("f2", "f4"), ("f4", "f2"), ("f4", "u4"), ("u4", "f4"), ("u2", "f2")):
        with pytest.raises(TypeError, match="float32 or float16"):
            gather.take_columns(TABLE.astype(table), INDEX, np.zeros((3, 3), out))


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
def test_indices_out_of_bounds_are_named(bad):
    with pytest.raises(IndexError, match=f"index {bad} is out of bounds for 4 columns"):
        taken(index=np.array([0, bad, 1], np.int32))


def test_memory_that_is_written_to_is_not_read():
    memory = np.full(24, 1e30, np.float32)  # bits that are no index
    table, out = memory[:12].reshape(3, 4), memory[12:21].reshape(3, 3)
    gather.take_columns(table, INDEX, out)  # side by side
    assert np.all(out == np.float32(1e30))
    for given in [
        (table, INDEX, memory[11:20].reshape(3, 3)),
        (memory[12:].reshape(3, 4), INDEX, out),
        (TABLE, memory[20:23].view(np.int32), out),
    ]:
        before = memory.copy()
        with pytest.raises(ValueError, match="shares memory"):
            gather.take_columns(*given)
        np.testing.assert_array_equal(memory, before)


def test_nothing_is_taken_at_once_however_many_rows_have_nothing():
    rows = np.lib.stride_tricks.as_strided(np.zeros(0, np.float32), (2**50, 0))
    gather.take_columns(rows, np.zeros(0, np.int32), rows)
    gather.take_columns(np.zeros((0, 4), np.float32), INDEX, np.zeros((0, 3), np.float32))
    with pytest.raises(IndexError, match="0 columns"):
        gather.take_columns(np.zeros((3, 0), np.float32), INDEX, np.zeros((3, 3), np.float32))


def test_layouts_that_cannot_be_read_are_refused():
    unaligned = np.frombuffer(bytes(1 + TABLE.nbytes), np.float32, 12, 1).reshape(3, 4)
    read_only = np.zeros((3, 3), np.float32)
    read_only.setflags(write=False)
    for given in [
        (unaligned, INDEX, np.zeros((3, 3), np.float32)),
        (np.asfortranarray(TABLE), INDEX, np.zeros((3, 3), np.float32)),
        (TABLE, INDEX[::-1], np.zeros((3, 3), np.float32)),
        (TABLE, INDEX, read_only),
        (TABLE, INDEX, np.zeros((3, 6), np.float32)[:, ::2]),
        (TABLE, INDEX, np.zeros((3, 4), np.float32)),
        (TABLE, INDEX, np.zeros((2, 3), np.float32)),
    ]:
        with pytest.raises((ValueError, BufferError)):
            gather.take_columns(*given)


def test_unaligned_leaves_are_permuted_all_the_same():
    leaf = np.frombuffer(
        bytes(1) + np.arange(6400, dtype=np.float32).tobytes(), np.float32, 6400, 1
    )
    leaf, p = leaf.reshape(80, 80), np.random.default_rng(0).permutation(80)
    np.testing.assert_array_equal(take_units(leaf, p, 1), leaf[:, p])
