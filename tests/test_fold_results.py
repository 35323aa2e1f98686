"""Scores of folds that are kept in files, and tables that several processes write into."""

from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.cross_validation.state import has_results, missing_results, read_results, results_file, write_results
from utils.errors import UserError
from utils.files import update_table
from utils.scores.intervals import Estimate

NUMBERS = st.floats(allow_infinity=False)
ESTIMATES = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=4).flatmap(
    lambda pairs: st.builds(
        Estimate, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 9),
        part=st.just(np.array([p for p, _ in pairs])), whole=st.just(np.array([w for _, w in pairs])),
    )
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ESTIMATES)
def test_scores_come_back_to_the_last_digit(tmp_path, estimate):
    rows = [{"fold": 3, "stage": "rpn", "score": "map", "estimate": estimate}]
    write_results(tmp_path, 3, rows, {"networks": {"rpn": "a"}})
    ((found,),) = (read_results(tmp_path, 3, {"rpn": "a"}),)
    for name, value in vars(estimate).items():
        np.testing.assert_array_equal(getattr(found["estimate"], name), value)


def test_scores_of_other_networks_are_refused_and_missing_folds_named(tmp_path):
    networks = {"rpn": "a", "strokeformer": "b"}
    tested = {"networks": networks, "test": "how", "tables": "rows"}
    write_results(tmp_path, 1, [], tested)
    assert has_results(tmp_path, 1, tested)
    assert not has_results(tmp_path, 1, {**tested, "networks": {**networks, "strokeformer": "c"}})
    assert not has_results(tmp_path, 1, {**tested, "test": "otherwise"})
    assert not has_results(tmp_path, 1, {**tested, "tables": "other rows"})
    assert not has_results(tmp_path, 2, tested)
    assert missing_results(tmp_path, 3) == [0, 2]
    for broken in ("", "[]", "{}", '{"networks"'):
        results_file(tmp_path, 2).write_text(broken)
        assert not has_results(tmp_path, 2, tested)
    with pytest.raises(UserError, match=f"{results_file(tmp_path, 1).name} is of other networks .* --folds_to_run 1"):
        read_results(tmp_path, 1, {"rpn": "a", "strokeformer": "c"})


def test_no_row_is_lost_when_processes_write_into_one_table(tmp_path):
    names = [f"fold-{number}" for number in range(100)]
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(update_table, [tmp_path / "scores.csv"] * 100, names, [pd.DataFrame({"dice": [0.5]})] * 100))
    assert sorted(pd.read_csv(tmp_path / "scores.csv").model_name) == sorted(names)
    assert list(tmp_path.iterdir()) == [tmp_path / "scores.csv"]  # and no lock
