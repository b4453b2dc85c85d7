import shutil

import h5py
import pytest
from factories import write_video

from pipeline import doctor, extract
from pipeline.config import DoctorConfig, ExtractConfig
from pipeline.extraction import parts, shards


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / "videos").mkdir()
    for number in range(2):
        write_video(tmp_path / f"videos/{number}.mp4", 4, first=number * 10)
    return ExtractConfig(
        source=str(tmp_path / "videos"), out=tmp_path / "out/e.h5", weights="random:0", clip_len=2, clip_stride=4,
        batch_size=2, shards=2,
    )  # fmt: skip


def findings(cfg):
    return list(doctor.check_output(cfg.out))


def test_this_machine_can_extract(tmp_path):
    found = {finding.subject: finding for finding in doctor.check_machine(tmp_path / "none/e.h5")}
    assert found["decord"].found == found["pyav"].found == "decodes a test video correctly"
    assert f"GB free in {tmp_path}" in found["space"].found
    assert not any(finding.is_damage for finding in found.values())


@pytest.mark.slow
def test_an_output_from_its_beginning_to_its_damage(cfg):
    assert [finding.found for finding in findings(cfg)] == ["no extraction was started here"]
    extract.run(cfg.model_copy(update={"shard": 1}))
    (state,) = findings(cfg)
    assert state.found == "1 of 2 videos are done, 0 have failed, 1 are still to do"
    assert state.fix.startswith("run: vtp extract --config") and state.fix.endswith("--shard 0")
    extract.run(cfg.model_copy(update={"shard": 0}))
    extract.merge(cfg)
    whole, state = findings(cfg)
    assert (whole.found, state.fix) == ("undamaged: 2 clips of 2 videos", "")

    cfg.out.write_bytes(cfg.out.read_bytes()[:-100])
    folder = shards.parts_folder(cfg.out)
    first, second = parts.part_paths(folder)
    first.write_bytes(first.read_bytes()[:-100])
    second.unlink()
    embeddings, damaged, missing, _ = findings(cfg)
    assert embeddings.is_damage and damaged.is_damage and missing.is_damage
    assert (damaged.subject, missing.subject) == (first.name, second.name)
    assert {damaged.fix[-9:], missing.fix[-9:]} == {"--shard 0", "--shard 1"}
    assert doctor.run(DoctorConfig(out=cfg.out))[-4:] == [embeddings, damaged, missing, findings(cfg)[-1]]


def test_old_or_missing_files_are_not_damage(cfg, tmp_path):
    extract.run(cfg.model_copy(update={"shards": 1}))
    with h5py.File(cfg.out, "a") as file:
        file.attrs["schema_version"] = 1
    old, state = findings(cfg)
    assert "schema version 1" in old.found and not old.is_damage
    assert state.found.startswith("2 of 2 videos are done")
    shutil.rmtree(tmp_path / "videos")
    (source,) = findings(cfg)[1:]
    assert "does not exist" in source.found and not source.is_damage


def test_damaged_settings_are_damage(cfg):
    extract.run(cfg.model_copy(update={"shards": 1}))
    (shards.parts_folder(cfg.out) / "config.yaml").write_text("{")
    assert findings(cfg)[-1].is_damage
