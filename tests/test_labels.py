import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raising import raises

from pipeline.dataset import label_columns, read_labels
from pipeline.dataset import logs as clip_logs
from pipeline.dataset.manifest import find_videos
from pipeline.tasks import load_task, parse_task

DISHES = load_task("dishwashing")
BINS = load_task("bin-picking")
UNNAMED = parse_task(
    "name: sorting\nhuman_wage_usd: 20\nactions: {pace: {low: 2, high: 8}}\ncontexts: {price_usd: 0.1}\n",
    "sorting.yaml",
)


def write(path, text):
    path.write_text(text)
    return path


def read(folder, text, task=DISHES):
    return read_labels(write(folder / "l.csv", text), task)


def test_labels_are_sorted_and_typed(tmp_path):
    logs = read(tmp_path, "step,context,speed,attempts,errors\n1,,0.5,3,0\n0,pan,1,,\n")
    assert logs.context.tolist() == ["pan", ""]
    np.testing.assert_array_equal(logs.actions, [[1, np.nan], [0.5, np.nan]])  # speed, care
    np.testing.assert_array_equal(logs.attempts, [np.nan, 3])
    np.testing.assert_array_equal(logs.errors, [np.nan, 0])
    assert np.isnan(logs.novel).all()
    assert (logs.price_usd, logs.damage_usd, logs.propensity, logs.novel_kind) == (None, None, None, None)


def test_actions_have_the_task_s_order_and_units(tmp_path):
    logs = read(tmp_path, "grip,step,speed,context\n12.5,0,1.25,vial\n", BINS)
    np.testing.assert_array_equal(logs.actions, [[1.25, 12.5]])  # metres a second, newtons
    assert logs.context_index(BINS).tolist() == [2]


def test_prices_and_propensities(tmp_path):
    logs = read(tmp_path, "step,price_usd,damage_usd,propensity\n0,0.5,0,1.75\n1,,,\n")
    np.testing.assert_array_equal(logs.price_usd, [0.5, np.nan])
    np.testing.assert_array_equal(logs.damage_usd, [0, np.nan])
    np.testing.assert_array_equal(logs.propensity, [1.75, np.nan])
    assert read(tmp_path, "step,price_usd\n0,\n").price_usd is None  # as if there were no such column


def test_kinds_of_novelty(tmp_path):
    logs = read(tmp_path, "step,novel\n0,\n1,dropped\n2,1\n3,0.25\n")
    assert logs.novel.tolist() == [0, 1, 1, 0.25]
    assert logs.novel_kind.tolist() == ["", "dropped", "", ""]
    assert read(tmp_path, "step,novel\n0,1\n").novel_kind is None


@pytest.mark.parametrize(
    ("no", "yes"), [("False", "True"), ("false", "TRUE"), ("no", "yes"), ("No", "Yes"), ("0", "1"), ("0.0", "1.0")]
)
def test_words_for_yes_and_no_are_no_kinds(tmp_path, no, yes):
    logs = read(tmp_path, f"step,novel\n0,{no}\n1,{yes}\n2,\n")
    assert logs.novel.tolist() == [0, 1, 0]
    assert logs.novel_kind is None


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "N/A", "NA", "null", "<NA>", "NaT"])
@pytest.mark.parametrize("column", ["novel", "context", "speed", "attempts", "step"])
def test_words_for_missing_values_are_refused_by_row(tmp_path, column, word):
    columns = "step" if column == "step" else f"{column},step"
    rows = ("0", word) if column == "step" else (",0", f"{word},1")
    with raises("labels-unknown-context" if column == "context" else "labels-value") as caught:
        read(tmp_path, f"{columns}\n{rows[0]}\n{rows[1]}\n")
    assert f"{column} {word!r} in row 2" in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_of_other_programs(tmp_path, end, encoding):
    lines = ["step,context,novel", "0,plate,new\u2028\x85kind", "1,glass,"]
    (tmp_path / "l.csv").write_bytes(end.join(lines).encode(encoding))
    logs = read_labels(tmp_path / "l.csv", DISHES)
    assert (logs.context.tolist(), logs.novel_kind.tolist()) == (["plate", "glass"], ["new\u2028\x85kind", ""])


