"""Say how large the rows of an Arrow batch become as Python values, while repeated values lie there once."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import numpy as np

Sizes = np.ndarray[Any, np.dtype[np.int64]]
_VALUE_BYTES = 64
"""What a value costs beside its own bytes; so a row of nothing but nulls is not for nothing."""


def row_bytes(batch: Any) -> Sizes:
    """Return the bytes of each row of a batch, int64 of shape [rows].

    Raises:
        ValueError: a column is of a type that no data set has.
    """
    return _added(np.zeros(batch.num_rows, np.int64), batch.columns)


def _added(sizes: Sizes, parts: Iterable[Any]) -> Sizes:
    for part in parts:
        sizes += _sizes(part)
    return sizes


def _sizes(array: Any) -> Sizes:
    """Return the bytes of each element of an array with all that lies in it."""
    arrow: Any = importlib.import_module("pyarrow")
    kinds, kind = arrow.types, array.type
    if kinds.is_dictionary(kind):
        words = np.append(_sizes(array.dictionary), _VALUE_BYTES)
        nothing = len(words) - 1
        return words[array.indices.fill_null(nothing).to_numpy(zero_copy_only=False)]
    if kinds.is_struct(kind):
        return _added(_nothing(len(array)), array.flatten())
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_map(kind):
        parts = (array.keys, array.items) if kinds.is_map(kind) else (array.values,)
        offsets = array.offsets.to_numpy().astype(np.int64)
        sizes = _nothing(len(array))
        for part in parts:
            sizes += _between(_sizes(part), offsets)
        return sizes
    if kinds.is_fixed_size_list(kind):
        first = array.offset * kind.list_size
        offsets = first + kind.list_size * np.arange(len(array) + 1, dtype=np.int64)
        return _VALUE_BYTES + _between(_sizes(array.values), offsets)
    if kinds.is_primitive(kind) or kinds.is_null(kind) or kinds.is_decimal(kind):
        return _nothing(len(array))
    if kinds.is_fixed_size_binary(kind):
        return np.full(len(array), _VALUE_BYTES + kind.byte_width, np.int64)
    return _text_sizes(array)


def _nothing(count: int) -> Sizes:
    """Return the bytes of so many values that have none of their own."""
    return np.full(count, _VALUE_BYTES, np.int64)


def _text_sizes(array: Any) -> Sizes:
    arrow: Any = importlib.import_module("pyarrow")
    compute: Any = importlib.import_module("pyarrow.compute")
    kinds, kind = arrow.types, array.type
    if kinds.is_string_view(kind) or kinds.is_binary_view(kind):
        array = array.cast(arrow.large_binary())
    elif not any(is_one(kind) for is_one in (
        kinds.is_string, kinds.is_binary, kinds.is_large_string, kinds.is_large_binary
    )):  # fmt: skip
        raise ValueError(f"a column of type {kind} is not read")
    lengths = compute.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return _VALUE_BYTES + lengths.astype(np.int64)


def _between(sizes: Sizes, offsets: Sizes) -> Sizes:
    """Return the sum of the sizes from each offset to the next."""
    sums = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
    return sums[offsets[1:]] - sums[offsets[:-1]]
