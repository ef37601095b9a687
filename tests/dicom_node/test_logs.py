import subprocess
import sys

WARN = """
from pydicom.dataset import Dataset
from dicom_node.logs import configure_logs
configure_logs(level="DEBUG")
Dataset().PatientBirthDate = "SECRET"
"""


def test_what_pydicom_warns_of_is_not_said() -> None:
    """A value that pydicom warns of, and quotes, does not reach the logs."""
    done = subprocess.run([sys.executable, "-c", WARN], capture_output=True, text=True, check=True)
    assert "SECRET" not in done.stdout + done.stderr


LOG_TO_A_FULL_DISK = """
import threading
from dicom_node.logs import configure_logs, get_logger
configure_logs(style="json")
log = get_logger("test")
for number in range(1000):
    log.info("event", number=number)
print("goes on", flush=True)
"""


def test_a_log_that_cannot_be_written_ends_no_work() -> None:
    """Where the disk of the log is full, lines are lost and nothing else is."""
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        done = subprocess.run(
            [sys.executable, "-c", LOG_TO_A_FULL_DISK],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
        )
    assert done.stdout == "goes on\n"
