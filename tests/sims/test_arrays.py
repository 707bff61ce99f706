"""Backends and Gaussian streams, and the same numbers from every namespace through one suite."""

import dataclasses
import sys
from types import SimpleNamespace

import array_api_compat.numpy as np_compat
import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given
from hypothesis import strategies as st

from sims import arrays, heads, pipeline, two_phase
from sims.arrays import GaussianStream, child
from sims.pipeline import Bench, Task, distil_points, draw_samples, encode, fresh_network, teacher_network
from sims.scaling.trials import risk_trial, rows_trial
from tests.oracles import relative_error, to_numpy
from tests.strategies import seeds

SEED = np.random.SeedSequence(7)


def gathered(stream):
    x, xi = zip(*stream, strict=True)
    return np.concatenate(x), np.concatenate(xi)


@st.composite
def streams(draw):
    n, d, chunk = draw(st.integers(1, 40)), draw(st.integers(1, 4)), draw(st.integers(1, 50))
    return GaussianStream(np.random.SeedSequence(draw(seeds)), n, d, chunk=chunk, dtype=draw(st.sampled_from(arrays.DTYPES)))


@given(streams())
def test_every_pass_sees_the_same_samples(stream):
    (x, xi), (again, noise_again) = gathered(stream), gathered(stream)
    assert x.shape == (stream.n, stream.d)
    assert xi.shape == (stream.n,)
    assert x.dtype == xi.dtype == stream.dtype
    np.testing.assert_array_equal(x, again)
    np.testing.assert_array_equal(xi, noise_again)
    assert all(len(part) <= stream.chunk for part, _ in stream)
    if stream.dtype == "float64":
        assert len(np.unique(np.concatenate([x.ravel(), xi]))) == x.size + xi.size, "no draw is used twice"


@given(streams(), st.data())
def test_a_head_is_the_start_of_the_stream_and_of_any_longer_one(stream, data):
    x, xi = gathered(stream)
    n = data.draw(st.integers(1, stream.n))
    longer = dataclasses.replace(stream, n=stream.n + data.draw(st.integers(0, 60)))
    for source in (stream, longer):
        head, noise = source.head(n)
        np.testing.assert_array_equal(head, x[:n])
        np.testing.assert_array_equal(noise, xi[:n])


def test_children_of_a_seed_are_fixed_by_their_key():
    first = child(SEED, 3).generate_state(4)
    child(SEED, 0), SEED.spawn(2)
    np.testing.assert_array_equal(child(SEED, 3).generate_state(4), first)
    np.testing.assert_array_equal(child(SEED, 3, 1).generate_state(4), child(child(SEED, 3), 1).generate_state(4))
    states = [tuple(child(SEED, *key).generate_state(4)) for key in ((), (0,), (1,), (0, 0), (0, 1), (1, 0))]
    assert len(set(states)) == len(states)


@pytest.mark.parametrize("dtype", arrays.DTYPES)
def test_samples_are_standard_normal_and_two_streams_independent(dtype):
    """Second moments of (x, xi, x of another role) lie within five standard errors of the identity."""
    n = 20_000
    x, xi = GaussianStream(child(SEED, 0), n, 3, dtype=dtype, chunk=3000).head(n)
    other, _ = GaussianStream(child(SEED, 1), n, 3, dtype=dtype, chunk=3000).head(n)
    z = np.column_stack([x, xi, other]).astype(np.float64)
    assert np.max(np.abs(z.mean(axis=0))) < 5 / np.sqrt(n)
    moment = z.T @ z / n
    assert np.max(np.abs(moment - np.eye(7)) / np.sqrt(1 + np.eye(7))) < 5 / np.sqrt(n)
    assert np.mean(z**4) == pytest.approx(3, abs=5 * np.sqrt(96 / z.size))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n": 0}, "N=0"),
        ({"d": 0}, "d=0"),
        ({"chunk": 0}, "chunk=0"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"native": True}, "native draws need the CuPy backend"),
    ],
)
def test_bad_streams_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        GaussianStream(**{"seed": SEED, "n": 3, "d": 2, **wrong})


@pytest.mark.parametrize("n", [0, 4])
def test_heads_beyond_the_stream_are_refused(n):
    with pytest.raises(ValueError, match=f"N=3 samples: n={n}"):
        GaussianStream(SEED, 3, 2).head(n)


def test_backends_without_a_device(monkeypatch):
    monkeypatch.setattr(arrays, "cupy_device", lambda: None)
    assert arrays.namespace("auto") is arrays.namespace("numpy") is np_compat
    assert arrays.backend_name("auto") == arrays.runtime_words("auto") == "numpy"
    for backend in ("cupy", "cupy-native"):
        words = f"backend '{backend}' needs CuPy and a CUDA device; install the gpu extra or use --backend numpy"
        with pytest.raises(ValueError, match=words) as caught:
            arrays.backend_name(backend)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="unknown backend 'abacus'; known: auto, numpy, cupy, cupy-native"):
        arrays.namespace("abacus")


def test_a_device_is_known_by_its_name(monkeypatch):
    count, named = [0], {"name": b"Some GPU"}
    runtime = SimpleNamespace(getDeviceCount=lambda: count[0], getDeviceProperties=lambda _: named)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    assert arrays.cupy_device() is None
    count[0] = 1
    assert arrays.cupy_device() == "Some GPU"
    named.clear()  # a driver that fails half-way
    assert arrays.cupy_device() is None


# One suite for every namespace: the whole pipeline on the same host draws, float64, relative 1e-9.

TASK = Task(
    d=6, r=2, L=10, J=2, link="cross", noise=0.3, samples=16.0, head_samples=300, validation=200, test=200, dtype="float64", chunk=128
)


