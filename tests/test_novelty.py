import json
import re
import resource
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from factories import write_embeddings
from raising import raises

from pipeline import dataset, noise_gap, novelty, simulate
from pipeline.config import MergeConfig, NoveltyConfig, NoveltyExperimentConfig, SimulateConfig
from pipeline.dataset import manifest, rereading
from pipeline.errors import CorruptError, TryAgainError
from pipeline.experiments import novelty_use as experiment
from pipeline.extraction.shards import lock_path, parts_folder
from pipeline.noise_gap import blocks, scorer
from pipeline.noise_gap.detection import rank_correlation
from pipeline.processes import this_process
from pipeline.writer_lock import one_writer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Six videos of four clips, a quarter of them novel."""
    folder = tmp_path_factory.mktemp("demos")
    return simulate.run(SimulateConfig(out=folder, videos=6, steps=4, novel=0.25, seed=3))


@pytest.fixture(scope="module")
def embeddings(demos, tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("embeddings") / "embeddings.h5", manifest.find_videos(str(demos)))


def config(embeddings, **settings):
    return NoveltyConfig(**{"embeddings": embeddings, "model": "corpus", "updates": 4, "resolution": 32} | settings)


@pytest.fixture(scope="module")
def scored(embeddings):
    return novelty.run(config(embeddings))


def columns_of(path, embeddings):
    return dataset.read_novelty_scores(path, dataset.read_embeddings(embeddings).content_sha256)


def test_every_clip_gets_a_score_and_a_bounded_weight_of_mean_one(embeddings, scored):
    columns, attrs = columns_of(embeddings.with_name("novelty.h5"), embeddings)
    assert columns["score"].shape == (24,) and np.isfinite(columns["score"]).all()
    assert columns["z"].shape == columns["gap"].shape == (24, 5)
    visits = novelty.clip_visits(dataset.read_embeddings(embeddings))
    assert columns["weight"] @ visits / visits.sum() == pytest.approx(1, abs=1e-3)
    assert columns["weight"].min() >= 0.5 and columns["weight"].max() <= 2
    weights = dataset.read_novelty_weights(embeddings.with_name("novelty.h5"), str(attrs["content_sha256"]))
    assert (weights == columns["weight"]).all()


def test_the_result_evaluates_every_labelled_kind(embeddings, scored):
    kinds = dataset.read_embeddings(embeddings).logs.novel_kind
    assert set(scored["auroc"]) == set(kinds) - {""} and len(scored["auroc"]) == 6
    assert scored["auroc_mean"] == pytest.approx(np.mean(list(scored["auroc"].values())))
    assert set(scored["detection"]) == {"score", "knn", "gap", "picture", "motion", "order"}
    json.dumps(scored, allow_nan=False)


def test_a_second_run_measures_nothing_again_and_another_seed_does(embeddings, scored, monkeypatch, tmp_path):
    before = columns_of(embeddings.with_name("novelty.h5"), embeddings)[0]
    measured = []
    measure = scorer.measure
    monkeypatch.setattr(scorer, "measure", lambda *args, **kw: measured.append(1) or measure(*args, **kw))
    novelty.run(config(embeddings))
    assert not measured
    after = columns_of(embeddings.with_name("novelty.h5"), embeddings)[0]
    assert all((before[name] == after[name]).all() for name in before)
    novelty.run(config(embeddings, draws=2, out=tmp_path / "novelty.h5"))
    assert measured


def test_scores_do_not_depend_on_shards_and_batches(embeddings, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_CLIPS", 8)
    out = tmp_path / "novelty.h5"
    shutil.copytree(embeddings.with_name("novelty.model"), tmp_path / "novelty.model")
    results = [novelty.run(config(embeddings, out=out, shards=3, shard=shard, batch_size=1)) for shard in (2, 0, 1)]
    assert [result["path"] for result in results] == [None, None, str(out)]
    sharded, whole = (columns_of(path, embeddings)[0] for path in (out, embeddings.with_name("novelty.h5")))
    for name in ("gap", "score", "weight"):  # of z, a thousandth of a gap is much where there are two dozen clips
        np.testing.assert_allclose(sharded[name], whole[name], atol=1e-5, err_msg=name)


def test_concurrent_shards_fit_one_model_and_write_one_result(embeddings, scored, tmp_path):
    out = tmp_path / "novelty.h5"
    with ThreadPoolExecutor(3) as pool:
        both = [pool.submit(novelty.run, config(embeddings, out=out, shards=2, shard=shard)) for shard in (0, 1)]
        assert any(one.result()["path"] for one in both)
    found, expected = (columns_of(path, embeddings)[0] for path in (out, embeddings.with_name("novelty.h5")))
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-4)
    assert not list(tmp_path.rglob(".*"))


def test_what_a_gpu_made_is_never_taken_for_the_processors(embeddings, scored, tmp_path, monkeypatch):
    """Neither its model nor its measures: both are made again."""
    for name in ("novelty.model", "novelty.parts"):
        shutil.copytree(embeddings.with_name(name), tmp_path / name)
    measured = []
    measure = scorer.measure
    monkeypatch.setattr(scorer, "measure", lambda *args, **kw: measured.append(1) or measure(*args, **kw))
    out = tmp_path / "novelty.h5"
    (part,) = (tmp_path / "novelty.parts").glob("*.h5")
    with h5py.File(part, "a") as file:
        assert file.attrs["arithmetic"] == "cpu fp32"
        file.attrs["arithmetic"] = "cuda fp32"
    novelty.run(config(embeddings, out=out))
    assert measured
    what = tmp_path / "novelty.model" / "corpus.json"
    ours = json.loads(what.read_text())
    what.write_text(json.dumps(ours | {"device": "cuda"}))
    weights = tmp_path / "novelty.model" / "fold-0" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    novelty.run(config(embeddings, out=out))
    assert json.loads(what.read_text()) == ours and weights.stat().st_mtime_ns > before
    _, attrs = columns_of(out, embeddings)
    assert (attrs["device"], attrs["model"]) == ("cpu", "corpus")


def test_a_gpu_has_a_model_of_its_own(embeddings, scored, tmp_path):
    """Fitted for a GPU it has another name, another device in its file and another arithmetic in each part."""
    corpus = novelty.find_corpus(config(embeddings))
    names = {}
    for device in ("cpu", "meta"):
        out = tmp_path / device / "novelty.h5"
        shutil.copytree(embeddings.with_name("novelty.model"), out.with_name("novelty.model"))
        what = out.with_name("novelty.model") / "corpus.json"
        if device != "cpu":
            what.write_text(json.dumps(json.loads(what.read_text()) | {"device": device}))
        one = noise_gap.choose_scorer(config(embeddings), corpus, [], out, torch.device(device), lambda *_: None)
        names[device] = (one.name, one.arithmetic, one.batch_size)
    assert names == {"cpu": ("corpus", "cpu fp32", 8), "meta": ("corpus-meta", "meta fp32", 32)}


class Elsewhere(str):
    """The processor's memory by the name of another device, so that a run goes the way of a GPU's."""

    type = "elsewhere"


def test_a_run_on_another_device_reads_each_video_once_and_ranks_alike(embeddings, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_CLIPS", 8)
    monkeypatch.setattr(novelty.devices, "choose", lambda name: Elsewhere("cpu"))
    hashed = []
    check = rereading.check_unchanged
    monkeypatch.setattr(
        rereading, "check_unchanged", lambda path, sha256: hashed.append(path.name) or check(path, sha256)
    )
    out = tmp_path / "novelty.h5"
    result = novelty.run(config(embeddings, out=out))
    assert sorted(hashed) == [f"{k:04}.mp4" for k in range(6)]
    ours, attrs = columns_of(out, embeddings)
    theirs, _ = columns_of(embeddings.with_name("novelty.h5"), embeddings)
    assert rank_correlation(ours["score"], theirs["score"]) > 0.9
    np.testing.assert_allclose(ours["gap"], theirs["gap"], atol=0.05)
    assert result["model"] == attrs["model"] == "corpus-elsewhere" and attrs["device"] == "elsewhere"
    assert json.loads((tmp_path / "novelty.model" / "corpus.json").read_text())["device"] == "elsewhere"
    part = tmp_path / "novelty.parts" / "block-8-8.h5"
    before = part.read_bytes()
    part.unlink()
    novelty.run(config(embeddings, out=out))  # now the clips are not there from the training, but read for the block
    assert part.read_bytes() == before and len(hashed) == 8


def killed(*args):
    raise KeyboardInterrupt


def test_merge_scores_what_shards_measured_or_names_what_is_missing(embeddings, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_CLIPS", 8)
    out = tmp_path / "novelty.h5"
    shutil.copytree(embeddings.with_name("novelty.model"), tmp_path / "novelty.model")
    for shard in (0, 1):
        assert novelty.run(config(embeddings, out=out, shards=2, shard=shard))["path"] == [None, str(out)][shard]
    whole = out.read_bytes()
    out.unlink()
    merged = novelty.merge(MergeConfig(out=out))
    assert out.read_bytes() == whole and merged["num_scored"] == 24 and merged["model"] == "corpus"
    with monkeypatch.context() as patch:  # ended before it chose a model, with other settings than those of the parts
        patch.setattr(noise_gap, "choose_scorer", killed)
        with pytest.raises(KeyboardInterrupt):
            novelty.run(config(embeddings, out=out, shards=2, shard=1, resolution=48))
    other = config(embeddings, out=out, resolution=48)
    assert novelty.blocks_measured(other, novelty.find_corpus(other)) == (0, 3)
    with raises("shard-incomplete", CorruptError) as caught:
        novelty.merge(MergeConfig(out=out))
    assert "3 of 3 blocks are not measured" in str(caught.value) and out.read_bytes() == whole
    assert novelty.run(config(embeddings, out=out, shards=2, shard=1))["path"] == str(out)
    assert novelty.blocks_measured(config(embeddings, out=out), novelty.find_corpus(other)) == (3, 3)
    part = max((tmp_path / "novelty.parts").glob("*.h5"))
    part.write_bytes(part.read_bytes()[:-100])
    with raises("shard-incomplete", CorruptError) as caught:
        novelty.merge(MergeConfig(out=out))
    assert f"1 of 3 blocks are not measured, or by another model; run: vtp novelty --config {tmp_path}" in str(
        caught.value
    )
    shutil.rmtree(tmp_path / "novelty.parts")
    with raises("parts-missing"):
        novelty.merge(MergeConfig(out=out))


def test_parallel_readers_give_the_same_batches(embeddings, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_CLIPS", 8)
    corpus = novelty.find_corpus(config(embeddings))
    parts = list(noise_gap.split_blocks(corpus))
    wanted = np.array([1, 2, 3, 9, 20])
    for choice in (None, wanted):
        expected = [
            batch for part in parts for batch in noise_gap.read_clips(corpus, part, wanted=choice, batch_size=3)
        ]
        found = list(blocks.read_in_parallel(corpus, parts, num_readers=3, wanted=choice, batch_size=3))
        found.sort(key=lambda batch: batch[0][0])
        assert [rows.tolist() for rows, _ in found] == [rows.tolist() for rows, _ in expected]
        assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(found, expected, strict=True))


def test_parallel_readers_report_the_first_error_and_end(demos, tmp_path):
    folder = tmp_path / "demos"
    shutil.copytree(demos.parent, folder)
    path = write_embeddings(tmp_path / "embeddings.h5", manifest.find_videos(str(folder / "manifest.csv")))
    corpus = novelty.find_corpus(config(path))
    before = threading.active_count()
    read = blocks.read_in_parallel(corpus, list(noise_gap.split_blocks(corpus)), num_readers=2, batch_size=1)
    next(read)
    read.close()
    assert threading.active_count() == before
    (folder / "videos" / "0004.mp4").write_bytes(b"\0")
    with raises("video-changed"):
        list(blocks.read_in_parallel(corpus, list(noise_gap.split_blocks(corpus)), num_readers=2, batch_size=1))
    assert threading.active_count() == before


def test_clips_read_to_train_on_are_not_read_again(embeddings, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_CLIPS", 8)
    corpus = novelty.find_corpus(config(embeddings))
    parts, meta = list(noise_gap.split_blocks(corpus)), torch.device("meta")
    assert [(part.first_clip, part.num_clips) for part in parts] == [(0, 8), (8, 8), (16, 8)]
    kept = tuple((np.arange(first, end), torch.empty(end - first)) for first, end in ((16, 20), (1, 5), (20, 24)))
    one = scorer.Scorer("corpus-cuda", "", "", (32, 32), (), meta, "", 5, kept)
    found = [rows.tolist() for rows, _ in scorer._pixels(one, corpus, parts[1:])]
    assert found[:2] == [[16, 17, 18, 19], [20, 21, 22, 23]]
    assert sorted(found[2:]) == [[8, 9, 10, 11], [12, 13, 14, 15]]


def test_another_writer_of_the_same_output_is_refused(embeddings, tmp_path):
    out = tmp_path / "novelty.h5"
    with one_writer(lock_path(parts_folder(out), 1, 0), out), raises("output-in-use"):
        novelty.run(config(embeddings, out=out))
    assert not out.exists()


def test_a_full_disk_is_a_try_again_error(embeddings, tmp_path):
    out = tmp_path / "novelty.h5"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (10, 1000, 50_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with raises("disk-full", TryAgainError):
                novelty.run(config(embeddings, out=out))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.rglob(".*"))
    assert novelty.run(config(embeddings, out=out))["path"] == str(out)


def test_leftovers_of_a_killed_run_are_removed(embeddings, tmp_path):
    out, dead = tmp_path / "novelty.h5", this_process()._replace(started=1)
    (tmp_path / "novelty.parts").mkdir()
    (tmp_path / "novelty.parts" / f".block-0-4.h5.{dead}-00000000.tmp").touch()
    (tmp_path / f".novelty.h5.{dead}-00000000.tmp").touch()
    (tmp_path / f".novelty.model.{dead}-00000000.tmp" / "fold-0").mkdir(parents=True)
    (tmp_path / f".other.h5.{dead}-00000000.tmp").touch()
    novelty.run(config(embeddings, out=out))
    assert [path.name[:7] for path in tmp_path.rglob(".*")] == [".other."]


def test_a_reference_does_not_depend_on_the_scored_clips(demos, embeddings, tmp_path):
    listed = tmp_path / "demos"
    shutil.copytree(demos.parent, listed)
    pd.read_csv(listed / "manifest.csv").head(4).to_csv(listed / "reference.csv", index=False)
    own = write_embeddings(tmp_path / "embeddings.h5", manifest.find_videos(str(listed / "manifest.csv")))
    by_manifest = novelty.run(config(own, reference=listed / "reference.csv"))
    assert by_manifest["num_scored"] == 24
    other = write_embeddings(tmp_path / "other.h5", manifest.find_videos(str(demos))[:2], seed=5)
    result = novelty.run(config(other, reference=embeddings, out=tmp_path / "against.h5"))
    assert result["num_scored"] == 8
    columns, _ = columns_of(tmp_path / "against.h5", other)
    assert len(columns["score"]) == 8


def test_references_that_cannot_be_compared_are_refused(demos, embeddings, tmp_path):
    other = write_embeddings(tmp_path / "other.h5", manifest.find_videos(str(demos))[:2], projector_sha256="q")
    with raises("reference-differs") as caught:
        novelty.run(config(other, reference=embeddings))
    assert "projector_sha256 p" in str(caught.value) and "has q" in str(caught.value)
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "manifest.csv").write_text("path\na.mp4\n")
    with raises("reference-missing") as caught:
        novelty.run(config(embeddings, reference=tmp_path / "manifest.csv"))
    assert "'a.mp4'" in str(caught.value)


def test_too_few_clips_get_weight_one(demos, tmp_path, caplog):
    few = write_embeddings(tmp_path / "embeddings.h5", manifest.find_videos(str(demos))[:1])
    result = novelty.run(config(few))
    assert result["model"] == "none" and "4 clips are too few for a reference" in caplog.text
    weights = dataset.read_novelty_weights(tmp_path / "novelty.h5", dataset.read_embeddings(few).content_sha256)
    assert (weights == 1).all()


def test_a_changed_video_is_refused_with_both_hashes_and_nothing_is_overwritten(demos, tmp_path):
    folder = tmp_path / "demos"
    shutil.copytree(demos.parent, folder)
    path = write_embeddings(tmp_path / "embeddings.h5", manifest.find_videos(str(folder / "manifest.csv")))
    shutil.copy(path, tmp_path / "novelty.h5")
    earlier = path.read_bytes()
    video = folder / "videos" / "0001.mp4"
    video.write_bytes(video.read_bytes() + b"\0")
    with raises("video-changed") as caught:
        novelty.run(config(path))
    assert len(re.findall(r"\b[0-9a-f]{12}\b", str(caught.value))) == 2
    video.unlink()
    with raises("video-unreadable"):
        novelty.run(config(path))
    assert (tmp_path / "novelty.h5").read_bytes() == earlier


def test_embeddings_that_changed_since_are_refused_with_both_hashes(demos, embeddings, scored, tmp_path):
    changed = write_embeddings(tmp_path / "embeddings.h5", manifest.find_videos(str(demos)), seed=9)
    content = dataset.read_embeddings(changed).content_sha256
    with raises("novelty-other-embeddings") as caught:
        dataset.read_novelty_weights(embeddings.with_name("novelty.h5"), content)
    assert {content[:12], dataset.read_embeddings(embeddings).content_sha256[:12]} <= set(
        re.findall(r"\b[0-9a-f]{12}\b", str(caught.value))
    )
    assert caught.value.exit_code == 2


def test_embeddings_that_are_not_finite_are_refused(demos, embeddings, tmp_path):
    data = dataset.read_embeddings(embeddings)
    data.embeddings[5] = np.nan
    dataset.write_embeddings(tmp_path / "embeddings.h5", data)
    with raises("embeddings-damaged", CorruptError) as caught:
        novelty.run(config(tmp_path / "embeddings.h5"))
    assert "clip 5" in str(caught.value)


def test_stable_video_diffusion_needs_a_gpu_and_enough_frames(demos, svd_folder, tmp_path):
    embeddings = write_embeddings(tmp_path / "embeddings.h5", manifest.find_videos(str(demos))[:2])
    with raises("gpu-missing"):
        novelty.run(config(embeddings, model=str(svd_folder)))
    settings = {"model": str(svd_folder), "allow_slow": True, "out": tmp_path / "novelty.h5"}
    with raises("setting-without-effect"):
        novelty.run(config(embeddings, **settings))  # it trains no model by `updates`
    result = novelty.run(config(embeddings, **settings, updates=NoveltyConfig().updates))
    assert result["model"] == "svd" and result["num_scored"] == 8


def test_frames_are_decoded_as_large_as_the_model_sees_them(embeddings):
    corpus = noise_gap.Corpus((dataset.read_embeddings(embeddings),), np.ones(24, bool))
    block = next(noise_gap.split_blocks(corpus))
    rows, frames = next(noise_gap.read_clips(corpus, block, frame_size=(160, 320), batch_size=3))
    assert rows.tolist() == [0, 1, 2] and frames.shape == (3, 16, 160, 320, 3)


def test_a_damaged_corpus_model_is_named(embeddings, scored, tmp_path):
    shutil.copytree(embeddings.with_name("novelty.model"), tmp_path / "novelty.model")
    next((tmp_path / "novelty.model/fold-1/unet").glob("*.safetensors")).write_bytes(b"\0")
    with raises("model-damaged", CorruptError) as caught:
        novelty.run(config(embeddings, out=tmp_path / "novelty.h5"))
    assert "fold-1" in str(caught.value)


def test_clips_of_long_videos_are_visited_as_training_plays_them(embeddings):
    data = dataset.read_embeddings(embeddings)
    visits = novelty.clip_visits(data)
    held_out = np.repeat(np.array(data.videos.split) == "val", 4)
    assert (visits[~held_out] == 1).all() and (visits[held_out] == 0).all()


def test_the_experiment_compares_within_rounds(embeddings, scored, tmp_path):
    result = experiment.run(
        NoveltyExperimentConfig(embeddings=embeddings, out=tmp_path, rounds=3, draws=20, outcomes="simulator")
    )
    assert result["answer"].startswith("weighting by novelty ")
    table = pd.read_csv(tmp_path / "novelty.csv")
    assert len(table) == 3 * (3 + 3 * 4)
    profit = table[table.kind == "weighting"].pivot(index="round", columns="arm", values="profit")
    difference = result["weighting"]["novelty_minus_equal"]["mean"]
    assert difference == pytest.approx((profit["novelty"] - profit["equal"]).mean(), abs=1e-4)
    assert all((tmp_path / f"novelty.{suffix}").stat().st_size for suffix in ("svg", "png", "json"))


def test_the_experiment_needs_scores(embeddings, tmp_path):
    with raises("novelty-missing") as caught:
        experiment.run(NoveltyExperimentConfig(embeddings=embeddings, novelty=tmp_path / "none.h5", out=tmp_path))
    assert "vtp novelty --embeddings" in str(caught.value)


def test_padded_clips_are_not_scored(embeddings, scored):
    data = dataset.read_embeddings(embeddings)
    data.clips.valid_frames[3] = 9
    parts = sorted(embeddings.with_name("novelty.parts").glob("block-*.h5"))
    settings = {}
    measures = dataset.read_measures(parts[0], settings)
    columns = novelty.score_clips(noise_gap.Corpus((data,), np.ones(24, bool)), measures)
    assert np.isnan(columns["score"][3]) and columns["weight"][3] == 1
    assert np.isfinite(np.delete(columns["score"], 3)).all()
    assert noise_gap.MIN_FOR_SCORES < 24
