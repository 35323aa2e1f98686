"""What lets a scan in: looked at once, by several processes, and remembered until its files change."""

import shutil
from functools import partial

import numpy as np
import pytest

from data.batches.cutting import cut_cohort
from data.scans.cohort import Case
from data.scans.grid import Grid
from data.scans.open import FACTS_FILE
from data.scans.prepared import brains_in, cached_scan
from tests.drawn import admit, ball
from tests.test_grid import case_of
from utils import progress as progress_module
from utils.errors import UserError
from utils.progress import progress

GRID = Grid((1, 24, 30, 26))  # that of `ball`


def cohort_in(folder, n: int = 3) -> list[Case]:
    """Balls with a lesion that partly lies outside the brain."""
    lesion = np.zeros((24, 30, 26), bool)
    lesion[12, 13:17, 0:9] = True
    return [case_of(folder, ball(seed=i)[0], ball()[1], lesion, name=f"sub-{i}") for i in range(n)]


def admitted(cases: list[Case], folder, num_workers: int = 0):
    return admit(cases, GRID, brains_in(folder), num_workers, folder)


def put_voxel(case: Case, value: float) -> None:
    scan = np.load(case.scan)
    scan.flat[7] = value
    np.save(case.scan, scan)


@pytest.fixture
def looks(monkeypatch) -> list[str]:
    """Names of the scans whose voxels are read."""
    names = []

    def recorded(case, read):
        names.append(case.name)
        return read(case)

    from data.scans.checks import read_scan

    monkeypatch.setattr("data.scans.open.read_scan", partial(recorded, read=read_scan))
    return names


# --- remembered ------------------------------------------------------------------------------------------


def test_second_start_reads_no_voxel_and_tells_the_same(tmp_path, monkeypatch, capsys):
    cases = cohort_in(tmp_path)
    facts = admitted(cases, tmp_path / "cache")
    said = capsys.readouterr().out
    assert "of the lesion voxels of sub-0_label-L_mask.npy lie outside the brain" in said
    for reader in ("scans.checks", "scans.brain", "scans.prepared", "files.volumes"):
        monkeypatch.setattr(f"data.{reader}.read_volume", lambda *_: pytest.fail("a voxel was read"), raising=False)
    assert admitted(cases, tmp_path / "cache") == facts and capsys.readouterr().out == said
    assert cached_scan(cases[0], GRID, tmp_path / "cache").scan.shape == (1, 24, 30, 26)


@pytest.mark.parametrize("part", ["scan", "mask", "brain"])
def test_scan_is_looked_at_again_once_one_of_its_files_has_changed(tmp_path, looks, part):
    cases = cohort_in(tmp_path)
    before = admitted(cases, tmp_path / "cache")
    path = getattr(cases[1], part)
    np.save(path, np.roll(np.load(path), 1, axis=1))
    looks.clear()
    after = admitted(cases, tmp_path / "cache")
    assert looks == [cases[1].name]
    assert [before[case].digest == after[case].digest for case in cases] == [True, False, True]


def test_scans_are_looked_at_again_on_another_grid_by_other_code_and_where_the_record_is_broken(
    tmp_path, looks, monkeypatch
):
    cases = cohort_in(tmp_path)
    admitted(cases, tmp_path / "cache")
    (broken,) = (tmp_path / "cache").glob(f"sub-2_*/{FACTS_FILE}")
    broken.write_text('{"digest": ')
    looks.clear()
    admitted(cases, tmp_path / "cache")
    assert looks == [cases[2].name]
    admit(cases, Grid((1, 24, 30, 28)), brains_in(tmp_path / "cache"), 0, tmp_path / "cache")
    assert len(looks) == 4
    monkeypatch.setattr("data.scans.prepared.PREPARATION_VERSION", "of another checkout")
    admitted(cases, tmp_path / "cache")
    assert len(looks) == 7


def test_start_that_was_stopped_goes_on_where_it_was(tmp_path, looks):
    cases = cohort_in(tmp_path)
    put_voxel(cases[1], np.nan)
    with pytest.raises(UserError, match=r"sub-1_T1w\.npy holds NaN"):
        admitted(cases, tmp_path / "cache")
    put_voxel(cases[1], 0)
    looks.clear()
    admitted(cases, tmp_path / "cache")
    assert looks == [cases[1].name, cases[2].name]


def test_no_brain_is_looked_for_before_all_scans_have_passed(tmp_path, monkeypatch):
    cases = cohort_in(tmp_path)
    shutil.rmtree(tmp_path / "Brains")
    cases = [Case(case.subject, None, case.scan, case.mask) for case in cases]
    found = []
    monkeypatch.setattr("data.scans.brain.find_brain", lambda scan, head, *_: found.append(1) or head)
    put_voxel(cases[2], np.inf)
    with pytest.raises(UserError, match=r"sub-2_T1w\.npy holds NaN or infinite"):
        admitted(cases, tmp_path / "cache")
    assert not found
    put_voxel(cases[2], 0)
    assert [seen.brain for seen in admitted(cases, tmp_path / "cache").values()] == ["found"] * 3
    assert len(found) == 3


# --- several processes -----------------------------------------------------------------------------------


def test_processes_give_what_one_gives_and_refuse_the_same_scan(tmp_path):
    cases, made = cohort_in(tmp_path, 4), {}
    for num_workers in (0, 2):
        folder = tmp_path / f"{num_workers} processes"
        facts = admitted(cases, folder / "cache", num_workers)
        prepare = partial(cached_scan, grid=GRID, cache_dir=folder / "cache")
        table = cut_cohort(cases, GRID, prepare, folder / "slices", num_workers)
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        made[num_workers] = facts, files, [path.rpartition("/")[2] for path in table.scan]
    assert made[0] == made[2] and len(made[0][1]) > 4 * 24
    for case in cases[1:3]:
        put_voxel(case, np.nan)
    with pytest.raises(UserError, match=r"sub-1_T1w\.npy holds NaN or infinite voxels; fix or remove the scan"):
        admitted(cases, tmp_path / "2 processes/cache", 2)


# --- progress --------------------------------------------------------------------------------------------


def test_log_file_is_told_now_and_then_of_the_rate_and_the_time_left(monkeypatch, capsys):
    seconds = iter([0, 10, 70, 80])  # at the beginning, and after each of three scans
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(seconds, 100))
    assert list(progress("abc", "Checking scans")) == ["a", "b", "c"]
    assert capsys.readouterr().out.splitlines() == [
        "Checking scans: 2 of 3 scans, 0.029 a second, 35 s left",
        "Checking scans: 3 scans in 100 s",
    ]


def test_one_quick_pass_is_not_worth_a_line(capsys):
    assert list(progress(range(3), "Checking scans")) == [0, 1, 2]
    assert capsys.readouterr().out == ""
