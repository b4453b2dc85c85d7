"""Bitwise reproducible linear algebra: no result depends on threads, on BLAS or on the processor.

Factors are split into whole numbers so small that every sum of products is exact, in any order (Ozaki et al. 2012,
Numer. Algorithms 59, section 3). Everything else adds in a fixed order, by elementwise operations, whose rounding
IEEE 754 defines.
"""

from __future__ import annotations

import math

import numpy as np

EXACT_BITS = 53  # of a double
EPSILON = 2.0**-52
MAX_SWEEPS = 60  # of the QL iteration for one eigenvalue; three are usual


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left [M, K] · right [K, N] → [M, N] float64, to 2⁻⁴⁰ of the largest factors of each row and column.

    K is at most 8,192. A row of the result does not depend on the other rows.
    """
    bits = (EXACT_BITS - math.ceil(math.log2(max(left.shape[1], 2)))) // 2
    (high, low), rows = _split(left, bits, axis=1)
    (high_right, low_right), columns = _split(right, bits, axis=0)
    found = high @ high_right + np.ldexp(high @ low_right + low @ high_right, -bits)
    return np.ldexp(found, rows + columns - 2 * bits) + 0.0  # no negative zeros


def _split(values: np.ndarray, bits: int, *, axis: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Split into whole numbers high ≤ 2^bits and low ≤ 2^(bits − 1); the exponent is shared along the axis.

    values ≈ 2^(exponent − bits) · (high + 2^−bits · low)
    """
    _, exponent = np.frexp(np.abs(values).max(axis=axis, keepdims=True, initial=0.0))
    scaled = np.ldexp(values.astype(np.float64), bits - exponent)
    high = np.rint(scaled)
    return (high, np.rint(np.ldexp(scaled - high, bits))), exponent


def orthonormal(columns: np.ndarray) -> np.ndarray:
    """Columns [D, N], made orthonormal one after the other: the Q of a QR whose R has a positive diagonal."""
    basis = columns.astype(np.float64)
    for number in range(basis.shape[1]):
        column = basis[:, number].copy()
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            column -= (basis[:, :number] * (basis[:, :number] * column[:, None]).sum(axis=0)).sum(axis=1)
        basis[:, number] = column / math.sqrt(math.fsum(column * column))
    return basis


def symmetric_eigen(matrix: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues [wanted] of a symmetric matrix [D, D], falling, and their eigenvectors [wanted, D].

    Householder's reduction to a tridiagonal matrix, then QL with implicit shifts: EISPACK's tred2 and tql2. Elements
    below the matrix's rounding error are treated as zero.
    """
    _, exponent = np.frexp(np.abs(matrix).max(initial=0.0))
    rest = np.ldexp(matrix.astype(np.float64), -int(exponent))
    size = len(rest)
    small = EPSILON * math.sqrt(math.fsum((rest * rest).ravel()))
    beside = [0.0] * size
    reflectors: list[np.ndarray | None] = []
    for number in range(size - 1):
        column = rest[number + 1 :, number]
        norm = math.sqrt(math.fsum(column * column))
        if norm <= small:
            reflectors.append(None)
            continue
        beside[number] = -math.copysign(norm, column[0])
        vector = column.copy()
        vector[0] -= beside[number]
        vector /= math.sqrt(math.fsum(vector * vector))
        block = rest[number + 1 :, number + 1 :]
        image = (block * vector[:, None]).sum(axis=0)
        image -= vector * math.fsum(vector * image)
        outer = vector[:, None] * image
        block -= 2 * (outer + outer.T)
        reflectors.append(vector)
    values, vectors = _tridiagonal_eigen(rest.diagonal().tolist(), beside, small)
    order = np.argsort(-values, kind="stable")[:wanted]
    columns = np.ascontiguousarray(vectors[order].T)
    for number in reversed(range(size - 1)):
        if (reflector := reflectors[number]) is not None:
            below = columns[number + 1 :]
            below -= 2 * reflector[:, None] * (reflector[:, None] * below).sum(axis=0)
    return np.ldexp(values[order], int(exponent)), columns.T


def _tridiagonal_eigen(diagonal: list[float], beside: list[float], small: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [D] and eigenvectors [D, D], one per row. beside: [D], the elements next to the diagonal."""
    size = len(diagonal)
    vectors = np.eye(size)
    for first in range(size):
        for _ in range(MAX_SWEEPS):
            last = next((k for k in range(first, size - 1) if abs(beside[k]) <= small), size - 1)
            if last == first:
                break
            ratio = (diagonal[first + 1] - diagonal[first]) / (2 * beside[first])
            root = math.copysign(math.sqrt(ratio * ratio + 1), ratio)
            shifted = diagonal[last] - diagonal[first] + beside[first] / (ratio + root)
            sine = cosine = 1.0
            carried = 0.0
            for k in range(last - 1, first - 1, -1):
                turned, straight = sine * beside[k], cosine * beside[k]
                length = math.sqrt(turned * turned + shifted * shifted)
                beside[k + 1] = length
                if length == 0.0:  # underflow
                    diagonal[k + 1] -= carried
                    beside[last] = 0.0
                    break
                sine, cosine = turned / length, shifted / length
                shifted = diagonal[k + 1] - carried
                length = (diagonal[k] - shifted) * sine + 2 * cosine * straight
                carried = sine * length
                diagonal[k + 1] = shifted + carried
                shifted = cosine * length - straight
                lower, upper = vectors[k], vectors[k + 1]
                turned_upper = sine * lower + cosine * upper
                vectors[k] = cosine * lower - sine * upper
                vectors[k + 1] = turned_upper
            else:
                diagonal[first] -= carried
                beside[first], beside[last] = shifted, 0.0
        else:
            raise ArithmeticError(f"no eigenvalue was found in {MAX_SWEEPS} sweeps")
    return np.array(diagonal), vectors
