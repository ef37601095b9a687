"""A plan is taken from the cache only when it is whole and ours; else it is built, once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dicom_node.errors import ConfigurationError
from tests.worker.engines.build import SIZE, plan_key, small_model
from worker.engines.tensorrt.builder import build_plan
from worker.engines.tensorrt.plan_cache import PlanCache


class Workshop:
    """Builds plans that say how many were built before."""

    def __init__(self) -> None:
        self.built = 0

    def __call__(self) -> bytes:
        self.built += 1
        return f"plan {self.built}".encode()


@pytest.fixture
def cache(tmp_path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


@pytest.fixture
def build() -> Workshop:
    return Workshop()


def the(directory: Path, suffix: str) -> Path:
    """The only file with that suffix."""
    (found,) = (directory / "plans").glob(f"*.{suffix}")
    return found


def test_a_plan_is_built_once(cache, build):
    """The second start takes what the first has kept."""
    assert cache.get(plan_key(), build) == b"plan 1"
    assert cache.get(plan_key(), build) == b"plan 1"


@pytest.mark.parametrize(
    "change",
    [
        {"library": "tensorrt_rtx"},
        {"version": "11.0.0"},
        {"compute_capability": "8.9"},
        {"card": "NVIDIA H200"},
        {"driver": "590.1"},
        {"onnx_sha256": "1" * 64},
        {"precision": "f32"},
        {"buckets": (1, 2, 4)},
        {"size": 320},
        {"flags": ()},
        {"format": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_key_is_another_plan(cache, build, change):
    """Whatever part of the key differs, the plan is built anew, and the first stays."""
    cache.get(plan_key(), build)
    assert cache.get(plan_key(**change), build) == b"plan 2"
    assert cache.get(plan_key(), build) == b"plan 1"


def test_a_plan_with_another_digest_is_built_again(cache, build, tmp_path):
    """One bit that is another makes another plan, and it is not the one that runs."""
    cache.get(plan_key(), build)
    the(tmp_path, "plan").write_bytes(b"plan 0")
    assert cache.get(plan_key(), build) == b"plan 2"
    assert cache.get(plan_key(), build) == b"plan 2"


def test_a_foreign_plan_is_not_taken(cache, build, tmp_path):
    """A plan for another card that was copied under our name is not run, although its digest is right."""
    cache.get(plan_key(), build)
    told = json.loads(the(tmp_path, "json").read_bytes())
    told["key"]["card"] = "NVIDIA L4"
    the(tmp_path, "json").write_text(json.dumps(told))
    assert cache.get(plan_key(), build) == b"plan 2"


@pytest.mark.parametrize("suffix", ["json", "plan"])
@pytest.mark.parametrize("content", [None, b"", b"{"], ids=["gone", "empty", "cut off"])
def test_half_a_plan_is_none(cache, build, tmp_path, suffix, content):
    """What a crash or a full disk left behind is built again."""
    cache.get(plan_key(), build)
    path = the(tmp_path, suffix)
    path.unlink() if content is None else path.write_bytes(content)
    assert cache.get(plan_key(), build) == b"plan 2"


def test_nobody_else_may_look_or_write(cache, build, tmp_path):
    """Directory and files have private modes."""
    cache.get(plan_key(), build)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "plans").iterdir()}
    assert modes == {0o600}
    assert (tmp_path / "plans").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["directory", "json", "plan"])
def test_what_others_could_write_is_not_run(cache, build, tmp_path, what):
    """A plan that another user may have put there is built again, and is private then."""
    cache.get(plan_key(), build)
    path = tmp_path / "plans" if what == "directory" else the(tmp_path, what)
    path.chmod(0o777)
    assert cache.get(plan_key(), build) == b"plan 2"
    assert cache.get(plan_key(), build) == b"plan 2"


def test_a_dropped_plan_is_built_again(cache, build):
    """A plan that turned out not to load is forgotten."""
    cache.get(plan_key(), build)
    cache.drop(plan_key())
    assert cache.get(plan_key(), build) == b"plan 2"


def test_a_build_that_fails_leaves_nothing(cache, build, tmp_path):
    """The next start tries again."""

    def fail() -> bytes:
        raise ConfigurationError("no memory")

    with pytest.raises(ConfigurationError, match="no memory"):
        cache.get(plan_key(), fail)
    assert cache.get(plan_key(), build) == b"plan 1"


def test_a_place_that_is_no_directory_is_refused(tmp_path):
    """The setting to change stands in the sentence."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"worker\.engine_cache"):
        PlanCache(tmp_path / "file")


_STARTER = """
import sys
from pathlib import Path
from tests.worker.engines.build import plan_key
from worker.engines.tensorrt.plan_cache import PlanCache

directory, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()

def build():
    with (directory / "built").open("a") as file:
        file.write(name + "\\n")
    return b"plan of " + name.encode() * 500_000

print(PlanCache(directory / "plans").get(plan_key(), build)[:9].decode())
"""


def test_of_many_starts_at_once_one_builds(tmp_path):
    """Processes that start together all get the plan that one of them has built."""
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", _STARTER, str(tmp_path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for starter in starters:
        assert starter.stdout.readline() == "ready\n"
    for starter in starters:
        starter.stdin.write("\n")
        starter.stdin.flush()
    told = [starter.communicate(timeout=120)[0].split("\n")[-2] for starter in starters]
    (builder,) = (tmp_path / "built").read_text().split()
    assert told == [f"plan of {builder}"] * 4


def test_a_builder_that_was_killed_holds_up_nobody(tmp_path):
    """The lock and the half-written file of a process that died are no obstacle."""
    script = _STARTER.replace("with (directory", "import os; os.kill(os.getpid(), 9)\n    with (directory")
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "0"],
        input="\n",
        text=True,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9
    assert PlanCache(tmp_path / "plans").get(plan_key(), lambda: b"a plan") == b"a plan"


def test_a_real_plan_comes_back_byte_for_byte(library, cache):
    """What TensorRT has built is what a later start loads."""
    built: list[bytes] = []

    def build() -> bytes:
        built.append(build_plan(library, small_model(), buckets=(1, 2), size=SIZE))
        return built[-1]

    key = plan_key(library=library.name, version=library.version)
    assert cache.get(key, build) == cache.get(key, build) == built[0]
    assert len(built) == 1
