"""Subgroups: what groups lesions and scans, tables of subjects, and the scores of each group by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.scans.cohort import Case
from data.scans.groups import group_scans
from utils.errors import UserError
from utils.scores.intervals import estimate
from utils.scores.subgroups import VOLUME_BINS_CM3, group_scores, recall_by_volume, volume_bins


def case(subject: str, session: str | None = None) -> Case:
    name = f"sub-{subject}{f'_ses-{session}' if session else ''}_T1w.nii.gz"
    return Case(subject, session, Path(name), None)


# --- lesions by volume ---------------------------------------------------------------------------------


def test_bounds_of_volume_belong_to_the_larger_lesions():
    volumes = pd.Series([0.01, 0.0999, 0.1, 0.999, 1, 9.99, 10, 49.9, 50, 900, np.nan])
    names = list(VOLUME_BINS_CM3)
    assert volume_bins(volumes).tolist()[:-1] == [name for name in names for _ in range(2)]
    assert volume_bins(volumes).isna().tolist() == [False] * 10 + [True]


def test_recall_is_told_for_each_bin_and_over_the_scans_that_have_lesions_there():
    lesions = pd.DataFrame(
        {"scan": list("aabc"), "volume_cm3": [0.05, 0.09, 1.0, 50.0], "found": [True, False, False, True]}
    )
    recalls = recall_by_volume(lesions, seed=0)
    told = {name: (recall.mean, recall.scans) for name, recall in recalls.items() if recall.scans}
    assert told == {"under 0.1 cm3": (0.5, 1), "1 to 10 cm3": (0.0, 1), "over 50 cm3": (1.0, 1)}
    assert math.isnan(recalls["10 to 50 cm3"].mean) and list(recalls) == list(VOLUME_BINS_CM3)
    assert all(math.isnan(r.mean) for r in recall_by_volume(lesions.assign(volume_cm3=np.nan), seed=0).values())


# --- scores of groups ----------------------------------------------------------------------------------


def lesions_of(*rows) -> pd.DataFrame:
    """Rows of ``per_lesion_scores.csv`` from scan, cm3 and, of a lesion, its Dice, above 0 where it is found."""
    columns = [("lesion", *row, row[2] > 0) if len(row) == 3 else ("false_lesion", *row, np.nan, pd.NA) for row in rows]
    table = pd.DataFrame(columns, columns=["kind", "scan", "volume_cm3", "dice", "found"])
    return table.astype({"found": "boolean"})


SCANS = pd.DataFrame({"scan": list("abcd"), "dice": [0.8, 0.4, 0.0, 1.0]})  # d is healthy
LESIONS = lesions_of(
    ("a", 20.0, 0.9), ("a", 0.5, 0.3), ("a", 0.05), ("b", 0.5, 0.0), ("b", 0.6, 0.6), ("b", 2.0), ("c", 3.0, 0.0)
)
NO_GROUPS = pd.DataFrame(index=list("abcd"))


def scores_of(scans=SCANS, lesions=LESIONS, groups=NO_GROUPS) -> pd.DataFrame:
    return group_scores(scans, lesions, groups, seed=0).set_index(["group", "value"])


def test_lesions_of_a_volume_have_their_recall_dice_and_false_lesions():
    table = scores_of()
    counts = table.loc["lesion volume", ["scans", "lesions", "found_lesions", "false_lesions"]].T.to_dict("list")
    assert counts == {
        "under 0.1 cm3": [0, 0, 0, 1],
        "0.1 to 1 cm3": [2, 3, 2, 0],
        "1 to 10 cm3": [1, 1, 0, 1],
        "10 to 50 cm3": [1, 1, 1, 0],
    }
    small = table.loc["lesion volume", "0.1 to 1 cm3"]
    assert (small.recall, small.dice) == pytest.approx((2 / 3, 0.3))
    recall = estimate([1, 1], [1, 2], seed=0)  # over scans: a has found its one, b one of two
    assert (small.recall_low, small.recall_high) == (recall.low, recall.high) == (0.5, 1)
    assert np.isnan(table.loc[("lesion volume", "under 0.1 cm3"), ["recall", "dice"]].astype(float)).all()


def test_scans_of_a_group_have_their_own_dice_and_all_their_lesions():
    groups = pd.DataFrame({"centre": ["X", "X", "Y", np.nan]}, index=list("abcd"))
    table = scores_of(groups=groups).loc["centre"]
    assert table.index.tolist() == ["X", "Y"]
    assert table.loc["X", ["scans", "lesions", "found_lesions", "false_lesions"]].tolist() == [2, 4, 3, 2]
    assert table.loc["X", ["recall", "dice"]].tolist() == pytest.approx([0.75, 0.6])
    assert table.loc["Y", ["recall", "dice"]].tolist() == [0, 0] and np.isnan(table.dice_low["Y"])


def test_healthy_scans_have_a_dice_and_no_recall():
    row = scores_of(groups=pd.DataFrame({"centre": ["X"]}, index=["d"])).loc["centre", "X"]
    assert (row.scans, row.lesions, row.dice) == (1, 0, 1) and np.isnan(row.recall)


def test_sides_group_lesions_and_scans_where_tables_tell_them():
    assert set(scores_of().index.get_level_values("group")) == {"lesion volume"}
    sides = ["left", "right", "left", "left", "midline", "left", "right"]
    table = scores_of(SCANS.assign(side=["both", "left", "right", np.nan]), LESIONS.assign(side=sides))
    assert table.loc["lesion side", "lesions"].to_dict() == {"left": 2, "midline": 1, "right": 2}
    assert table.loc["side", "dice"].to_dict() == {"both": 0.8, "left": 0.4, "right": 0.0}


def test_scans_without_lesions_voxel_sizes_or_groups_leave_no_rows():
    unknown = LESIONS.assign(volume_cm3=np.nan)
    for lesions in (unknown, LESIONS[:0], LESIONS[:0].astype(object)):
        assert scores_of(lesions=lesions).empty


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.01, 100), st.floats(-1, 1)), min_size=1, max_size=12))
def test_groups_share_out_all_lesions(rows):
    lesions = lesions_of(*[(scan, v, max(dice, 0.0)) if dice > -0.5 else (scan, v) for scan, v, dice in rows])
    groups = pd.DataFrame({"centre": ["X", "Y", "X", "Y"]}, index=list("abcd"))
    table = scores_of(lesions=lesions, groups=groups)
    true = lesions[lesions.kind == "lesion"]
    for group in ("lesion volume", "centre"):
        sums = table.loc[group, ["lesions", "found_lesions", "false_lesions"]].sum().tolist()
        assert sums == [len(true), true.found.sum(), len(lesions) - len(true)]
    assert np.allclose(table.recall, table.found_lesions / table.lesions.replace(0, np.nan), equal_nan=True)


# --- groups of scans -----------------------------------------------------------------------------------


def written(tmp_path, text: str, name: str = "participants.tsv") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_centres_come_from_names_and_are_none_where_these_tell_none():
    assert group_scans([case("r001s001"), case("r010s002")], None).centre.tolist() == ["R001", "R010"]
    assert group_scans([case("p1"), case("p2")], None).columns.empty


def test_columns_of_participants_group_scans_by_subject(tmp_path, capsys):
    table = written(tmp_path, "participant_id\tchronicity\tmrs\nsub-2\tchronic\t10\nsub-1\tacute\t2\nsub-3\tn/a\t1\n")
    groups = group_scans([case("1", "a"), case("1", "b"), case("2"), case("3"), case("4")], table)
    assert groups.chronicity.tolist() == ["acute", "acute", "chronic", np.nan, np.nan]
    assert groups.mrs.cat.categories.tolist() == ["1", "2", "10"]  # by number
    assert f"--metadata {table} lacks 1 scan, e.g. of 4: in no group of it" in capsys.readouterr().out


def test_numbers_of_many_values_are_cut_into_thirds_and_texts_of_many_left_out_unless_they_are_centres(
    tmp_path, capsys
):
    rows = [f"{i},{i},note {i},site {i},{max(0, i - 17)}\n" for i in range(30)]
    table = written(tmp_path, "Subject ID,days,note,SITE,late\n" + "".join(rows), "v3_metadata.csv")
    groups = group_scans([case(str(i)) for i in range(30)], table)
    assert groups.days.value_counts(sort=False).to_dict() == {"0 to 9": 10, "9 to 19": 10, "19 to 29": 10}
    assert groups.late.value_counts(sort=False).to_dict() == {"0 to 0": 18, "0 to 2": 2, "2 to 12": 10}
    assert groups.SITE.nunique() == 30 and "note" not in groups
    assert "--metadata: note has 30 values, too many for groups; it is left out" in capsys.readouterr().out


def test_a_centre_of_the_table_is_taken_before_that_of_the_name(tmp_path):
    table = written(tmp_path, "\ufeffparticipant_id;centre\nr001s001;Modena\n")
    assert group_scans([case("r001s001"), case("r001s002")], table).centre.tolist() == ["Modena", np.nan]


def test_sessions_have_their_own_rows_where_the_table_tells_them(tmp_path):
    text = "participant_id\tsession_id\tphase\nsub-1\tses-1\tacute\nsub-1\tses-2\tchronic\nsub-2\tses-1\tacute\n"
    groups = group_scans([case("1", "2"), case("1", "1"), case("2", "2"), case("2")], written(tmp_path, text))
    assert groups.phase.tolist() == ["chronic", "acute", np.nan, "acute"]  # none of the first session for the second


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "is no readable table (No such file or directory)"),
        ("", "is no readable table"),
        ("age\n60\n", "has no column of subjects; name it participant_id"),
        ("participant_id\tage\n", "has none of the subjects, such as 1;"),
        ("participant_id\tage\n01\t60\n", "has none of the subjects, such as 1;"),
        ("participant_id\tage\n1\t60\n1\t61\n", "has several rows of sub-1_T1w.nii.gz; keep one"),
    ],
)
def test_tables_that_say_nothing_of_the_subjects_are_refused(tmp_path, text, complaint):
    path = str(tmp_path / "none.tsv") if text is None else written(tmp_path, text)
    with pytest.raises(UserError) as refused:
        group_scans([case("1")], path)
    assert str(refused.value).startswith(f"--metadata {path} ") and complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rows_that_are_longer_than_the_head_are_not_shifted(tmp_path):
    groups = group_scans([case("1")], written(tmp_path, "participant_id\tphase\n1\tacute\t\n"))
    assert groups.phase.tolist() == ["acute"]
