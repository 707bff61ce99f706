"""Changes of the code that change nothing anyone can observe, with the reason; by function and altered statement."""

GUARDED = "the outer choice is by b > 0, so what the inner one yields at b = 0 is never taken"
NODES = "the default number of quadrature nodes: 128 are exact for every polynomial in use, and so are more"

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "theory.distill.inner_optim.Adam.adjoint.second_moment",
        "half_inverse_root = xp.where(b > 0.0, 0.5 / xp.where(b >= 0.0, b, xp.ones_like(b)), xp.zeros_like(b))",
    ): GUARDED,
    **{
        (
            "theory.hermite.coefficients",
            f"def coefficients(f: Callable[[np.ndarray], np.ndarray], k_max: int, nodes: int={nodes}) -> np.ndarray:",
        ): NODES
        for nodes in (129, 256)
    },
}
