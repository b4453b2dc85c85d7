"""The page on exports: its code loads the exports, and it names every format, output and column."""

import os
import re

import numpy as np
import pytest
from small_exports import PRESSING, code_of_page, export, five_clips_each

from pipeline import dataset
from pipeline.exports.exporting import FILES, FOLDERS
from pipeline.tasks import parse_task


@pytest.fixture(scope="module")
def page(request):
    return (request.config.rootpath / "docs/exports.md").read_text()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The data set of data/embeddings.h5 in an empty folder."""
    data = five_clips_each(parse_task(PRESSING, "pressing.yaml"))
    dataset.write_embeddings(tmp_path / "data/embeddings.h5", data)
    monkeypatch.chdir(tmp_path)
    return data


@pytest.mark.parametrize("to", ["npy", "parquet"])
def test_the_code_loads_what_was_exported(page, data, to):
    export(to, "data/embeddings.h5")
    found = {}
    exec(code_of_page(page, to), found)
    rows = slice(0, 5) if to == "npy" else slice(0, 20)
    np.testing.assert_array_equal(found["embeddings"], data.embeddings[rows])
    if to == "npy":
        np.testing.assert_allclose(found["start_ms"], 1000 * data.clips.start_s[:5])
        assert set(re.search(r"# (name, .*)", page).group(1).split(", ")) == set(found["videos"])
    else:
        assert len(found["earned"]) == 4
        assert set(found["clips"]) - {"pressure", "dwell"} <= set(re.findall(r"`(\w+)`", page))


def test_the_table_of_formats_is_true(page, data):
    rows = re.findall(r"^\| `(\w+)` \| `(\S+?)/?` \|.*\| (\S.*?) \|$", page, re.M)
    assert {to for to, *_ in rows} == {*FILES, *FOLDERS}
    for to, name, needs in rows:
        assert os.fspath(export(to, "data/embeddings.h5").path) == f"data/{name}"
        assert (needs != "–") == (to in ("minari", "d3rlpy"))
