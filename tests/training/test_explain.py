"""The tests of maps, tested on maps and networks whose answer is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from training.device import best_device
from training.explain import localise, maps, randomise, regions, removal
from training.explain.lungs import Lungs
from training.networks.densenet import DenseNet121

pytestmark = pytest.mark.training

DEVICE = best_device(half=False)


def half_mask(side=64):
    mask_HW = np.zeros((side, side), bool)
    mask_HW[:, : side // 4] = True
    return mask_HW


def test_a_map_within_the_lungs_gives_one():
    """All mass inside is 1, all outside is 0, and what is negative counts for nothing."""
    mask_HW = half_mask()
    inside_HW = np.where(mask_HW, 2, -5).astype(np.float32)
    assert localise.mass_inside(inside_HW, mask_HW) == 1
    assert localise.mass_inside(-inside_HW, mask_HW) == 0
    assert localise.points_inside(inside_HW, mask_HW)
    assert not localise.points_inside(-inside_HW, mask_HW)
    assert np.isnan(localise.mass_inside(-np.ones_like(inside_HW), mask_HW))


def test_a_random_map_gives_chance():
    """Maps of noise have the lungs' share of mass and of maxima inside, and chance is in the interval."""
    random = np.random.default_rng(0)
    maps_NHW = random.random((400, 64, 64), np.float32)
    lungs = [Lungs(mask_HW=half_mask(), average=False)] * 400
    found = localise.locate(maps_NHW, lungs, np.arange(400).astype(str))
    assert found.lung_share.value == found.lung_share.low == 0.25
    assert found.mass.value == pytest.approx(0.25, abs=0.005)
    assert found.pointing.low < 0.25 < found.pointing.high
    assert found.pointing_above_share.low < 0 < found.pointing_above_share.high
    assert found.gaussian_mass.value < 0.25


def test_films_without_any_positive_evidence_are_counted_and_left_out():
    """A map that is nowhere above 0 has no mass to share."""
    maps_NHW = np.stack([np.ones((64, 64)), -np.ones((64, 64))]).astype(np.float32)
    lungs = [Lungs(mask_HW=half_mask(), average=False)] * 2
    found = localise.locate(maps_NHW, lungs, np.array(["a", "b"]))
    assert (found.films, found.without_positive) == (2, 1)
    assert found.mass.value == pytest.approx(0.25)
    nothing = localise.locate(maps_NHW[1:], lungs[1:], np.array(["b"]))
    assert (nothing.without_positive, nothing.mass, nothing.mass_above_share) == (1, None, None)


def test_likeness_of_maps():
    """A map is like itself, its ranks survive any growing scale, and noise is like nothing."""
    random = np.random.default_rng(0)
    one_HW, other_HW = random.random((2, 64, 64), np.float32)
    assert maps.rank_correlation(one_HW, np.exp(one_HW)) == pytest.approx(1)
    assert maps.rank_correlation(one_HW, -one_HW) == pytest.approx(-1)
    assert maps.rank_correlation(one_HW, np.ones_like(one_HW)) == 0
    assert maps.structural_similarity(one_HW, 3 * one_HW + 1) == pytest.approx(1, abs=1e-5)
    assert abs(maps.rank_correlation(one_HW, other_HW)) < 0.1
    assert maps.structural_similarity(one_HW, other_HW) < 0.2


@pytest.fixture(scope="module")
def network():
    """A network whose normalisations have settled, and two films."""
    torch.manual_seed(1)
    films_NHW = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    films_NHW = np.stack([cv2.GaussianBlur(film_HW, (0, 0), 5) for film_HW in films_NHW])
    model = DenseNet121()
    with torch.no_grad():
        model.train()(DEVICE.pixels(torch.from_numpy(films_NHW)))
    return model.eval(), films_NHW


