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
    (
        "theory.predictions",
        "if not 1 <= link.r <= d or d < 2:",
        "if not -1 <= link.r <= d or d < 2:",
    ): "every link has r >= 1",
    (
        "theory.distill.inner_optim",
        "v = zip_map(lambda v, x: self.b2 * v + (1.0 - self.b2) * x * x, slots[1], g)",
        "v = zip_map(lambda v, x: self.b2 * v + (1.0 - self.b2) * x * x, slots[-1], g)",
    ): "Adam's slots are two",
}

ENERGY = "moves the energy on S* by a relative 1/d^2, inside the room that sampled energies are given"
KNOWN: dict[Key, str] = {
    (
        "theory.predictions",
        "on = h2 / d - fourth + 0.25 * fourth * (r + 4) / (d + 4) - inner / (d * (d + 2))",
        "on = h2 / d - fourth + 0.25 * fourth * (r + 4) / (d + 4) - inner / (d * (d + 3))",
    ): ENERGY,
}
