"""Trials that end in a test risk, or compare two algorithms: risk along one size, transfer to a new target, DC against DD.

Keys of the risk trials: the fields of Task but J and the sample counts, `diversity` (J = diversity r d/L, at least 1), `per_r2` (M1/r^2),
`m2_per_L`, `over` and `values` (one field that runs), `heads` (samples of a head, of validation and of test), seed, draw.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from sims import two_phase
from sims.arrays import GaussianStream, child
from sims.pipeline import Bench, Samples, Task, distil_points, encode, fresh_network, task_of, trial_seed
from sims.scaling.trials import risk_trial
from theory.multi_index import MultiIndexModel, make_link

TASK_FIELDS = {f.name for f in fields(Task)}


def curve_task(config: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """The settings of one point of the curve: a whole Task with M1 and M2."""
    at = {**config, config["over"]: value}
    given = {name: at[name] for name in TASK_FIELDS & at.keys()}
    if "J" not in given:
        given["J"] = max(1, round(at["diversity"] * at["r"] * at["d"] / at["L"]))
    budget = round(at["samples"] * at["d"] ** 2)
    counts = {"head_samples": min(at["heads"], budget), "validation": at["heads"] // 2, "test": at["heads"]}
    sizes = {"m1": [max(1, round(at["per_r2"] * at["r"] ** 2))], "m2": [max(1, round(at["m2_per_L"] * at["L"]))]}
    return asdict(Task(**given, **counts)) | sizes


def curve_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """One entry a value: risks of the full-data teacher, of retrained rows with a head on real samples, of M2 labels (fresh, same)."""
    own = {"seed": config["seed"], "draw": config["draw"], "backend": "numpy"}
    runs = [risk_trial(curve_task(config, value) | own) for value in config["values"]]
    return {
        "teacher": [run["teacher"] for run in runs],
        **{name: [run[name][0] for run in runs] for name in ("real", "fresh", "same")},
    }


def transfer_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keep D1, learn another target on the same S*. Further keys: `target` (link), `labels` (labelled samples of the target).

    kept    one entry a value: risk of a head on `labels` samples of the target, rows retrained on D1
    random  the same with random rows        lost   the variance of the target that S* alone would leave (0: same S*)
    """
    out: dict[str, list[float]] = {"kept": [], "random": []}
    for value in config["values"]:
        settings = curve_task(config, value)
        task = task_of(settings)
        seed = trial_seed(config, task.d, task.r, task.L)
        encoded = encode(task, seed)
        rows, biases = fresh_network(encoded, distil_points(encoded, settings["m1"][0]), "retrain")
        model = MultiIndexModel(encoded.model.B, make_link(config["target"], task.r))
        bench = Bench(encoded, *(_target_samples(task, model, child(seed, 100 + k), n) for k, n in enumerate(target_counts(config, task))))
        theta = encoded.student.init(encoded.rng("baselines"))
        for name, weights in (("kept", rows), ("random", theta[1] * task.row_norm)):
            out[name].append(bench.risk(bench.fit_real(weights, biases)))
    return out


def target_counts(config: Mapping[str, Any], task: Task) -> tuple[int, int, int]:
    """Samples of the target that fit its head, pick the ridge penalty, and test it."""
    return config["labels"], max(32, config["labels"] // 2), task.test


def _target_samples(task: Task, model: MultiIndexModel, seed: np.random.SeedSequence, n: int) -> Samples:
    """Samples of the target with its mean and linear part removed (both are known: the target is given in Hermite form)."""
    x, _ = GaussianStream(seed, n, task.d, dtype=task.dtype).head(n)
    residual = two_phase.Residual(model.link.mean, (model.B @ model.link.linear).astype(x.dtype))
    clean = residual(x, model.clean(x))
    return Samples(x, clean, clean)


def matching_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """1 - cos between the updates of gradient matching (inner product) and performance matching through one inner step of each size.

    Keys: d, r, L, link, per_d2, M1, rates (inner step sizes), seed, draw.
    """
    task = Task(
        *(config[name] for name in ("d", "r", "L")),
        J=1,
        link=config["link"],
        samples=config["per_d2"],
        head_samples=1,
        validation=1,
        test=1,
        dtype="float64",
    )
    encoded = encode(task, trial_seed(config, task.d, task.r, task.L))
    x = encoded.rng("points").standard_normal((config["M1"], task.d))
    loss = two_phase.StreamedLoss(encoded.model, encoded.stream, encoded.residual)
    direct = two_phase.matching_gradient(encoded.student, encoded.starts, encoded.rows, x, "inner_product")
    through = [two_phase.performance_gradient(encoded.student, encoded.starts, loss, x, rate) for rate in config["rates"]]
    return {"gaps": [_one_minus_cosine(direct, other) for other in through]}


def _one_minus_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """|a/|a| - b/|b||^2 / 2, exact also where the two nearly agree."""
    return 0.5 * float(np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2))
