"""Fuzz the decoders of what strangers send: `python -m tests.fuzz [--seconds 20] [target ...]`.

Each target runs in a process of its own, under Atheris (libFuzzer for Python), for a bounded time,
from its kept corpus. What it finds lies in `build/fuzz/<target>/`, with the command that repeats it;
mend it, and give it a test with a name.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import subprocess
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = ("pdu", "command", "header", "pixels", "film")
LONGEST_INPUT = 4096
MEMORY_MB = 2048
SLOWEST_SECONDS = 20


def corpus(target: str) -> Path:
    """The inputs that are kept of a target."""
    return HERE / "corpus" / target


def fuzz(target: str, seconds: int, work: Path) -> int:
    """Run one target in a child; its exit status, 0 where nothing was found."""
    found = work / target
    (found / "corpus").mkdir(parents=True, exist_ok=True)
    options = [
        f"-artifact_prefix={found}/",
        f"-max_len={LONGEST_INPUT}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={SLOWEST_SECONDS}",
        f"-max_total_time={seconds}",
        "-print_final_stats=1",
    ]
    command = [sys.executable, "-m", "tests.fuzz", "--child", target, *options]
    # What is new goes to the first folder, and the kept one stays as it is.
    command += [str(found / "corpus"), str(corpus(target))]
    log = found / "log"
    with log.open("w") as output:
        status = subprocess.run(
            command, cwd=HERE.parent.parent, check=False, stdout=output, stderr=subprocess.STDOUT
        ).returncode
    if status:
        _say(f"{log.read_text(errors='replace')[-4000:]}\nThe whole log: {log}")
    return status


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _child(target: str, arguments: list[str]) -> None:
    import atheris
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    with atheris.instrument_imports(
        include=["dicom_node", "worker", "pynetdicom.pdu", "pynetdicom.pdu_items"]
    ):
        module = importlib.import_module(f"tests.fuzz.{target}")
    atheris.Setup([sys.argv[0], *arguments], module.one_input)
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help=" ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--work", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    failed = []
    for target in options.targets or TARGETS:
        if fuzz(target, options.seconds, options.work.absolute()):
            failed.append(target)
        _say(f"{target}: {'FOUND something, see above' if target in failed else 'nothing found'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
