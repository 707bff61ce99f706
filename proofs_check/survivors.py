"""Why a mutant is not caught, by (module, line text, altered text).

EQUIVALENT   the altered code is provably the same function on everything it accepts; counts neither way
KNOWN        it is not, and no lemma notices, for the reason given; counts as a survivor
"""

Key = tuple[str, str, str]

MATRIX = "the array has two axes, so that axis 1 and axis -1 are one"

EQUIVALENT: dict[Key, str] = {
    ("theory.distill.curvature", line, line.replace("axis=1", "axis=-1")): MATRIX
    for line in (
        "return xp.stack([flatten(hvp(unflatten(block[:, j], theta))) for j in range(width)], axis=1)",
        "return Sketch(q @ xp.take(v, kept, axis=1), xp.take(mu, kept), t, theta, width * (self.power + 2))",
    )
}
EQUIVALENT |= {
    ("theory.two_layer", "e = value(theta, s[0]) - s[1]", "e = value(theta, s[0]) - s[-1]"): "a set has two leaves, points and labels",
    (
        "theory.two_layer",
        "half /= np.linalg.norm(half, axis=1, keepdims=True)",
        "half /= np.linalg.norm(half, axis=-1, keepdims=True)",
    ): MATRIX,
    (
        "theory.distill.inner_optim",
        "v_bar = zip_map(second_moment, mu[1], lam, mhat, root)",
        "v_bar = zip_map(second_moment, mu[-1], lam, mhat, root)",
    ): "Adam's slots are two",
    (
        "theory.distill.inner_optim",
        "v = zip_map(lambda v, x: self.b2 * v + (1.0 - self.b2) * x * x, slots[1], g)",
        "v = zip_map(lambda v, x: self.b2 * v + (1.0 - self.b2) * x * x, slots[-1], g)",
    ): "Adam's slots are two",
}

ENERGY = "beyond the order in 1/d that is kept: quadrature over the sphere, at d = 800, holds this part to a relative 10/d"
KNOWN: dict[Key, str] = {
    (
        "theory.distill.adaptive",
        "return (rankdata(x) - 1.0) / (len(x) - 1) if len(x) > 1 else np.full(1, 0.5)",
        "return (rankdata(x) - 1.0) / (len(x) - 1) if len(x) > 2 else np.full(1, 0.5)",
    ): "differs at two positions only, where no instance looks",
    (
        "theory.distill.stages",
        "return max(1, math.ceil(share * total - 1e-09))",
        "return max(-1, math.ceil(share * total - 1e-09))",
    ): "differs only where share * total <= 1e-9",
    (
        "theory.predictions",
        "on = h2 / d - fourth + 0.25 * fourth * (r + 4) / (d + 4) - inner / (d * (d + 2))",
        "on = h2 / d - fourth + 0.25 * fourth * (r + 4) / (d + 4) - inner / (d * (d + 3))",
    ): ENERGY,
    (
        "theory.distill.flatness",
        "if residual <= tolerance * abs(value) or length == 0.0 or k == steps:",
        "if residual < tolerance * abs(value) or length == 0.0 or k == steps:",
    ): "equality of the two floats has measure zero",
    (
        "theory.distill.adaptive",
        "weights = np.exp((score - score.max()) / temperature)",
        "weights = np.exp((score + score.max()) / temperature)",
    ): "a shift of the scores cancels in the quotient; it tells only where the exponential overflows",
    (
        "theory.distill.adaptive",
        "delta = np.concatenate([delta[:1], delta]) if delta.size else np.zeros(1)",
        "delta = np.concatenate([delta[:1], delta]) if delta.size else np.zeros(2)",
    ): "reached at horizon 1 alone, where the window is the one step whatever the change",
    (
        "theory.distill.truncation",
        "length += int(rng.integers(-self.spread, self.spread + 1))",
        "length -= int(rng.integers(-self.spread, self.spread + 1))",
    ): "the law of the length is symmetric: only single draws differ",
}
MOMENT = "return 2.0 * density * quad(integrand, 0.0, math.pi / 2, epsabs=0.0, epsrel=1e-10, limit=200)[0]"
KNOWN |= {
    (
        "theory.predictions",
        MOMENT,
        MOMENT.replace(*change),
    ): "an accuracy or a bound on work that the quadrature of a smooth integrand does not come near"
    for change in (("1e-10", "2e-10"), ("limit=200", "limit=201"), ("limit=200", "limit=400"))
}
