"""Hermite coefficients of the gate 1{z >= 0}, of relu, and of a polynomial link, for z ~ N(0, 1).

    c_k(f) = E[f(z) He_k(z)]        sum_k He_k(z) t^k / k! = exp(t z - t^2/2)

Derivation: He_k phi = -(He_{k-1} phi)', so the gate keeps the boundary term He_{k-1}(0) phi(0); for smooth f, k integrations by parts give
c_k = E f^(k), and relu' is the gate. The exact check takes all orders at once: E[f(z) exp(t z - t^2/2)] generates the c_k.
"""

import math
from collections.abc import Iterator

import numpy as np
import sympy as sp
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy.special import gamma, gammaincc

from proofs_check.gaussian import exact_mean
from proofs_check.lemma import Control, Identity, Lemma, Source
from proofs_check.margins import closeness, refuses
from theory import hermite
from theory.multi_index import HermiteLink

ORDERS = 9
NODES = 16  # exact up to degree 31 - k
TOLERANCE = 1e-12


def half_moment(j: int, threshold: float) -> float:
    """E[z^j 1{z >= threshold}] for threshold >= 0, by the incomplete gamma function (no Hermite polynomial in it)."""
    a = (j + 1) / 2
    return float(2.0 ** (j / 2 - 1) / math.sqrt(math.pi) * gamma(a) * gammaincc(a, threshold**2 / 2))


def margin(
    rng: np.random.Generator,
    hundredths: list[int],
    beyond: int,
    sample: int,
    spread: float = 1.0,
    threshold: float = 0.0,
    more: float = 0.0,
) -> float:
    """Polynomial p with the given coefficients: its expansion gives p back, c_k = E p^(k), and pairing with gate and relu is exact.

    beyond: orders of the expansion less the degree of p; spread: z ~ N(0, spread^2); threshold: the kink of gate and relu, in units of
    spread; more: coefficient of one power more than p is said to have.
    """
    last = len(hundredths) - 1 + beyond
    p = np.asarray([*hundredths, *([0] * beyond + [100.0 * more] if more else [])]) / 100.0
    degree = len(p) - 1
    c = hermite.coefficients(Polynomial(p), last, NODES)
    size = sum(abs(p[j]) * math.sqrt(2.0 * half_moment(2 * j, 0.0)) for j in range(degree + 1))  # >= sqrt(E p^2)

    z = rng.standard_normal(16)
    link = HermiteLink(tuple((float(c[k] / math.sqrt(math.factorial(k))), (k,)) for k in range(last + 1)))
    basis = sum(np.abs(he) for he in hermite.orthonormal(z, last))
    if [len(hermite.orthonormal(z, k)) for k in range(4)] != [1, 2, 3, 4]:
        return -9.0
    expansion = closeness(link(z[:, None]), Polynomial(p)(z), TOLERANCE, size * basis)

    moments = [spread**j * 2.0 * half_moment(j, 0.0) * (j % 2 == 0) for j in range(degree + 1)]
    stein = [sum(p[j] * math.perm(j, k) * moments[j - k] for j in range(k, degree + 1)) for k in range(last + 1)]
    unit = [math.sqrt(math.factorial(k)) * size for k in range(last + 1)]

    halves = [spread**j * half_moment(j, threshold) for j in range(degree + 2)]
    through_gate = sum(p[j] * halves[j] for j in range(degree + 1))
    through_relu = sum(p[j] * (halves[j + 1] - threshold * spread * halves[j]) for j in range(degree + 1))
    pairs = [(hermite.gate_coefficient, through_gate), (hermite.relu_coefficient, through_relu)]
    paired = [sum(f(k) * c[k] / math.factorial(k) for k in range(last + 1)) for f, _ in pairs]
    refused = refuses(hermite.coefficients, abs, 3, 3) and refuses(hermite.coefficients, abs, -1, 3)
    return min(
        1.0 if refused else -9.0,
        expansion,
        closeness(c, stein, TOLERANCE, unit),
        closeness(paired, [exact for _, exact in pairs], TOLERANCE, size),
    )


