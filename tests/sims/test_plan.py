"""`python -m sims plan`: counts against what a trial really draws, every preset planned without running a trial, and bad input."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sims import costs, plan
from sims.__main__ import PROGRAMS, main
from sims.arrays import GaussianStream
from sims.command import PRESETS, Program
from sims.encode.command import PROGRAM as ENCODE
from sims.encode.experiment import encode_trial
from sims.lab.files import toml_text
from sims.lab.sweep import Cost, Sweep
from sims.measures.costs import COSTS
from sims.measures.experiment import Measures
from sims.measures.experiment import sweeps as measure_sweeps
from sims.measures.outcomes import transfer_trial
from sims.plan import Rates, estimate, planned
from sims.scaling.command import PROGRAM as SCALING
from sims.scaling.experiment import Scaling
from sims.scaling.trials import risk_trial
from sims.unroll.command import PROGRAM as UNROLL
from sims.unroll.costs import unroll_trial as unroll_cost
from sims.unroll.experiment import Unroll

RATES = Rates(1e9, 1e8, 1e9, 1e9)
TASK = {"d": 12, "r": 2, "L": 16, "J": 2, "head_samples": 400, "validation": 300, "test": 500, "chunk": 256}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of everything the streams draw."""
    sizes: list[int] = []
    draw = GaussianStream._draw

    def spy(self: GaussianStream, k: int, n: int) -> Any:
        sizes.append(n * self.d)
        return draw(self, k, n)

    monkeypatch.setattr(GaussianStream, "_draw", spy)
    return sizes


@pytest.mark.parametrize("preprocessing", ["ols", "none"])
def test_the_normals_of_a_risk_trial_are_counted(drawn: list[int], preprocessing: str) -> None:
    scaling = Scaling()
    config = scaling.task(12, 2, 16) | TASK | {"preprocessing": preprocessing, "seed": 0, "draw": 0, "backend": "numpy"}
    config = dataclasses.asdict(costs.Task(**{k: v for k, v in config.items() if k not in ("seed", "draw", "backend")})) | config
    config |= {"m1": [4, 6], "m2": [8]}
    risk_trial(config)
    assert costs.risk_trial(config).normals == pytest.approx(sum(drawn), rel=1e-12)


def test_the_normals_of_an_encode_trial_are_counted(drawn: list[int]) -> None:
    config = planned({"encode": ENCODE}, "encode/r2")[1]
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, **TASK), M1=4).configs("numpy")[0]
    encode_trial(config)
    assert costs.encode_trial(config).normals == pytest.approx(sum(drawn), rel=1e-12)


def test_the_normals_of_a_transfer_trial_are_counted(drawn: list[int]) -> None:
    sweep = next(sweep for sweep in measure_sweeps(Measures(), "numpy") if sweep.kind == "transfer")
    assert sweep.cost is COSTS["transfer"]
    config = dict(sweep.configs[0]) | {"d": 12, "L": 16, "heads": 300}
    transfer_trial(config)
    assert COSTS["transfer"](config).normals == pytest.approx(sum(drawn), rel=1e-12)


def unrolled(method: str, **settings: Any) -> Cost:
    return unroll_cost(Unroll(method=(method,), seeds=1, **settings).configs("numpy")[0])


def test_a_window_saves_its_part_of_the_sweep_and_nothing_of_the_run() -> None:
    whole, window, one, given = (unrolled(name).products for name in ("bptt", "t-bptt", "dd", "subset"))
    recipe = Unroll().recipe
    step = 20.0 * 8 * 64 * 16  # five products of M1 L d numbers in 64 bit
    assert whole - window == pytest.approx((recipe.K * recipe.J + 2 * 4) * (recipe.T - recipe.W) * step, rel=1e-9)
    assert given < one < window
    assert unrolled("full-data").products > unrolled("subset").products
    assert unrolled("ftd").products > unrolled("mtt").products > whole


def test_products_of_the_teacher_pass_are_4_n_k_d() -> None:
    small, large = (costs.encoding(costs.Task(d=d, J=8, L=4096, head_samples=100)) for d in (256, 512))
    task = costs.Task(d=512, J=8, L=4096, head_samples=100)
    assert large.products == pytest.approx(4.0 * task.N * 8 * 2048 * 512, rel=0.02)
    assert large.products / small.products == pytest.approx(8.0, rel=0.01), "N = 32 d^2 samples of d numbers"