def test_a_row_of_another_width_is_refused_by_its_line(tmp_path):
    for text in ("step,context\n0,plate\n\n1,glass,\n", "step,context\n0,plate\n\n1\n"):
        with raises("labels-unreadable") as caught:
            read(tmp_path, text)
        assert "line 4 has" in str(caught.value)


def test_the_only_context_needs_no_column(tmp_path):
    assert "context" not in label_columns(UNNAMED)
    for text in ("step,pace\n0,2\n1,8\n", "step,context,pace\n0,,2\n1,,8\n"):
        logs = read(tmp_path, text, UNNAMED)
        assert logs.context.tolist() == ["", ""]
        assert logs.context_index(UNNAMED).tolist() == [0, 0]
    with raises("labels-context-unnamed"):
        read(tmp_path, "step,context,pace\n0,work,2\n", UNNAMED)


def test_an_unknown_context_has_no_number(tmp_path):
    assert read(tmp_path, "step,context\n0,glass\n1,\n").context_index(DISHES).tolist() == [2, -1]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("step,pace\n0,1\n", "labels-unknown-column"),
        ("step,grip\n0,1\n", "labels-unknown-column"),
        ("step,speed,speed\n0,1,1\n", "labels-repeated-column"),
        ("speed\n1\n", "labels-no-step"),
        ("step,speed\n0,1.5\n", "labels-value"),
        ("step,speed\n0,fast\n", "labels-value"),
        ("step,speed\n0,nan\n", "labels-value"),
        ("step,speed\n0,1_0\n", "labels-value"),
        ("step,attempts\n0,2\n1,1.5\n", "labels-value"),
        ("step,attempts\n0,inf\n", "labels-value"),
        ("step,errors\n0,-1\n", "labels-value"),
        ("step,price_usd\n0,-0.1\n", "labels-value"),
        ("step,damage_usd\n0,inf\n", "labels-value"),
        ("step,propensity\n0,0\n", "labels-value"),
        ("step,propensity\n0,inf\n", "labels-value"),
        ("step,propensity\n0,-0.5\n", "labels-value"),
        ("step,propensity\n0,nan\n", "labels-value"),
        ("step,novel\n0,2\n", "labels-value"),
        ("step,novel\n0,normal\n", "labels-value"),
        ("step,novel\n0,Unknown\n", "labels-value"),
        ("step,context\n0,bolt\n", "labels-unknown-context"),
        ("step,attempts,errors\n0,2,3\n", "labels-more-errors-than-attempts"),
        ("step\n0\n2\n", "labels-step"),
        ("step\n0\n0\n", "labels-step"),
        ("step,speed\n,1\n", "labels-step"),
        ("step\n", "labels-empty"),
        ("", "labels-empty"),
        ("step,speed\n0\n", "labels-unreadable"),
        ("step,speed\n0,1,1\n", "labels-unreadable"),
        ('step,context\n0,"pan\n', "labels-unreadable"),
    ],
)
def test_bad_labels_are_refused(tmp_path, text, code):
    with raises(code) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "l.csv") in str(caught.value)


def test_errors_give_place_rule_and_remedy(tmp_path):
    with raises("labels-value") as caught:
        read(tmp_path, "step,speed,grip\n0,1,10\n1,2.5,10\n", BINS)
    assert "speed '2.5' in row 2 is not a number from 0.1 to 1.5; correct it" in str(caught.value)
    with raises("labels-unknown-column") as caught:
        read(tmp_path, "step,care\n0,1\n", BINS)
    assert "step, speed, grip, context, attempts, errors, price_usd" in str(caught.value)
    with raises("labels-unknown-context") as caught:
        read(tmp_path, "step,context\n0,plate\n", BINS)
    assert "bolt, gear, vial" in str(caught.value)