def symbolic() -> Iterator[Identity]:
    t, z = sp.symbols("t z", real=True)
    phi = sp.exp(-(z**2) / 2) / sp.sqrt(2 * sp.pi)
    generating = sp.exp(t * z - t**2 / 2)
    cdf, density = (1 + sp.erf(t / sp.sqrt(2))) / 2, sp.exp(-(t**2) / 2) / sp.sqrt(2 * sp.pi)
    gate = sp.integrate(generating * phi, (z, 0, sp.oo)).rewrite(sp.erf)
    yield Identity("E[1{z >= 0} exp(t z - t^2/2)] = Phi(t)", gate, cdf)
    relu = sp.integrate(z * generating * phi, (z, 0, sp.oo)).rewrite(sp.erf)
    yield Identity("E[relu(z) exp(t z - t^2/2)] = phi(t) + t Phi(t)", relu, density + t * cdf)
    lower, same = sp.Function("a")(z), sp.Function("b")(z)  # He_{k-1} and He_k, for any k: He_{k-1}' = z He_{k-1} - He_k
    rodrigues = sp.diff(lower * phi, z).subs(sp.diff(lower, z), z * lower - same)
    yield Identity("(He_{k-1} phi)' = -He_k phi for every k", rodrigues, -same * phi)
    for order in range(ORDERS):
        exact = sp.Rational(1, 2) if order == 0 else sp.hermite_prob(order - 1, 0) / sp.sqrt(2 * sp.pi)
        yield Identity(f"c_{order} of the gate from Phi", sp.diff(cdf, t, order).subs(t, 0), exact)
        yield Identity(f"c_{order} of the gate in the code", hermite.gate_coefficient(order), exact)
        of_relu = sp.diff(density + t * cdf, t, order).subs(t, 0)
        yield Identity(f"c_{order} of relu in the code", hermite.relu_coefficient(order), of_relu)
    coefficients = sp.symbols(f"p0:{ORDERS - 2}")
    p = sum(c * z**j for j, c in enumerate(coefficients))
    for order in range(len(coefficients)):
        left = exact_mean(p * sp.hermite_prob(order, z), z)
        yield Identity(f"c_{order} of a polynomial = E p^({order})", left, exact_mean(sp.diff(p, z, order), z))


LEMMA = Lemma(
    number=1,
    name="hermite-coefficients",
    latex=(
        r"c_0(\mathbf 1_{z \ge 0}) = \tfrac12,\quad c_k(\mathbf 1_{z \ge 0}) = \frac{He_{k-1}(0)}{\sqrt{2\pi}},\quad "
        r"c_0(\mathrm{relu}) = \frac{1}{\sqrt{2\pi}},\quad "
        r"c_k(\mathrm{relu}) = c_{k-1}(\mathbf 1_{z \ge 0}),\quad c_k(p) = \mathbb E\,p^{(k)}(z)"
    ),
    plain="Hermite coefficients of the gate, of relu and of a polynomial under N(0, 1); a polynomial is the sum of its orders 0 .. p.",
    source=Source("derived", "integration by parts"),
    assumptions={
        "standard_gaussian": "z has variance one",
        "zero_threshold": "gate and relu switch at 0",
        "all_orders": "the degree of the link is at most the last order of the expansion",
    },
    instances={
        "hundredths": st.lists(st.integers(-300, 300), min_size=1, max_size=9).filter(any),
        "beyond": st.integers(0, 2),
        "sample": st.integers(0, 2**32 - 1),
    },
    margin=margin,
    symbolic=symbolic,
    controls=(
        Control("standard_gaussian", "standard deviation 1.1 to 2", {"spread": st.floats(1.1, 2.0)}),
        Control("zero_threshold", "threshold 0.1 to 1", {"threshold": st.floats(0.1, 1.0)}),
        Control(
            "all_orders",
            "the link has one degree more",
            {"more": st.floats(0.5, 3.0), "hundredths": st.lists(st.integers(-300, 300), min_size=1, max_size=6).filter(any)},
        ),
    ),
    examples=200,
    code=(
        "theory.hermite.gate_coefficient",
        "theory.hermite.relu_coefficient",
        "theory.hermite.coefficients",
        "theory.hermite.orthonormal",
        "theory.multi_index.HermiteLink",
    ),
)
