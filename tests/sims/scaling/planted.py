"""Rows of a scaling experiment with known laws in them."""

import math
from functools import cache
from typing import Any

import numpy as np

from sims import population
from sims.encode.report import NAMES as REPRESENTATIONS
from sims.scaling import laws as scaling_laws
from sims.scaling.experiment import CRITERIA, Scaling, sweeps
from theory.spectrum import least_points

predicted = cache(least_points)
SMALL = Scaling(
    d=(16, 32, 64, 128),
    L=(64, 128, 256),
    r=(8, 16, 32),
    r_real=(3, 4),
    seeds=6,
    spectrum_draws=256,
    risk_draws=256,
    head_L=(16, 32, 64),
    base_d=32,
    base_L=128,
)


def planted(
    scaling: Scaling = SMALL,
    *,
    points: Any = lambda d, r: 1.5 * r * r,
    labels: Any = lambda width: 0.5 * width,
    head: Any = lambda width: width,
    exponents: dict[str, float] | None = None,
    spread: float = 0.15,
) -> dict[str, list[dict[str, Any]]]:
    """Rows of curves that fall like 1/M1 and cross their level where asked, with log-normal noise common to a curve.

    points (d, r) -> M1* of the real samples; labels L -> M2*; head L -> labels of the head; exponents: of M1* in r by criterion.
    """
    rng, exponents = np.random.default_rng(0), exponents or {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for sweep in sweeps(scaling, "numpy"):
        rows[sweep.kind] = []
        for config in sweep.configs:
            noise = math.exp(spread * rng.standard_normal())
            grid = np.array(config.get("m1", config.get("grid", ())), float)
            r = config["r"]
            if sweep.kind == "spectrum":
                result = {}
                for name, threshold in population.THRESHOLDS.items():
                    theirs = name in exponents
                    least = predicted(8, name, threshold) * (r / 8) ** exponents[name] if theirs else predicted(r, name, threshold)
                    result[name] = threshold * least * noise / grid
            elif sweep.kind == "population-risk":
                fit = population.RiskTrial(r=r, draw=0, grid=[1]).fit
                result = {"teacher": 0.5, "limit": 0.4}
                for name in ("plain", "reflected"):
                    least = population.predicted_risk_points(r, scaling.risk_ratio, fit, name == "reflected")
                    least = 1.5 * r ** exponents["risk"] if "risk" in exponents else least
                    result[name] = 0.5 * scaling.risk_ratio * least * noise / grid
            elif sweep.kind == "rows":
                least = {name: scaling_laws._predicted_rows(scaling, r, name) for name in CRITERIA}
                result = {
                    f"rows_{name}": population.THRESHOLDS[name] * (least[name] or r) * noise / grid
                    if math.isfinite(least[name] or r)
                    else 1e9 / grid
                    for name in CRITERIA
                }
            elif sweep.kind == "baselines":
                result = {f"risk_{name}": 0.01 * (k + 1) * noise for k, name in enumerate(REPRESENTATIONS)}
                result |= {f"floats_{name}": config["M1"] * config["d"] + config["M2"] for name in REPRESENTATIONS}
            elif sweep.kind == "head":
                result = {"grid": [config["L"]], "errors": [1e-9], "least": head(config["L"])}
            else:
                over_m1 = points(config["d"], r) * noise / grid
                over_m2 = labels(config["L"]) / np.array(config["m2"], float)
                fresh = scaling.level * np.maximum(over_m1[:, None], over_m2[None, :])
                result = {"teacher": 0.02, "real": scaling.level * over_m1, "fresh": fresh.ravel()}
                result |= {"angle": (0.1 * noise / np.sqrt(grid)).tolist(), "singular_values": [1.0] * r + [0.1] * r}
                result |= {"same": scaling.functional_ratio * scaling.level * over_m1[-1] * over_m2, "fresh_real": 0.4 * scaling.level}
            plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in result.items()}
            rows[sweep.kind].append({"kind": sweep.kind, "failed": None} | config | plain)
    return rows
