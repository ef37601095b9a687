"""Bad inputs that are tested where the code is that meets them: the rest of the list, by name.

What is not here is in the tables of this folder. Each line says what must not go wrong, and which test
would notice.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

ELSEWHERE = {
    # Transport
    "one association too many": "dicom_node/test_association.py::test_rejects_one_association_too_many",
    "half-open connections": "dicom_node/test_association.py::test_half_open_connections_take_no_seat",
    "the end in mid-data-set": "dicom_node/test_association.py::test_an_end_in_mid_data_set_leaves_nothing",
    "unlisted classes and syntaxes": "dicom_node/test_association.py::test_accepts_only_what_is_configured",
    "any damaged request": "dicom_node/test_association.py::test_a_damaged_request_is_read_or_refused",
    "one UID on ten associations": "dicom_node/test_receive.py::test_ten_senders_of_one_object",
    "noise for a data set": "dicom_node/test_receive.py::test_refuses_what_it_cannot_read",
    "a disk that is full": "dicom_node/test_receive.py::test_a_full_disk_is_transient",
    "reports that are none": "dicom_node/test_commitment.py::test_refuses_what_is_no_report",
    "a report without an end": "dicom_node/test_commitment.py::test_refuses_a_report_without_an_end",
    # Data set
    "the same UID, other pixels": "integration/test_failures.py::"
    "test_other_content_under_the_same_uid_is_kept_and_flagged",
    "30,000 elements": "dicom_node/test_header.py::test_refuses_what_cannot_be_read",
    "identifiers in any log": "integration/test_privacy.py::test_no_identifier_is_written_elsewhere",
    "text of the header in the audit": "worker/test_grey.py::"
    "test_no_text_of_the_header_is_in_the_window_label",
    # Pixels
    "pixels too short and too long": "worker/test_decode.py::test_too_short_and_too_long",
    "headers that contradict the pixels": "worker/test_decode.py::test_headers_that_contradict_the_pixels",
    "frames of another size": "worker/test_decode.py::test_a_frame_of_another_size",
    "colour in a grey header": "worker/test_decode.py::test_colour_in_a_grey_header",
    "truncated frames": "worker/test_decode.py::test_a_truncated_frame",
    "missing tiles": "worker/test_decode.py::test_a_film_that_lacks_tiles",
    "MONOCHROME1": "worker/test_grey.py::test_inverted_exactly_once",
    "slope 0 or NaN": "worker/test_grey.py::test_a_rescale_without_meaning_is_refused",
    "a window of width 0": "worker/test_grey.py::test_a_window_that_shows_nothing_is_not_used",
    "a constant film": "worker/test_decode.py::test_a_film_without_contrast_is_set_aside",
    "a decoder that hangs": "worker/test_guard.py::test_a_child_that_hangs_at_a_film",
    "a decoder that crashes": "worker/test_guard.py::test_a_film_that_crashes_every_child",
    "films larger than the budget": "worker/test_guard.py::test_a_bomb",
    # Engines
    "an ONNX that does not parse": "worker/engines/test_tensorrt_builder.py::"
    "test_a_model_that_cannot_be_built_is_refused_in_one_sentence",
    "a plan of another version, card or driver": "worker/engines/test_plan_cache.py::"
    "test_another_key_is_another_plan",
    "a plan with another digest": "worker/engines/test_plan_cache.py::"
    "test_a_plan_with_another_digest_is_built_again",
    "a plan that others may write": "worker/engines/test_plan_cache.py::"
    "test_what_others_could_write_is_not_run",
    "too little GPU memory": "worker/engines/test_cuda.py::test_too_little_memory_is_said",
    "a batch over the profile": "worker/engines/test_batching.py::"
    "test_a_batch_over_the_largest_bucket_is_refused",
    "no number out of the network": "worker/test_scorer.py::"
    "test_no_number_is_the_film_s_fault_or_the_engine_s",
    "a device that hangs": "worker/engines/test_batching.py::test_a_device_that_hangs_is_lost",
    "a device that is lost": "integration/test_device_loss.py::test_a_lost_device_costs_no_study",
    # Semantics
    "lateral, CT, hand, colour, many frames": "worker/test_eligibility.py::"
    "test_what_is_not_analysed_has_its_reason",
    "no body part, study dates 1800 and 2999": "worker/test_eligibility.py::test_what_is_open_is_named",
    "a lateral and a CT at the PACS": "integration/test_orthanc.py::test_what_is_not_analysed_says_why",
    "two patients in a study": "integration/test_failures.py::"
    "test_two_patients_in_one_study_are_not_reported",
    "an image after the result": "integration/test_orthanc.py::test_late_image_supersedes_the_result",
    "our own output": "integration/test_orthanc.py::test_our_own_results_sent_back_are_ignored",
    "a PACS that answers A700": "worker/test_deliver.py::test_patience_with_a_full_pacs_does_not_end",
    "a PACS that answers Bxxx": "dicom_node/test_store_scu.py::test_brings_the_status_of_the_peer",
    "a PACS that answers 0122": "worker/test_deliver.py::test_answers_that_end_the_sending",
    "a PACS that answers nothing": "dicom_node/test_store_scu.py::test_silence_leaves_the_outcome_unknown",
    # Training
    "a catalogue that is no table": "training/test_datasets.py::test_a_damaged_catalogue_is_one_sentence",
    "cut, coloured and 16-bit films": "training/test_datasets.py::"
    "test_a_film_that_is_no_grey_picture_is_named",
    "a class without examples": "training/test_datasets.py::test_a_split_without_a_class_is_refused",
    "a split that leaks": "training/test_splits.py::test_check_names_every_leak",
    "weights with other keys": "training/test_importers.py::"
    "test_what_does_not_fit_is_named_and_nothing_is_taken",
    "weights that run code": "training/test_importers.py::test_a_pickled_object_is_never_opened",
}


@pytest.mark.parametrize("test", ELSEWHERE.values(), ids=ELSEWHERE)
def test_there_is_a_test(test: str) -> None:
    """The test that is named for a bad input exists."""
    path, _, name = test.partition("::")
    tree = ast.parse(Path(ROOT / "tests" / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
