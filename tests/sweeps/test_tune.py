"""The search for learning rates, with accuracies from a formula."""

import math
import sys

import pytest

from engine.errors import UserError
from engine.sweeps.tune import Cell, geometric, search, search_by_optuna


def cell(peak, batch=128, **axes):
    """Return a cell and its best point; accuracy falls with the distance in octaves from it."""
    return Cell("sgd", batch, [], axes or {"optimizer.base_lr": geometric(0.1, 5, 2.0)}), peak


def run_search(pairs, most=13):
    measured = []

    def measure(cells):
        for one, peak in zip(cells, (peak for _, peak in pairs), strict=True):
            for point in one.points():
                if point not in one.scores:
                    measured.append(point)
                    distance = sum(abs(math.log2(v / p)) for v, p in zip(point, peak, strict=True))
                    one.scores[point] = 90.0 - distance
        sizes = {len(one.points()) for one in cells}
        assert len(sizes) == 1, "every cell must have as many trials as the others"

    search([one for one, _ in pairs], measure, 2.0, most)
    return measured


def test_a_geometric_grid_lies_around_its_center():
    assert geometric(0.1, 5, 2.0) == [0.025, 0.05, 0.1, 0.2, 0.4]
    assert geometric(3.0, 4, 10.0) == [0.03, 0.3, 3.0, 30.0]


def test_the_grid_stays_if_its_best_point_is_inside():
    one = cell((0.2,))
    run_search([one])
    assert one[0].axes["optimizer.base_lr"] == [0.025, 0.05, 0.1, 0.2, 0.4]
    assert one[0].best() == (0.2,)


def test_the_grid_widens_while_its_best_is_on_the_edge_and_all_cells_grow_equally():
    wide, inside = cell((1.6,)), cell((0.1,), batch=256)
    run_search([wide, inside])
    assert wide[0].axes["optimizer.base_lr"] == [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    assert wide[0].best() == (1.6,)
    # The other cell adds its values next to its best one.
    assert len(inside[0].points()) == 8 and inside[0].best() == (0.1,)
    assert min(inside[0].axes["optimizer.base_lr"]) == 0.025
    low = cell((0.001,))
    run_search([low])
    assert low[0].axes["optimizer.base_lr"][:2] == [0.000390625, 0.00078125]


def test_the_grid_is_bounded_and_the_edge_reported():
    one = cell((1000.0,))
    run_search([one], most=7)
    assert len(one[0].points()) == 7 and one[0].edge("optimizer.base_lr") == 1


def test_two_keys_make_a_grid_that_grows_along_each():
    axes = {"optimizer.base_lr": [0.05, 0.1, 0.2], "optimizer.weight_decay": [1e-4, 2e-4, 4e-4]}
    one = cell((0.1, 8e-4), **axes)
    run_search([one])
    assert one[0].best() == (0.1, 8e-4)
    assert one[0].axes["optimizer.weight_decay"] == [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]


def test_if_everything_diverges_smaller_rates_are_tried():
    one, _ = cell((0.1,))
    one.scores = dict.fromkeys(one.points())
    one.grow("optimizer.base_lr", 2.0)
    assert one.axes["optimizer.base_lr"][0] == 0.0125


def test_optuna_spends_the_same_budget_on_each_cell_and_repeats_its_trials():
    pytest.importorskip("optuna")

    def asked():
        axes = {"optimizer.base_lr": [0.01, 10.0], "optimizer.weight_decay": [1e-5, 1e-2]}
        cells = [Cell("sgd", batch, [], dict(axes)) for batch in (128, 256)]

        def measure(cells):
            assert len({len(one.points()) for one in cells}) == 1
            for one in cells:
                for rate, decay in one.points():
                    far = abs(math.log10(rate)) + abs(math.log10(decay) + 4)
                    one.scores[(rate, decay)] = None if rate > 5 else 90.0 - far

        search_by_optuna(cells, measure, 25)
        return [one.points() for one in cells], cells[0].best()

    (first, second), best = asked()
    assert len(first) == len(second) == 25
    assert all(0.01 <= rate <= 10 and 1e-5 <= decay <= 1e-2 for rate, decay in first)
    assert 0.2 < best[0] < 5 and asked() == ([first, second], best)


def test_without_optuna_a_budget_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"^tune\.trials=5: needs Optuna; run pip install"):
        search_by_optuna([], lambda cells: None, 5)
