"""What the scanner adds to a synthetic scan, and how it grows with ``--variety``."""

from dataclasses import replace

import numpy as np
import pytest

from data.phantom.contrast import MODALITIES
from data.phantom.heads import Grid, Head, square_distance, warp_head
from data.phantom.scanner import AIR_MM, SNR, Scanner, draw_scanner, measure, receive_field

LEVELS = {"white": 80.0, "noise": 1.6}
GRID = Grid((4.0, 4.0, 4.0))
DWI = MODALITIES["dwi"]


@pytest.fixture(scope="module")
def head() -> Head:
    return warp_head(GRID, 3.0, np.random.default_rng(0))


def scanners(variety: float, n: int = 60, modality=DWI) -> list[Scanner]:
    return [draw_scanner(modality, LEVELS, variety, np.random.default_rng(seed)) for seed in range(n)]


def plain(**changes) -> Scanner:
    """A scanner that adds nothing but what is asked for."""
    return replace(scanners(0.0, 1)[0], **{"noise": 0.0, "pile_up": 0.0, **changes})


def scan_of(signal: np.ndarray, head: Head, **changes) -> np.ndarray:
    """Without an edge between the brain and what is outside of it, which is measured by itself."""
    return measure(
        signal,
        replace(head, brain=np.ones_like(head.brain)),
        replace(DWI, ringing=0.0),
        plain(**changes),
        np.random.default_rng(1),
    )


def test_variety_0_adds_nothing_but_noise_and_a_slight_field():
    absent = ("coil", "vertex", "sheet", "shift_mm", "slice_mm", "gap", "gain", "in_plane_mm", "apodisation")
    for scanner in scanners(0.0, 20):
        assert not any(getattr(scanner, name) for name in (*absent, "ghost", "motion", "blur_mm"))
        assert (scanner.noise, scanner.bias, scanner.pile_up) == (LEVELS["noise"], DWI.bias, DWI.pile_up)


def test_noise_reaches_its_whole_range_and_faults_grow_in_number_and_strength():
    noise = np.array([scanner.noise for scanner in scanners(1.0)]) / LEVELS["white"]
    assert 1 / SNR[1] <= noise.min() < 1.5 / SNR[1] and 0.7 / SNR[0] < noise.max() <= 1 / SNR[0]
    for name in ("coil", "slice_mm", "in_plane_mm", "ghost", "motion"):
        counts = [sum(getattr(scanner, name) > 0 for scanner in scanners(variety)) for variety in (0.5, 1.0)]
        assert 15 < counts[0] < 45 and counts[1] == 60
        strongest = [max(getattr(scanner, name) for scanner in scanners(variety)) for variety in (0.5, 1.0)]
        assert strongest[0] <= strongest[1]


def test_coil_brightens_one_side_up_to_twice_at_half_variety(head):
    ratios = []
    for scanner in scanners(0.5, 30):
        alone = replace(scanner, bias=0.0, vertex=0.0, pile_up=0.0)
        field = receive_field(head, alone, np.random.default_rng(2))[head.brain]
        ratios.append(np.percentile(field, 99.9) / field.min())
    assert min(ratios) == pytest.approx(1) and 1.4 < max(ratios) < 2.1


def test_vertex_is_dim_and_the_rest_is_not(head):
    field = receive_field(head, plain(bias=0.0, vertex=1.0), np.random.default_rng(2))
    height = head.template_mm[2]
    assert field[head.brain & (height > 145)].mean() < 0.7
    np.testing.assert_allclose(field[head.brain & (height < 110)], 1, atol=1e-6)


def test_signal_piles_up_in_thin_sheets_beside_air_alone(head):
    flat, sheets = (receive_field(head, plain(pile_up=0.5, sheet=sheet), np.random.default_rng(2)) for sheet in (0, 4))
    ratio = (sheets / flat)[head.brain]
    assert 3 < ratio.max() <= 5 and ratio.min() == 1 and np.mean(ratio > 1.5) < 0.03
    near = [square_distance(head.template_mm, place) < 40**2 for place in AIR_MM]
    assert (ratio[~(near[0] | near[1])[head.brain]] < 1.1).all()


COARSE = [{"in_plane_mm": 8.0}, {"in_plane_mm": 8.0, "is_linear": True}, {"slice_mm": 12.0, "gap": 0.3}]


@pytest.mark.parametrize("changes", [*COARSE, {"apodisation": 1.0}])
def test_resolution_leaves_a_plain_signal_and_spreads_a_point(head, changes):
    even = scan_of(np.full(GRID.shape, 50, np.float32), head, **changes)
    np.testing.assert_allclose(even, 50, rtol=1e-4)
    point = np.zeros(GRID.shape, np.float32)
    middle = tuple(np.argwhere(head.brain)[head.brain.sum() // 2])
    point[middle] = 100
    assert scan_of(point, head).max() == pytest.approx(100)
    assert scan_of(point, head, **changes)[middle] < 75


def test_thick_slices_are_smooth_between_each_other_and_as_bright(head):
    signal = np.random.default_rng(0).uniform(40, 60, GRID.shape).astype(np.float32)
    thick = scan_of(signal, head, slice_mm=12.0)
    assert np.abs(np.diff(thick, axis=2)).mean() < 0.5 * np.abs(np.diff(signal, axis=2)).mean()
    np.testing.assert_allclose(thick[:, :, 2:-2].mean(), signal[:, :, 2:-2].mean(), rtol=0.01)


def test_ghost_lies_half_a_field_of_view_along_the_phase_encoding(head):
    point = np.zeros(GRID.shape, np.float32)
    point[24, 10, 20] = 100
    scan = scan_of(point, head, ghost=0.1)
    assert scan[24, 10, 20] == pytest.approx(100, rel=0.01)
    assert scan[24, 10 + GRID.shape[1] // 2, 20] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("changes", [{}, {"in_plane_mm": 8.0}, {"slice_mm": 12.0}, {"apodisation": 1.0}])
def test_noise_is_as_strong_whatever_the_resolution(head, changes):
    signal = np.full(GRID.shape, 100, np.float32)
    scan = scan_of(signal, head, noise=5.0, **changes)
    deviation = scan[:, :, 12].std() if "slice_mm" not in changes else scan[:, :, 1].std()  # a slice's middle
    assert deviation == pytest.approx(5, rel=0.1)


def test_shift_moves_the_signal_beside_air_alone(head):
    signal = np.random.default_rng(0).uniform(40, 60, GRID.shape).astype(np.float32)
    moved = scan_of(signal, head, shift_mm=4.0)
    changed = np.abs(moved - signal) > 1
    assert changed.any() and not changed[head.template_mm[2] > 120].any()
