"""Pictures of letters: where known actions lie in them."""

import numpy as np
from worlds import DISHES, grasping

from pipeline.survey import pictures
from pipeline.survey.action_cells import coverage_maps
from pipeline.survey.text_pictures import cell_of, side_by_side
from pipeline.tasks import Task

GRASPING = Task.model_validate(grasping())


def test_two_actions_make_a_map_with_the_first_to_the_right_and_the_second_upwards():
    """Four steps fast without care, one slow with all care, two in the middle; best is fast with care."""
    unit = np.array([[0.95, 0.05]] * 4 + [[0.05, 1.0]] + [[0.5, 0.5]] * 2)
    wanted = [{"speed": [0.0, 0.1], "care": [0.0, 0.2]}]
    (lines,) = pictures("glass", coverage_maps(DISHES, unit), {"speed": 1.0, "care": 0.93}, wanted)
    assert lines == [
        "glass",
        "  care",
        "1 ░ · · · · · · · · ·◆",
        "  · · · · · · · · · ·",
        "  · · · · · · · · · ·",
        "  · · · · · · · · · ·",
        "  · · · · · ▒ · · · ·",
        "  · · · · · · · · · ·",
        "  · · · · · · · · · ·",
        "  · · · · · · · · · ·",
        "  ·?· · · · · · · · ·",
        "0 ·?· · · · · · · · █",
        "  0      speed       1",
    ]


def test_one_action_makes_a_bar():
    """Of forces from 1 to 5, in cells of 0.2: eight at the lowest, one at the highest, four at 3; best is 2.9."""
    unit = np.array([[0.0]] * 8 + [[1.0]] + [[0.5]] * 4)
    (lines,) = pictures("egg", coverage_maps(GRASPING, unit), {"force": 2.9}, [{"force": [4.0, 4.2]}])
    assert lines == [
        "egg",
        "██· · · · · · · · · ▄▄· · · · · · · · ▁▁",
        "                  ◆           ?",
        "1                force                 5",
    ]


def test_nothing_logged_is_an_empty_map():
    (lines,) = pictures("", coverage_maps(DISHES, np.empty((0, 2))), None, [])
    assert set("".join(line[2:] for line in lines[1:-1])) == {"·", " "}


def test_a_bound_is_in_the_last_cell_and_an_edge_in_the_cell_above():
    edges = np.linspace(0, 1, 11)
    assert [cell_of(value, edges) for value in (0.0, 0.3, 0.1 + 0.2, 0.999, 1.0)] == [0, 3, 3, 9, 9]


def test_blocks_stand_beside_each_other_as_far_as_there_is_room():
    blocks = [["ab", "c"], ["d"], ["eeee", "f", "g"]]
    assert side_by_side(blocks, 80) == ["ab    d    eeee", "c          f", "           g"]
    assert side_by_side(blocks, 12) == ["ab    d", "c", "", "eeee", "f", "g"]
    assert side_by_side(blocks, 1) == ["ab", "c", "", "d", "", "eeee", "f", "g"]
    assert side_by_side([], 80) == []
