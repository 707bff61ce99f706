"""What every test stands on: Hypothesis profiles, run-time shape checks, array namespaces and the data folder.

profiles    ci (default; derandomised, so a run is a function of the commit), dev (few random examples), deep (many);
            choose with --hypothesis-profile
shapes      jaxtyping signatures of `theory` and `sims` are checked by beartype on every call; int passes for float (PEP 484)
xp          numpy, array_api_strict, torch and cupy in turn, by way of array_api_compat
data_root   the folder of image data: $DISTILL_DATA, or `shared/data` in or beside the checkout
"""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Before anything imports the packages: modules already loaded would stay unchecked.
# Checks draw no random item of a container: a random draw inside a strategy would make the examples irreproducible.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, is_random=False))"
install_import_hook(["theory", "sims"], CHECKER)

# A conformance suite runs one inherited test from several classes, which Hypothesis would otherwise take for a mistake.
INHERITED = [HealthCheck.differing_executors]
settings.register_profile("dev", max_examples=10, deadline=None, database=None, print_blob=True, suppress_health_check=INHERITED)
settings.register_profile(
    "ci", max_examples=30, deadline=None, database=None, print_blob=True, suppress_health_check=INHERITED, derandomize=True
)
settings.register_profile("deep", max_examples=500, deadline=None, database=None, print_blob=True, suppress_health_check=INHERITED)
settings.load_profile("ci")

ROOT = Path(__file__).resolve().parents[1]
NAMESPACES = {
    "numpy": "array_api_compat.numpy",
    "array_api_strict": "array_api_strict",
    "torch": "array_api_compat.torch",
    "cupy": "array_api_compat.cupy",
}


def _namespace(name: str) -> Any:
    if name == "cupy":
        cupy = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
        if not cupy.is_available():
            pytest.skip("no CUDA device for CuPy")
    return importlib.import_module(NAMESPACES[name])


# Session scope, so that Hypothesis tests may use it (a function-scoped fixture would not be renewed between examples).
@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.gpu if name == "cupy" else ()) for name in NAMESPACES])
def xp(request: pytest.FixtureRequest) -> Any:
    """An array namespace."""
    return _namespace(request.param)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache of decoded images and transforms; child processes inherit this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the image data sets; tests that need it skip where there is none."""
    candidates = (
        [Path(os.environ["DISTILL_DATA"])] if "DISTILL_DATA" in os.environ else [ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
    )
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip(f"no image data: set DISTILL_DATA (looked for {', '.join(str(folder) for folder in candidates)})")