WHOLE = "is not a whole number from 0 on; correct it, or leave it empty"
WITHIN = "is not a number from 0.1 to 1.5; correct it, or leave it empty"
ABOVE_0 = "is not a finite number above 0; correct it, or leave it empty"


@pytest.mark.parametrize(
    ("columns", "row", "said"),
    [
        ("attempts,errors", "2,3", "errors 3 in row 2 are more than its attempts 2; correct one of them"),
        ("attempts", "-1", f"attempts '-1' in row 2 {WHOLE}"),
        ("attempts", "1.5", f"attempts '1.5' in row 2 {WHOLE}"),
        ("attempts", "nan", f"attempts 'nan' in row 2 {WHOLE}"),
        ("attempts", "inf", f"attempts 'inf' in row 2 {WHOLE}"),
        ("errors", "-2", f"errors '-2' in row 2 {WHOLE}"),
        ("errors", "0.5", f"errors '0.5' in row 2 {WHOLE}"),
        ("errors", "nan", f"errors 'nan' in row 2 {WHOLE}"),
        ("speed", "nan", f"speed 'nan' in row 2 {WITHIN}"),
        ("speed", "inf", f"speed 'inf' in row 2 {WITHIN}"),
        ("speed", "-inf", f"speed '-inf' in row 2 {WITHIN}"),
        ("speed", "1.51", f"speed '1.51' in row 2 {WITHIN}"),
        ("speed", "0", f"speed '0' in row 2 {WITHIN}"),
        ("propensity", "0", f"propensity '0' in row 2 {ABOVE_0}"),
        ("propensity", "1e-400", f"propensity '1e-400' in row 2 {ABOVE_0}"),
        ("propensity", "-0.5", f"propensity '-0.5' in row 2 {ABOVE_0}"),
        ("propensity", "inf", f"propensity 'inf' in row 2 {ABOVE_0}"),
        ("propensity", "nan", f"propensity 'nan' in row 2 {ABOVE_0}"),
    ],
)
def test_a_bad_value_is_an_error_of_usage_before_anything_is_decoded(vtp, tmp_path, columns, row, said):
    """There is no video: if one were opened, the extraction would end with another code."""
    good = "," * columns.count(",")  # empty values are unknown
    write(tmp_path / "l.csv", f"step,{columns}\n1,{good}\n0,{row}\n")
    write(tmp_path / "m.csv", "path,labels,task\na.mp4,l.csv,bin-picking\n")
    code, out, err = vtp("extract", "m.csv", "--out", "e.h5", "--weights", "random:0")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"labels {tmp_path / 'l.csv'}: {said}" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.csv", "m.csv"]


def test_empty_values_are_unknown(tmp_path):
    logs = read(tmp_path, "step,speed,grip,attempts,errors,propensity\n0,,,,,\n1,1,,,2,\n2,,7,3,,0.5\n", BINS)
    nan = np.nan
    np.testing.assert_array_equal(logs.actions, [[nan, nan], [1, nan], [nan, 7]])
    np.testing.assert_array_equal(logs.attempts, [nan, nan, 3])
    np.testing.assert_array_equal(logs.errors, [nan, 2, nan])
    np.testing.assert_array_equal(logs.propensity, [nan, nan, 0.5])


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"step,context\n0,\xff\n")
    with raises("labels-unreadable"):
        read_labels(tmp_path / "l.csv", DISHES)


def test_missing_labels(tmp_path):
    with raises("labels-missing"):
        read_labels(tmp_path / "none.csv", DISHES)


def test_without_a_task_labels_are_read_for_dishwashing(tmp_path):
    logs = read(tmp_path, "step,context,speed,care\n0,mug,0.1,0.2\n", None)
    np.testing.assert_array_equal(logs.actions, [[0.1, 0.2]])
    for text, code in [
        ("step,grip\n0,1\n", "labels-unknown-column"),
        ("step,novel\n0,normal\n", "labels-value"),
        ("step,novel\n0,Unknown\n", "labels-value"),
        ("step,context\n0,bolt\n", "labels-unknown-context"),
        ("step,speed\n0,1.5\n", "labels-value"),
    ]:
        with raises(code) as caught:
            read(tmp_path, text, None)
        assert "--task FILE|NAME" in str(caught.value)


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["", *BINS.contexts]),
        st.floats(0.1, 1.5),
        st.one_of(st.none(), st.floats(5, 40)),
        st.integers(0, 1000),
        st.floats(1e-9, 1e9),
    ),
    min_size=1,
    max_size=20,
)


