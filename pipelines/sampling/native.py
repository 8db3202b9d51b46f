"""The native library's functions on rows of logits, on all cores. Shape suffix: V vocabulary."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.native.library import native_library
from pipelines.sampling.params import ResolvedSamplingParams
from pipelines.sampling.reference import MIN_TEMPERATURE

Row = NDArray[np.float32]

NO_TOKEN = -1
"""The choice from a row without a finite largest logit."""


class Cuts(NamedTuple):
    """The parameters that cut a row. temperature: 0 for the likeliest token. top_k: 0 for all."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float

    @classmethod
    def of(cls, params: ResolvedSamplingParams) -> Self:
        """Takes them from the parameters of a request."""
        temperature = max(params.temperature, MIN_TEMPERATURE) if params.temperature > 0.0 else 0.0
        return cls(temperature, min(params.top_k, 2**31), params.top_p, params.min_p)


class LogSoftmax(NamedTuple):
    """The log-softmax of a row, by which its logits become log probabilities.

    log_total: the logarithm of the sum of e ** logit. top_ids: likeliest first.
    """

    log_total: float
    top_ids: list[int]


def choose_tokens(rows: Sequence[Row], cuts: Sequence[Cuts], uniforms: Sequence[float]) -> list[int]:
    """Chooses a token from each row [V] by its random number in [0, 1); NO_TOKEN where there is none."""
    if not rows:
        return []
    rows = [np.ascontiguousarray(row, np.float32) for row in rows]
    tokens = np.empty(len(rows), np.int64)
    temperatures, top_k, top_p, min_p = zip(*cuts, strict=True)
    arrays: list[NDArray[Any]] = [
        np.array(temperatures, np.float32),
        np.array(top_k, np.int64),
        np.array(top_p, np.float64),
        np.array(min_p, np.float32),
        np.array(uniforms, np.float64),
    ]
    library().sample_rows(_address(tokens), *_rows(rows), *[_address(array) for array in arrays])
    chosen: list[int] = tokens.tolist()
    return chosen


def log_softmax(rows: Sequence[Row], num_top: Sequence[int]) -> list[LogSoftmax | FloatingPointError]:
    """Computes each row's [V] log-softmax, with its likeliest ids, lowest first among equals.

    A row without a finite largest logit has an error instead.
    """
    if not rows:
        return []
    rows = [np.ascontiguousarray(row, np.float32) for row in rows]
    counts = np.minimum(np.array(num_top, np.int64), len(rows[0]))
    peaks, sums = np.empty(len(rows), np.float32), np.empty(len(rows), np.float64)
    top = np.empty((len(rows), counts.max()), np.int64)
    outputs = _address(peaks), _address(sums), _address(top)
    library().log_softmax_rows(*outputs, *_rows(rows), _address(counts), ctypes.c_ssize_t(top.shape[1]))
    return [
        LogSoftmax(peak + math.log(total), ids[:count])
        if math.isfinite(peak)
        else FloatingPointError(f"the model answered with a logit of {peak}: it has no log probabilities")
        for peak, total, ids, count in zip(*(array.tolist() for array in (peaks, sums, top, counts)), strict=True)
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """Loads the library; the first call on a machine compiles it.

    Raises:
        InputError: It can't be compiled.
    """
    return native_library("sampling")


def _rows(rows: Sequence[Row]) -> tuple[ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t]:
    """The arguments that give contiguous rows: their addresses, their number, their length."""
    addresses = np.array([row.ctypes.data for row in rows], np.int64)
    return _address(addresses), ctypes.c_ssize_t(len(rows)), ctypes.c_ssize_t(len(rows[0]))


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    """A C-contiguous array as an argument, which keeps it alive."""
    return array.ctypes.data_as(ctypes.c_void_p)
