"""When one setting has got to where another one was."""

import sys

import pytest
from repository import ROOT

sys.path.insert(0, str(ROOT / "tools"))

from benchmark_time_to_quality import medians, reached, records, table


def curve(*points):
    return [{"seconds": 10.0 * (i + 1), "frechet": f, "recall": r} for i, (f, r) in enumerate(points)]


def test_records_are_the_lowest_distances_so_far():
    rows = curve((3.0, 0.5), (1.0, 0.6), (2.0, 0.9), (0.5, 0.7))
    assert [row["seconds"] for row in records(rows)] == [10, 20, 40]


@pytest.mark.parametrize(
    ("goal", "seconds"), [((1.5, 0.6), 20), ((1.5, 0.8), 40), ((0.1, 0.0), None)], ids=["both", "recall later", "never"]
)
def test_a_goal_is_reached_by_distance_and_recall_together(goal, seconds):
    rows = curve((3.0, 0.9), (1.0, 0.6), (2.0, 0.9), (0.5, 0.9))
    assert reached(rows, curve(goal)[0]) == seconds


def test_the_table_compares_medians_over_seeds_at_the_published_records():
    published = medians({"0": curve((2.0, 0.5), (1.0, 0.6)), "1": curve((4.0, 0.7), (3.0, 0.8))})
    fused = medians({"0": curve((2.0, 0.7), (2.0, 0.9))})
    assert [row["frechet"] for row in published] == [3.0, 2.0]
    assert table({"published": published, "fused": fused}).splitlines()[2:] == [
        "| 10 | 3.000 | 0.600 | 10 (1.0 x) |",
        "| 20 | 2.000 | 0.700 | 10 (2.0 x) |",
    ]