def test_a_randomised_network_changes_its_map(network):
    """Part after part is drawn anew and stays so, and the network that came in stays as it is."""
    model, films_NHW = network
    before = {name: value.clone() for name, value in model.state_dict().items()}
    original = maps.activation_maps(model, films_NHW, DEVICE), maps.saliency_maps(model, films_NHW, DEVICE)
    found = randomise.cascade(model, films_NHW, np.array(["a", "b"]), original, DEVICE, seed=0)
    assert [part.part for part in found] == list(randomise.PARTS)
    assert all(part.cam_correlation.value < 0.9 for part in found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    changed = []
    for _, drawn in randomise.randomise(model, films_NHW, DEVICE, seed=0):
        same = {name for name, value in drawn.state_dict().items() if torch.equal(value, before[name])}
        changed.append(sum(name.endswith("weight") and name not in same for name in before))
        assert "features.conv0.weight" in same or len(changed) == len(randomise.PARTS)
    assert changed == sorted(set(changed))


def test_a_network_that_is_not_randomised_keeps_its_map(network):
    """The figure is 1 where nothing changes: the same network twice."""
    model, films_NHW = network
    one, two = (maps.activation_maps(model, films_NHW, DEVICE) for _ in range(2))
    assert maps.rank_correlation(one[0], two[0]) == pytest.approx(1)
    assert one.shape == films_NHW.shape


class Bright(torch.nn.Module):
    """A network whose logit is how bright the upper left quarter is, and nothing else."""

    def forward(self, pixels_B1HW):
        quarter = pixels_B1HW[:, 0, :32, :32].mean(dim=(1, 2))
        return 20 * (quarter - 0.75), pixels_B1HW[:, 0]


def test_the_map_that_is_right_wins_deletion_and_insertion():
    """By the map of what the score rests on it falls and rises sooner than by a random one."""
    film_HW = np.zeros((64, 64), np.uint8)
    film_HW[:32, :32] = 255
    films_NHW = np.stack([film_HW] * 6)
    right_NHW = films_NHW.astype(np.float32)
    found = removal.remove(
        Bright(),
        films_NHW,
        np.array(list("abcdef")),
        {"right": right_NHW, "wrong": -right_NHW},
        DEVICE,
        temperature=1.0,
        seed=0,
    )
    right, wrong, random = found
    assert right.deletion.value < random.deletion.value < wrong.deletion.value
    assert right.insertion.value > random.insertion.value > wrong.insertion.value
    assert right.deletion_below_random.low > 0
    assert wrong.insertion_above_random.high < 0
    assert random.deletion_below_random.value == 0


def test_deletion_begins_whole_and_ends_empty():
    """The first film is the film, the last has nothing of it, and in between the highest points go first."""
    film_HW = np.random.default_rng(0).integers(0, 100, (64, 64), dtype=np.uint8)
    map_HW = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    films = removal.deleted(film_HW, map_HW)
    np.testing.assert_array_equal(films[0], film_HW)
    assert (films[-1] == 127).all()
    assert (films[5][32:] == 127).all()
    np.testing.assert_array_equal(films[5][:32], film_HW[:32])
    np.testing.assert_array_equal(removal.inserted(film_HW, map_HW)[-1], film_HW)


def test_what_is_read_outside_the_lungs_is_gone_without_it():
    """A network that reads one corner ranks perfectly until the corner is grey, and the other way about."""
    random = np.random.default_rng(0)
    films_NHW, lungs = (
        random.integers(0, 100, (20, 64, 64), np.uint8),
        [Lungs(mask_HW=half_mask(), average=False)] * 20,
    )
    labels_N, patients_N = np.arange(20) % 2 == 0, np.arange(20).astype(str)
    films_NHW[labels_N, 60:, :4] = 200  # in a lung
    films_NHW[labels_N, 60:, 60:] = 200  # far from any
    for corner, alone, without in ((slice(0, 4), 1.0, 0.5), (slice(60, 64), 0.5, 1.0)):
        found = regions.cover(
            lambda shown_NHW, x=corner: shown_NHW[:, 60:, x].mean(axis=(1, 2), dtype=np.float32) // 50,
            films_NHW,
            lungs,
            labels_N,
            patients_N,
        )
        assert found.whole.value == 1
        assert (found.lungs_alone.value, found.without_lungs.value) == (alone, without)
