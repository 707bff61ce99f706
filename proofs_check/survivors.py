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

KNOWN: dict[Key, str] = {}