@pytest.fixture
def on_xp(xp, monkeypatch):
    """Makes the pipeline run on xp under the backend's name "xp"."""
    plain = pipeline.namespace
    monkeypatch.setattr(pipeline, "namespace", lambda backend: xp if backend == "xp" else plain(backend))
    return xp


def close(there, here, rtol=1e-9):
    assert relative_error((there,), (here,)) <= rtol


@pytest.mark.parametrize("preprocessing", two_phase.PREPROCESSING)
def test_teacher_rows_agree(on_xp, preprocessing):
    task = dataclasses.replace(TASK, preprocessing=preprocessing)
    there, here = encode(task, SEED, "xp"), encode(task, SEED)
    close(there.residual.beta, here.residual.beta)
    assert there.residual.alpha == pytest.approx(here.residual.alpha, rel=1e-9, abs=1e-12)
    close(there.rows, here.rows)
    for role in ("train", "validation", "test"):
        ours, theirs = draw_samples(here, role), draw_samples(there, role)
        for name in ("x", "clean", "label"):
            close(getattr(theirs, name), getattr(ours, name))


@pytest.mark.parametrize("matching", two_phase.MATCHING)
def test_points_and_retrained_rows_agree(on_xp, matching):
    task = dataclasses.replace(TASK, matching=matching)
    there, here = encode(task, SEED, "xp"), encode(task, SEED)
    points = distil_points(here, 5)
    close(distil_points(there, 5), points)
    for reflected in (False, True):
        ours, theirs = (dataclasses.replace(e, task=dataclasses.replace(task, reflected=reflected)) for e in (here, there))
        rows, biases = fresh_network(ours, points, "retrain")
        rows_there, biases_there = fresh_network(theirs, there.student.asarray(points), "retrain")
        close(rows_there, rows)
        close(biases_there, biases)


def test_heads_and_line_inputs_agree(xp):
    rng = np.random.default_rng(3)
    rows, biases, x, y, v = (rng.standard_normal(shape) for shape in ((8, 4), 8, (60, 4), 60, 4))
    there = tuple(xp.asarray(a) for a in (rows, biases, x, y, v))
    phi, phi_there = heads.features(rows, biases, x), heads.features(there[0], there[1], there[2])
    close(phi_there, phi)
    penalties = (1e-4, 1e-2, 1.0)
    path, path_there = heads.ridge_path(phi, y, penalties), heads.ridge_path(phi_there, there[3], penalties)
    close(path_there, path)
    close(heads.risks(phi_there, path_there, there[3]), heads.risks(phi, path, y))
    close(heads.select(phi_there, path_there, there[3]), heads.select(phi, path, y))
    for m2 in (1, 8, 9, 20):
        close(heads.line_inputs(there[0], there[1], there[4], m2), heads.line_inputs(rows, biases, v, m2))


@pytest.mark.parametrize(("matching", "reflected"), [("squared", False), ("performance", True)])
def test_a_whole_trial_agrees(on_xp, matching, reflected, monkeypatch):
    """With penalties from 1e-4 on: a head at 1e-10 amplifies rounding to 1e-6, on every backend."""
    path = heads.ridge_path
    monkeypatch.setattr(heads, "ridge_path", lambda phi, y: path(phi, y, tuple(p for p in heads.PENALTIES if p >= 1e-4)))
    task = dataclasses.asdict(dataclasses.replace(TASK, matching=matching, reflected=reflected))
    config = task | {"seed": 1, "draw": 0, "m1": [2, 6], "m2": [5, 20]}
    there, here = risk_trial(config | {"backend": "xp"}), risk_trial(config | {"backend": "numpy"})
    for name, value in here.items():
        np.testing.assert_allclose(there[name], value, rtol=1e-9, err_msg=name)


def test_conditioning_of_rows_agrees(on_xp):
    config = dataclasses.asdict(TASK) | {"seed": 1, "draw": 0, "grid": [4, 9, 30]}
    there, here = rows_trial(config | {"backend": "xp"}), rows_trial(config | {"backend": "numpy"})
    for name, value in here.items():
        np.testing.assert_allclose(there[name], value, rtol=1e-7, err_msg=name)


@pytest.mark.gpu
def test_a_task_can_draw_on_the_device():
    if arrays.cupy_device() is None:
        pytest.skip("no CUDA device for CuPy")
    assert arrays.backend_name("cupy-native") == "cupy-native"
    there, here = encode(TASK, SEED, "cupy-native"), encode(TASK, SEED, "cupy")
    assert there.stream.native
    assert not here.stream.native
    assert relative_error((there.rows,), (here.rows,)) > 1e-3, "other samples of the same task"
    close(there.model.B, here.model.B)
    assert 0 < Bench.of(there).risk(teacher_network(Bench.of(there))) < 2


@pytest.mark.gpu
def test_the_device_draws_its_own_samples():
    if arrays.cupy_device() is None:
        pytest.skip("no CUDA device for CuPy")
    xp = arrays.namespace("cupy")
    for dtype in arrays.DTYPES:
        stream = GaussianStream(SEED, 20_000, 3, xp, dtype, 3000, native=True)
        (x, xi), (again, _) = stream.head(20_000), stream.head(5000)
        x, xi = to_numpy(x), to_numpy(xi)
        assert x.dtype == xi.dtype == dtype
        np.testing.assert_array_equal(to_numpy(again), x[:5000])
        z = np.column_stack([x, xi]).astype(np.float64)
        assert np.max(np.abs(z.T @ z / 20_000 - np.eye(4))) < 5 * np.sqrt(2 / 20_000)


def test_the_bench_lives_where_the_pipeline_does(on_xp):
    bench = Bench.of(encode(TASK, SEED, "xp"))
    assert array_namespace(bench.train.x, bench.validation.label, bench.test.clean) is on_xp
