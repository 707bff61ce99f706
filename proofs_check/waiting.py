"""Statements whose code is not built yet: their rows say what they wait for, and neither pass nor fail."""

from proofs_check.lemma import Source, Waiting

WAITING = (
    Waiting(
        number=16,
        name="flatness-directions",
        latex=(
            r"\|e\|_2 = \rho\ (\text{SAM}),\quad \|e/|\theta|\|_2 = \rho\ (\text{ASAM}),\quad "
            r"\langle g_p - \alpha g_\perp - g_p,\, g_p\rangle = 0\ (\text{GSAM})"
        ),
        plain="SAM and ASAM perturb by rho in their own norm; GSAM takes away only what is orthogonal to the perturbed gradient.",
        source=Source("stated", "Du et al., arXiv:2211.11004, equations 12 and 13"),
        waits="waits for flat expert trajectories (theory.distill.flatness)",
    ),
    Waiting(
        number=17,
        name="adaptive-windows",
        latex=r"P(t) \ge 0,\ \textstyle\sum_t P(t) = 1,\qquad W_0 - d \le W \le W_0 + d,\qquad 0 \le \mathrm{start} < \mathrm{stop} \le T",
        plain="AT-BPTT draws from a distribution, keeps its window in bounds, and its stage clock reaches every stage for every horizon.",
        source=Source("stated", "Li et al., arXiv:2510.04838"),
        waits="waits for adaptive windows and the stage clock (theory.distill.adaptive, theory.distill.stages)",
    ),
    Waiting(
        number=18,
        name="low-rank-hessian",
        latex=r"\|H - U\Lambda U^\top\| \le (1 + \varepsilon)\,\sigma_{k+1},\qquad k = p \Rightarrow U\Lambda U^\top = H",
        plain="The randomised low-rank Hessian is exact at full rank, off by about the next singular value, and keeps signs.",
        source=Source("stated", "Li et al., arXiv:2510.04838; the error bound is derived here"),
        waits="waits for the low-rank Hessian (theory.distill.curvature)",
    ),
)
