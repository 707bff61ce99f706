"""Floats and bytes that a representation of the trained model needs.

    distilled set   M1 points of d inputs (+ 1 label unless all labels are one constant) and M2 second-layer labels
    raw subset      n points of d inputs and a label
    weights         L rows of d, L biases, L head weights
    H alone         r columns of d (the subspace), second layer not included

Left out everywhere alike: the mean and linear part that preprocessing removes, d + 1 floats.

The paper (Kinoshita et al., arXiv:2603.14830, abstract) states Theta~(r^2 d + L) for the distilled set; the exact counts are ours.
"""

from dataclasses import dataclass


def _require_counts(**counts: int) -> None:
    for name, n in counts.items():
        if n < 0:
            raise ValueError(f"a count cannot be negative: {name}={n}")


@dataclass(frozen=True)
class Memory:
    """A number of floats and their width in bytes."""

    floats: int
    bytes_per_float: int = 8

    @property
    def bytes(self) -> int:
        """Total bytes."""
        return self.floats * self.bytes_per_float


def distilled(m1: int, d: int, m2: int, *, constant_label: bool = True, bytes_per_float: int = 8) -> Memory:
    """M1 d + M2 floats, plus M1 where the points' labels differ. Inputs of the M2 labels are regenerated from a seed."""
    _require_counts(M1=m1, d=d, M2=m2)
    return Memory(m1 * (d if constant_label else d + 1) + m2, bytes_per_float)


def raw_subset(n: int, d: int, *, bytes_per_float: int = 8) -> Memory:
    """n (d + 1) floats."""
    _require_counts(n=n, d=d)
    return Memory(n * (d + 1), bytes_per_float)


def weights(width: int, d: int, *, bytes_per_float: int = 8) -> Memory:
    """L (d + 2) floats: rows, biases, head."""
    _require_counts(L=width, d=d)
    return Memory(width * (d + 2), bytes_per_float)


def subspace(r: int, d: int, *, bytes_per_float: int = 8) -> Memory:
    """r d floats: a basis of S*."""
    _require_counts(r=r, d=d)
    return Memory(r * d, bytes_per_float)


def raw_points_for(floats: int, d: int) -> int:
    """Number of raw points that fit in a budget of floats."""
    _require_counts(floats=floats, d=d)
    return floats // (d + 1)
