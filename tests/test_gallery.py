import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories import write_embeddings
from PIL import Image

from pipeline import dataset, simulate
from pipeline.config import SimulateConfig
from pipeline.dataset.manifest import find_videos
from pipeline.report.gallery import Gallery, read_gallery
from pipeline.report.run_files import Missing


@pytest.fixture
def scored(tmp_path):
    """Two videos of four clips, the last clip the most novel; the config of a run on them."""
    manifest = simulate.run(SimulateConfig(out=tmp_path / "demos", videos=2, steps=4, novel=0.25, seed=1))
    path = write_embeddings(tmp_path / "embeddings.h5", find_videos(str(manifest)))
    score = np.arange(8.0) - 3
    columns = {
        "score": score, "weight": np.ones(8, np.float32), "knn": np.ones(8), "z": np.tile(score[:, None], (1, 2)),
        "channels/gap": score,
    }  # fmt: skip
    judged = {"clips": 1, "auroc": 0.9, "auroc_ci95": [0.8, 1.0], "average_precision": 0.5}
    attrs = {
        "content_sha256": dataset.read_embeddings(path).content_sha256, "model": "corpus", "model_why": "small",
        "reference": "all", "sigmas": json.dumps([0.25, 2.0]),
        "detection": json.dumps({"score": {"fast": judged}, "knn": {"fast": judged | {"auroc": 0.4}}}),
    }  # fmt: skip
    dataset.write_novelty(tmp_path / "novelty.h5", columns, attrs)
    return {"source": "embeddings", "embeddings": str(path), "novelty": None}


def test_the_ends_of_the_ranking_are_shown_with_score_kind_and_source(scored):
    gallery = read_gallery(scored)
    assert isinstance(gallery, Gallery)
    assert [tile.score for tile in gallery.most] == ["4.00", "3.00", "2.00", "1.00"]
    assert gallery.most[0].where.startswith("0001, from 3.2 s") and gallery.least[0].where.startswith(
        "0000, from 0.0 s"
    )
    assert all(tile.uri.startswith("data:image/webp;base64,") for tile in gallery.most + gallery.least)
    assert all(tile.kind for tile in gallery.most)
    assert gallery.detection.rows[0][2].text == "0.90 [0.80, 1.00]" and gallery.detection.rows[0][3].text == "0.40"
    scores, profile = gallery.charts
    assert scores.caption == "2 clips labelled novel, 6 others." and scores.x_label == "novelty score"
    assert [label.label for label in profile.labels] == ["the rest", "most novel"]


def test_a_video_that_is_gone_or_changed_says_so_in_its_tile(scored, tmp_path):
    videos = tmp_path / "demos" / "videos"
    (videos / "0000.mp4").unlink()
    with open(videos / "0001.mp4", "ab") as file:
        file.write(b"\0")
    gallery = read_gallery(scored)
    assert gallery.most[0].uri is None and "has changed" in gallery.most[0].why_not
    assert gallery.least[0].uri is None and "can no longer be read" in gallery.least[0].why_not


def test_scores_are_found_where_the_run_had_them(scored, tmp_path):
    shutil.move(tmp_path / "novelty.h5", tmp_path / "elsewhere.h5")
    missing = read_gallery(scored)
    assert isinstance(missing, Missing) and "no clip has been scored" in missing.sentence
    assert missing.command == f"vtp novelty --embeddings {scored['embeddings']}"
    assert isinstance(read_gallery(scored | {"novelty": str(tmp_path / "elsewhere.h5")}), Gallery)
    assert read_gallery({"source": "sim"}) is None
    Path(scored["embeddings"]).unlink()
    assert read_gallery(scored) is None


def test_scores_that_training_had_and_that_are_gone_are_said_to_be_missing(scored, tmp_path):
    missing = read_gallery(scored | {"novelty": str(tmp_path / "n.h5")})
    assert isinstance(missing, Missing) and "which is no longer there" in missing.sentence
    assert missing.command.endswith(f"--out {tmp_path / 'n.h5'}")


def rewrite(path, columns=None, **changed):
    """The novelty file again, with other columns or attributes; None takes a column away."""
    content = dataset.read_embeddings(path.with_name("embeddings.h5")).content_sha256
    old, attrs = dataset.read_novelty_scores(path, content)
    new = {name: values for name, values in (old | (columns or {})).items() if values is not None}
    dataset.write_novelty(path, new, attrs | changed)


@pytest.mark.parametrize(
    ("columns", "attrs", "why"),
    [
        ({}, {"sigmas": "[0.25, "}, "damaged"),
        ({}, {"sigmas": '["a", 2]'}, "damaged"),
        ({}, {"sigmas": "[0.25]"}, r"z is \(8, 2\), not \(8, 1\)"),
        ({}, {"detection": "{"}, "damaged"),
        ({}, {"detection": "[1]"}, "damaged"),
        ({}, {"detection": '{"score": {"fast": {"clips": 1}}}'}, "damaged"),
        ({"z": None}, {}, "z is missing"),
        ({"score": None}, {}, "has no column score"),
        ({"score": np.zeros(7)}, {}, r"score is \(7,\), not \(8,\)"),
        ({"channels/gap": np.zeros(7)}, {}, r"channels/gap is \(7,\), not \(8,\)"),
    ],
)
def test_a_damaged_novelty_file_becomes_a_sentence(scored, tmp_path, columns, attrs, why):
    rewrite(tmp_path / "novelty.h5", columns, **attrs)
    missing = read_gallery(scored)
    assert isinstance(missing, Missing) and re.search(why, missing.sentence)


def test_the_least_novel_are_one_a_video_and_among_ties_the_least_odd(scored, tmp_path):
    odd = np.array([0.0, -1, -2, -3, 5, -7, 1, 2])
    rewrite(tmp_path / "novelty.h5", {"score": np.where(odd > 4, 1.0, -1.0), "channels/gap": odd})
    gallery = read_gallery(scored)
    assert [tile.where for tile in gallery.least] == [
        f"{video}, from {1.0667 * clip:.1f} s" for video, clip in (("0001", 1), ("0000", 3), ("0000", 2), ("0001", 2))
    ]
    assert gallery.most[0].where.startswith("0001, from 0.0 s")


def test_a_long_clip_makes_a_short_loop(scored, monkeypatch):
    monkeypatch.setattr("pipeline.report.gallery.MAX_FRAMES", 6)
    gallery = read_gallery(scored)
    with Image.open(io.BytesIO(base64.b64decode(gallery.most[0].uri.partition(",")[2]))) as image:
        assert image.n_frames == 6
        image.seek(1)
        image.load()
        assert image.info["duration"] == 200  # every third of 16 frames at 15 a second


def test_scores_of_other_embeddings_are_not_shown(scored, tmp_path):
    data = dataset.read_embeddings(tmp_path / "embeddings.h5")
    data.embeddings[0] += 1
    dataset.write_embeddings(tmp_path / "embeddings.h5", data)
    missing = read_gallery(scored)
    assert isinstance(missing, Missing) and "belongs to embeddings" in missing.sentence
    assert missing.command.startswith("vtp novelty --embeddings ")
