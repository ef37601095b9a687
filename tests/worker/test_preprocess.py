import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from worker.preprocess import SIZE, percentiles, to_input


@settings(max_examples=200, deadline=None)
@given(
    arrays(
        st.sampled_from([np.uint8, np.uint16, np.float32]),
        array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.integers(0, 255),
    ),
    st.floats(0, 100),
)
def test_percentiles_are_those_of_numpy(sample_HW, share):
    """The histogram gives to the bit what sorting gives, for every type of film and any share."""
    assert percentiles(sample_HW, (share, 99.5)).tolist() == np.percentile(sample_HW, (share, 99.5)).tolist()


def test_percentiles_of_sixteen_bits():
    """All of the 16 bits count, and a film that is not contiguous is read as it lies."""
    film_HW = np.random.default_rng(0).integers(0, 65536, (401, 333)).astype(np.uint16)[::2, ::3]
    assert (percentiles(film_HW, (0.5, 99.5)) == np.percentile(film_HW, (0.5, 99.5))).all()


@pytest.mark.parametrize("shape", [(900, 700), (SIZE, SIZE), (200, 1500)])
def test_scale_of_grey_does_not_matter(shape):
    """A film at half its contrast and with other black gives the same input to one level."""
    film_HW = np.random.default_rng(0).integers(0, 50_000, shape).astype(np.uint16)
    expected = to_input(film_HW).astype(int)
    assert expected.shape == (SIZE, SIZE)
    assert abs(to_input(film_HW // 2 + 1000) - expected).max() <= 1


def test_film_without_contrast_is_black():
    """A constant film has nothing to stretch."""
    assert not to_input(np.full((500, 400), 1234, np.uint16)).any()
