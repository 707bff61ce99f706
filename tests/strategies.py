"""Hypothesis strategies for the objects of the theory: links, teachers, two-layer parameters, distilled sets, optimisers, windows.

Shapes and kinds are drawn by Hypothesis; the numbers inside come from a NumPy generator whose seed it draws, so that they are
generic (no coincidences that a finite difference would trip over).
"""

import itertools
import math

import numpy as np
from array_api_compat import array_namespace
from array_api_compat import device as device_of
from hypothesis import assume
from hypothesis import strategies as st

from theory.distill.inner_optim import SGD, Adam, InnerOptimiser, Momentum
from theory.distill.leaves import Leaves, zip_map
from theory.distill.truncation import FixedWindow, FullWindow, RandomWindow, WindowPolicy
from theory.multi_index import LINKS, HermiteLink, MultiIndexModel, draw_index, make_link

KINK_MARGIN = 1e-3

seeds = st.integers(0, 2**32 - 1)
generators = seeds.map(np.random.default_rng)


def normal_like(rng: np.random.Generator, x: Leaves) -> Leaves:
    """Standard normal leaves of the shapes, namespace, dtype and device of x."""
    return zip_map(lambda a: array_namespace(a).asarray(rng.standard_normal(a.shape), dtype=a.dtype, device=device_of(a)), x)


def named_links(max_r: int = 4) -> st.SearchStrategy[HermiteLink]:
    """The links of the table."""
    return st.builds(make_link, st.sampled_from(sorted(LINKS)), st.integers(1, max_r))


@st.composite
def links(draw: st.DrawFn, min_r: int = 1, max_r: int = 3, max_degree: int = 4) -> HermiteLink:
    """Any few terms of total degree <= max_degree, coefficients of order one and of either sign."""
    r = draw(st.integers(min_r, max_r))
    orders = [k for k in itertools.product(range(max_degree + 1), repeat=r) if sum(k) <= max_degree]
    chosen = draw(st.lists(st.sampled_from(orders), min_size=1, max_size=6, unique=True))
    coefficients = st.floats(0.1, 2.0).flatmap(lambda c: st.sampled_from([c, -c]))
    return HermiteLink(tuple((draw(coefficients), k) for k in chosen))


@st.composite
def models(draw: st.DrawFn, max_extra: int = 4) -> MultiIndexModel:
    """A teacher with Haar index directions in d = r .. r + max_extra dimensions."""
    link = draw(links())
    d = link.r + draw(st.integers(0, max_extra))
    return MultiIndexModel(draw_index(d, link.r, draw(generators)), link, draw(st.sampled_from([0.0, 0.3])))


@st.composite
def thetas(draw: st.DrawFn, d: int | None = None, width: int | None = None) -> Leaves:
    """Generic parameters (a, W, b) of the two-layer network, of any width."""
    d = draw(st.integers(1, 4)) if d is None else d
    width = draw(st.integers(1, 6)) if width is None else width
    rng = draw(generators)
    return rng.standard_normal(width), rng.standard_normal((width, d)), rng.standard_normal(width)


@st.composite
def distilled_sets(draw: st.DrawFn, d: int, max_points: int = 5) -> Leaves:
    """(x, y) with generic points and labels."""
    m = draw(st.integers(1, max_points))
    rng = draw(generators)
    return rng.standard_normal((m, d)), rng.standard_normal(m)


@st.composite
def smooth_points(draw: st.DrawFn, max_points: int = 5) -> tuple[Leaves, Leaves]:
    """(theta, s) at which no gate of the two-layer network lies within KINK_MARGIN of its boundary."""
    theta = draw(thetas())
    s = draw(distilled_sets(theta[1].shape[1], max_points))
    assume(float(np.min(np.abs(s[0] @ theta[1].T + theta[2]))) > KINK_MARGIN)
    return theta, s


OPTIMISERS: dict[str, st.SearchStrategy[InnerOptimiser]] = {
    "sgd": st.builds(SGD, lr=st.floats(0.01, 0.3), weight_decay=st.sampled_from([0.0, 0.05])),
    "momentum": st.builds(Momentum, lr=st.floats(0.01, 0.2), momentum=st.floats(0.0, 0.95), weight_decay=st.sampled_from([0.0, 0.05])),
    "adam": st.builds(Adam, lr=st.floats(1e-3, 0.1), b1=st.floats(0.0, 0.95), b2=st.floats(0.5, 0.9999), eps=st.sampled_from([1e-8, 1e-4])),
}
optimisers = st.one_of(*OPTIMISERS.values())


@st.composite
def windows(draw: st.DrawFn, max_horizon: int = 6) -> WindowPolicy:
    """Full, fixed and random windows of up to max_horizon steps."""
    horizon = draw(st.integers(1, max_horizon))
    length = draw(st.integers(1, horizon))
    start = draw(st.integers(0, horizon - length))
    kinds = [FullWindow(horizon), FixedWindow(horizon, length), FixedWindow(horizon, length, start), RandomWindow(horizon, length, start)]
    return draw(st.sampled_from(kinds))


@st.composite
def orthonormal_columns(draw: st.DrawFn, r: int) -> np.ndarray:
    """(r, k) orthonormal columns, 1 <= k <= r, Haar."""
    return draw_index(r, draw(st.integers(1, r)), draw(generators))


def scales(low: float = 1e-3, high: float = 1e3) -> st.SearchStrategy[float]:
    """Positive factors spread evenly over orders of magnitude."""
    return st.floats(math.log(low), math.log(high)).map(math.exp)
