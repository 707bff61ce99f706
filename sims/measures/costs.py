"""What a trial of a measure costs, counted from its configuration (see sims.costs); `plan` tells other kinds as unknown."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sims import costs
from sims.lab.sweep import Cost
from sims.measures.outcomes import curve_task, target_counts
from sims.pipeline import task_of

CHUNK = 8192  # samples held at a time


def _stream(config: Mapping[str, Any]) -> tuple[int, Cost]:
    """N, and what drawing the samples and removing mean and linear part take."""
    n, d = config["per_d2"] * config["d"] ** 2, config["d"]
    passes = 1 if config["preprocessing"] == "none" else 2
    return n, Cost(float(n * d * d) if passes == 2 else 0.0, float(passes * n * d), 8.0 * passes * n * config["r"])


def directions_trial(config: Mapping[str, Any]) -> Cost:
    """`energies.directions_trial`: one streamed pass for K rows a set, one matching step a set."""
    n, drawn = _stream(config)
    d, k, points = config["d"], round(config["K_per_d"] * config["d"]), config["sets"] * config["M1"]
    rows = k * config["sets"]
    step = 2.0 * 10.0 * points * 2 * k
    return drawn + Cost(4.0 * n * rows * d + step * d, float(2 * rows * d), float(n * rows) + step, 0.0, 16.0 * rows * d + 4.0 * CHUNK * d)


def kernel_trial(config: Mapping[str, Any]) -> Cost:
    """`energies.kernel_trial`: an arcsine for every sample and point, then rows retrained on every set."""
    n, drawn = _stream(config)
    d, points = config["d"], config["sets"] * config["M1"]
    gates = float(config["neurons"] * points)
    pairs = 0.5 * points * config["M1"]
    products = 4.0 * n * points * d + 2 * 4.0 * (gates + pairs) * d
    return drawn + Cost(products, float(points * d), costs.ARCSIN * (n * points + 2 * pairs) + 2.0 * gates, 0.0, 8.0 * CHUNK * points)


def curve_trial(config: Mapping[str, Any]) -> Cost:
    """`outcomes.curve_trial`: one risk trial a value."""
    total = Cost()
    for value in config["values"]:
        total += costs.risk_trial(curve_task(config, value))
    return total


def transfer_trial(config: Mapping[str, Any]) -> Cost:
    """`outcomes.transfer_trial`: a value needs an encoding, points, and two heads on samples of the target."""
    total = Cost()
    for value in config["values"]:
        settings = curve_task(config, value)
        task = task_of(settings)
        learned, held, test = target_counts(config, task)
        total += costs.encoding(task) + costs.matching(task, settings["m1"][0]) + Cost(normals=float((learned + held + test) * task.d))
        total += 2 * costs.head(replace(task, validation=held, test=test), learned)
    return total


COSTS: dict[str, Callable[[Mapping[str, Any]], Cost]] = {
    "directions": directions_trial,
    "kernel": kernel_trial,
    "curve": curve_trial,
    "transfer": transfer_trial,
    "spectrum": costs.spectrum_trial,
    "head": costs.head_trial,
    "risk": costs.risk_trial,
    "baselines": costs.encode_trial,
}
