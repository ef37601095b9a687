"""What augmentation must keep and must change."""

from __future__ import annotations

import numpy as np
import pytest

from training.films.augment import augment, shrink

pytestmark = pytest.mark.training


def test_a_view_depends_on_the_generator_alone():
    """The same generator gives the same view; the next draw gives another."""
    film_HW = np.random.default_rng(1).integers(0, 256, (80, 80), dtype=np.uint8)
    views = [augment(film_HW, 64, np.random.default_rng(seed)) for seed in (5, 5, 6)]
    assert views[0].shape == (64, 64)
    assert views[0].dtype == np.uint8
    np.testing.assert_array_equal(views[0], views[1])
    assert (views[0] != views[2]).any()


def test_the_film_itself_is_not_touched():
    """Augmentation never writes into the resident films."""
    film_HW = np.full((64, 64), 90, np.uint8)
    for seed in range(20):
        augment(film_HW, 64, np.random.default_rng(seed))
    assert (film_HW == 90).all()


def test_films_shrink_to_a_little_more_than_the_view():
    """A quarter more is kept, so that a crop is not enlarged, and never more than there is."""
    films_NHW = np.zeros((1, 320, 320), np.uint8)
    assert shrink(films_NHW, 96).shape == (1, 120, 120)
    assert shrink(films_NHW, 320).shape == (1, 320, 320)