def test_costs_add_up_and_the_larger_peak_stays() -> None:
    total = 3 * Cost(1.0, 2.0, 3.0, 4.0, 50.0) + Cost(10.0, 10.0, 10.0, 10.0, 20.0)
    assert total == Cost(13.0, 16.0, 19.0, 22.0, 50.0)
    assert RATES.seconds(Cost(2e9, 3e8, 0.0, 5e9)) == pytest.approx(10.0 + plan.TRIAL_SECONDS)


@pytest.fixture
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates of a fixed machine, and a failure where a trial runs."""

    def never(*_: Any) -> None:
        raise AssertionError("a trial ran")

    monkeypatch.setattr(plan, "attempt", never)
    monkeypatch.setattr(plan, "measure_rates", lambda backend: RATES)


@pytest.mark.usefixtures("no_trial")
@pytest.mark.parametrize("program", [SCALING, ENCODE, UNROLL], ids=lambda program: program.name)
def test_every_preset_of_the_counting_programs_is_planned(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    for preset in sorted((PRESETS / program.name).glob("*.toml")):
        _, config = planned({program.name: program}, f"{program.name}/{preset.stem}")
        found = [estimate(sweep, RATES) for sweep in program.sweeps(config, "numpy")]
        assert all(part.seconds and part.longest and part.bytes for part in found)
        assert all(part.longest <= part.seconds for part in found if part.longest and part.seconds)
        main(["plan", f"{program.name}/{preset.stem}", "--backend", "numpy", "--workers", "2"])
        out = capsys.readouterr().out
        assert f"for {sum(part.trials for part in found)} trials" in out
        assert "on 2 workers" in out
        assert "unknown" not in out


def test_the_rates_of_this_machine_are_positive() -> None:
    assert all(0 < rate < 1e16 for rate in dataclasses.astuple(plan.measure_rates("numpy")))


@pytest.mark.usefixtures("no_trial")
def test_a_run_folder_s_configuration_can_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"program": "scaling", "backend": "numpy", "scaling": dataclasses.asdict(Scaling(seeds=3))}
    (tmp_path / "config.toml").write_text(toml_text(settings))
    main(["plan", str(tmp_path / "config.toml")])
    out = capsys.readouterr().out
    assert f"| risk | {3 * len(Scaling().tasks())} |" in out
    assert "on one core" in out
    assert " workers" not in out, "one process unless asked otherwise, as for the run itself"


def test_kinds_that_count_nothing_are_unknown_or_timed_on_a_few_trials(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    ran: list[int] = []

    def trial(config: Mapping[str, Any]) -> Mapping[str, Any]:
        ran.append(config["i"])
        return {}

    sweep = Sweep("new", trial, tuple({"i": i} for i in range(11)))
    assert estimate(sweep, RATES) == plan.Estimate("new", 11, None, None, None)
    assert ran == []
    timed = estimate(sweep, RATES, sample=3)
    assert ran == [0, 5, 10]
    assert timed.seconds is not None
    lines = "\n".join(plan.summary([estimate(sweep, RATES)], RATES, "numpy", 2))
    assert "the unknown time of new (--sample 2" in lines
    assert "memory: at least" in lines


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["scaling/fast"], "unknown preset 'fast' of scaling: choose one of demo"),
        (["thesis"], f"known are {', '.join(PROGRAMS)}"),
        (["/nowhere/x.toml"], "/nowhere/x.toml cannot be read"),
        (["{here}/foreign.toml"], "names no program (program='distil')"),
        (["{here}/strange.toml"], "holds settings that scaling does not take"),
        (["scaling/demo", "--workers", "-1"], "workers=-1"),
        (["scaling/demo", "--backend", "abacus"], "unknown backend 'abacus'"),
    ],
)
def test_bad_words_end_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    (tmp_path / "foreign.toml").write_text('program = "distil"\n')
    (tmp_path / "strange.toml").write_text('program = "scaling"\n[scaling]\ncolour = "red"\n')
    with pytest.raises(SystemExit) as caught:
        main(["plan", *(word.format(here=tmp_path) for word in words)])
    complaint = capfd.readouterr().err
    assert caught.value.code == 2
    assert complaint.count("\n") == 1
    assert line in complaint
