"""The names by which our results are known, and the coded concepts that they use."""

from __future__ import annotations

from dicom_node.uids import derive_uid

INSTANCE_CREATOR_UID = derive_uid("covariance", "instance creator")
"""InstanceCreatorUID (0008,0014) of all that we write: by it a result that comes back is known as ours."""

SR_SERIES_DESCRIPTION = "AI CXR report - RESEARCH ONLY"
SC_SERIES_DESCRIPTION = "AI CXR heatmap - RESEARCH ONLY"
OWN_SERIES_DESCRIPTIONS = frozenset({SR_SERIES_DESCRIPTION, SC_SERIES_DESCRIPTION})
