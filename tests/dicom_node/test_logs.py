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
