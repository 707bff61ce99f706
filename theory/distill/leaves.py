"""Leaves: a point of a product of Euclidean spaces, kept as a tuple of arrays.

Parameters theta, distilled data S and their cotangents are all Leaves. The arrays of one tuple share a namespace and a device.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace

Array: TypeAlias = Any
Leaves: TypeAlias = tuple[Array, ...]


def zip_map(f: Callable[..., Array], *leaves: Leaves) -> Leaves:
    """f applied leaf by leaf; the tuples must have equal length."""
    return tuple(f(*xs) for xs in zip(*leaves, strict=True))


def zeros_like(x: Leaves) -> Leaves:
    """The origin of the space that x lies in."""
    return zip_map(lambda a: array_namespace(a).zeros_like(a), x)


def add(x: Leaves, y: Leaves) -> Leaves:
    """x + y."""
    return zip_map(lambda a, b: a + b, x, y)


def scale(alpha: Any, x: Leaves) -> Leaves:
    """alpha * x for a scalar alpha."""
    return zip_map(lambda a: alpha * a, x)


def axpy(alpha: Any, x: Leaves, y: Leaves) -> Leaves:
    """alpha * x + y for a scalar alpha."""
    return zip_map(lambda a, b: alpha * a + b, x, y)


def dot(x: Leaves, y: Leaves) -> Array:
    """Euclidean inner product <x, y>, a 0-d array."""
    parts = [array_namespace(a, b).sum(a * b) for a, b in zip(x, y, strict=True)]
    return sum(parts[1:], start=parts[0])


@np.errstate(over="ignore")
def norm(x: Leaves) -> float:
    """Euclidean norm ||x||_2 over all leaves; inf where its square overflows, which is how runs notice that they diverge."""
    return float(dot(x, x)) ** 0.5


def size(x: Leaves) -> int:
    """Number of stored floats in x."""
    total = 0
    for a in x:
        count = 1
        for n in a.shape:
            count *= n
        total += count
    return total


def flatten(x: Leaves) -> Array:
    """All numbers of x as one array (p,)."""
    return array_namespace(*x).concat([array_namespace(a).reshape(a, (-1,)) for a in x])


def unflatten(flat: Array, like: Leaves) -> Leaves:
    """The numbers of `flat` in the shapes of `like`."""
    out, first = [], 0
    for a in like:
        last = first + size((a,))
        out.append(array_namespace(flat).reshape(flat[first:last], a.shape))
        first = last
    return tuple(out)
