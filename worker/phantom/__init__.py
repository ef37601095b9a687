"""Synthetic chest radiographs: a physical projection of a generated anatomy, and labelled as such.

They show that the whole way works, and stand in tests where real films may not. They prove nothing
about how well a model reads real patients.
"""

from worker.phantom.dataset import PATIENT_ID_PREFIX, phantom_dataset
from worker.phantom.radiograph import radiograph

__all__ = ["PATIENT_ID_PREFIX", "phantom_dataset", "radiograph"]