@given(rows=ROWS, data=st.data())
def test_rows_written_in_any_order_are_read(rows, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "l.csv"
    columns = data.draw(st.permutations(["step", "context", "speed", "grip", "attempts", "propensity"]))
    names = ("context", "speed", "grip", "attempts", "propensity")
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for step in data.draw(st.permutations(range(len(rows)))):
            writer.writerow({"step": step, **dict(zip(names, rows[step], strict=True))})
    logs = read_labels(path, BINS)
    assert logs.context.tolist() == [row[0] for row in rows]
    np.testing.assert_array_equal(logs.actions, [[row[1], np.nan if row[2] is None else row[2]] for row in rows])
    np.testing.assert_array_equal(logs.attempts, [row[3] for row in rows])
    np.testing.assert_array_equal(logs.propensity, [row[4] for row in rows])


@given(speed=st.floats(allow_nan=False), low=st.booleans())
def test_actions_stay_within_the_task_s_bounds(speed, low, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("labels") / "l.csv", f"step,speed\n0,{speed!r}\n")
    if 0.1 <= speed <= 1.5:
        assert read_labels(path, BINS).actions[0, 0] == speed
    else:
        with raises("labels-value"):
            read_labels(path, BINS)


def test_logs_of_several_videos(tmp_path):
    first = read(tmp_path, "step,speed,care,attempts\n0,1,0.5,3\n")
    last = read(tmp_path, "step,context,price_usd,novel\n0,pan,0.2,fast\n1,,,\n")
    logs = clip_logs.concatenate([first, None, last], [1, 2, 2], 2)
    assert logs.context.tolist() == ["", "", "", "pan", ""]
    np.testing.assert_array_equal(logs.actions[:2], [[1, 0.5], [np.nan, np.nan]])
    np.testing.assert_array_equal(logs.attempts, [3, *[np.nan] * 4])
    np.testing.assert_array_equal(logs.price_usd, [np.nan, np.nan, np.nan, 0.2, np.nan])
    assert logs.novel_kind.tolist() == ["", "", "", "fast", ""]
    assert logs.propensity is None
    assert clip_logs.concatenate([None, None], [1, 2], 2) is None


def test_the_example_labels_are_read(request):
    folder = request.config.rootpath / "manifests"
    (labelled, *_) = find_videos(str(folder / "example.csv"))
    assert read_labels(labelled.labels, load_task(labelled.task)).num_clips == 4


def test_the_bin_picking_example_is_complete(request):
    """Twelve steps per video, with all contexts, over most of the actions' ranges."""
    folder = request.config.rootpath / "manifests"
    entries = find_videos(str(folder / "bin-picking.csv"))
    assert [entry.task for entry in entries] == ["bin-picking"] * 3
    videos = [read_labels(entry.labels, BINS) for entry in entries]
    assert [logs.num_clips for logs in videos] == [12] * 3
    logs = clip_logs.concatenate(videos, [12] * 3, BINS.num_actions)
    assert set(logs.context) == set(BINS.contexts)
    assert np.ptp(BINS.to_unit(logs.actions), axis=0).min() > 0.8
    assert (logs.errors <= logs.attempts).all() and logs.errors.sum() > 0


@pytest.mark.parametrize("text", ["-", "?", "12%", "#", "+"])
def test_the_name_of_a_kind_begins_with_a_letter(tmp_path, text):
    with raises("labels-value") as caught:
        read(tmp_path, f"step,novel\n0,\n1,{text}\n")
    assert f"{text!r} in row 2" in str(caught.value)
