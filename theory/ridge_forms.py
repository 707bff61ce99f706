"""Which homogeneous forms the retrained rows can build: a lower bound on the risk at few stored points, plain and reflected.

    x_1..x_M   stored points in general position in S* = R^r         F(s) = sum_m s_m x_m    rows, up to scale
    s          gate pattern of a neuron: {0, 1}^M plain, {-1, 1}^M reflected (a point used as x and -x)
    forms      span over patterns of the q-th powers F(s)^(q) in Sym^q(R^r), of dimension C(r + q - 1, q)

A head on relu(F.x + b), any width and any biases, is a sum of ridge functions of the F.x, so the degree-q Hermite tensor of the network
lies in `forms`: the target's part outside is lost whatever the head, and risk >= lost share. Derived here:

M < r    rows span the points only. For a Haar-random span V of M dimensions E|P_V A P_V|^2 = alpha |A|^2 + beta (tr A)^2 on Sym^2, from
         its values at A = e_1 e_1^T and its trace: beta = M (r - M) / ((r - 1) r (r + 2)), alpha = M (M + 2) / (r (r + 2)) - beta.
M = r    every pattern occurs. F(s)^(q) is a polynomial in s of degree q, reduced by s^2 = s to the squarefree monomials of degrees
         1..q (plain), by s^2 = 1 to those of the parity of q (reflected). At q = 2 plain spans Sym^2, and reflected misses the r - 1
         forms X^-1 D X^-T with tr D = 0: pairs have no square of their own. Averaged over rotations of X the lost share of a traceless
         A is (r - 1 - b) / dim(traceless), b >= 0 the missing share of the identity: at most 2/(r + 2).
M > r    a missing form Q has X Q X^T diagonal (M x M), of a rank <= r that one generic kernel vector already makes 0: nothing of
         degree 2 is missing from M = r + 1 on, reflected or not. One more point is what reflection costs at degree 2.
At q = 3 and M = r plain misses C(r, 2) forms, reflected twice as many.
"""

from math import comb


def symmetric_forms(r: int, q: int) -> int:
    """dim Sym^q(R^r)."""
    return comb(r + q - 1, q)


def ridge_forms(r: int, q: int, reflected: bool) -> int:
    """Dimension of the forms of degree q that the rows of M = r points span."""
    if reflected:
        return sum(comb(r, j) for j in range(q % 2, q + 1, 2))
    return sum(comb(r, j) for j in range(1, q + 1))


def captured_quadratic(r: int, m: int, tau: float) -> float:
    """E|P_V A P_V|^2 / |A|^2 for a random span V of m <= r points, tau = (tr A)^2 / |A|^2: the share of a quadratic target in reach."""
    if not 1 <= m <= r:
        raise ValueError(f"a random span needs 1 <= M1 <= r: M1={m}, r={r}")
    if r == 1:
        return 1.0
    beta = m * (r - m) / ((r - 1) * r * (r + 2))
    return m * (m + 2) / (r * (r + 2)) - beta + beta * tau


def lost_at_r_points(r: int) -> float:
    """Upper bound 2/(r + 2) on the mean lost share of a traceless quadratic target at M = r reflected points (0 at r = 1)."""
    return 2.0 / (r + 2) if r > 1 else 0.0
