"""Batch sizes that a GPU engine is made for: a batch is padded to the next one."""

from __future__ import annotations

from collections.abc import Sequence

from dicom_node.errors import ConfigurationError

BUCKETS = (1, 2, 4, 8, 16, 32)


def buckets_up_to(max_batch: int) -> tuple[int, ...]:
    """The buckets that batches of up to `max_batch` films need, in ascending order."""
    enough = bucket_for(max_batch, BUCKETS)
    return tuple(bucket for bucket in BUCKETS if bucket <= enough)


def bucket_for(films: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds so many films.

    Raises:
        ConfigurationError: none does.
    """
    for bucket in buckets:
        if films <= bucket:
            return bucket
    raise ConfigurationError(
        f"A batch of {films} films is over {buckets[-1]}, the largest that this engine was built for: set "
        f"worker.max_batch to {buckets[-1]} or less."
    )
