import dataclasses
import json
import logging
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from raising import raises
from safetensors import safe_open
from small_runs import embeddings_config, sim_config, write_embeddings

from pipeline import dataset, policy, runs, train
from pipeline.config import ActConfig, PolicyExportConfig
from pipeline.errors import CorruptError, UntrustedError
from pipeline.policy import SUFFIXES, acting, loaded_policy
from pipeline.policy.card import Network
from pipeline.rl.sac import Agent

COLUMNS = [
    "video_id", "clip", "start_s", "end_s", "speed", "care",
    "profit_usd_per_hour", "profit_low", "profit_high", "novelty",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on embeddings and one on states, each with its policy in all formats, and the embeddings."""
    folder = tmp_path_factory.mktemp("policy")
    write_embeddings(folder / "embeddings.h5")
    train.run(embeddings_config(folder, folder / "embeddings.h5", centre="video", outcomes="auto"))
    train.run(sim_config(folder, out=folder / "sim"))
    for run in ("run", "sim"):
        for to in SUFFIXES:
            policy.export(PolicyExportConfig(run=folder / run, to=to))
    return folder


def act(trained, path="run", embeddings="embeddings.h5", **settings):
    return policy.act(ActConfig(policy=trained / path, embeddings=trained / embeddings, **settings))


def copy(trained, folder, to):
    path = folder / f"policy{SUFFIXES[to]}"
    path.write_bytes((trained / "run" / path.name).read_bytes())
    return path


@pytest.fixture
def nothing_runs(monkeypatch):
    """Loading a program or a graph is an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("it was run")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)


# The same policy in every format


def test_clips_are_named_and_actions_are_the_agents_own(trained):
    table, data = act(trained), dataset.read_embeddings(trained / "embeddings.h5")
    agent, _ = runs.load_policy(trained / "run")
    assert list(table.columns) == COLUMNS
    seen = runs.observed(data, data.embeddings[:96].mean(0, dtype=float).tolist())  # 8 training videos
    np.testing.assert_allclose(table[["speed", "care"]], agent.act(torch.from_numpy(seen)), atol=1e-6)
    assert table["video_id"].tolist() == np.repeat(data.videos.id, np.diff(data.offset)).tolist()
    assert table["clip"].tolist() == list(range(12)) * 10
    np.testing.assert_array_equal(table["start_s"], data.clips.start_s)
    assert table["speed"].std() > 1e-3, "an untrained constant would hide a difference between formats"


def test_clips_are_seen_as_they_were_in_training(trained, tmp_path):
    """Without --centre video, embeddings are observed unchanged."""
    data = dataset.read_embeddings(trained / "embeddings.h5")
    train.run(embeddings_config(tmp_path, trained / "embeddings.h5"))
    path = policy.export(PolicyExportConfig(run=tmp_path / "run", to="safetensors"))
    agent, _ = runs.load_policy(tmp_path / "run")
    expected = agent.act(torch.from_numpy(data.embeddings))
    np.testing.assert_allclose(act(trained, path)[["speed", "care"]], expected, atol=1e-5)


@pytest.mark.parametrize("to", SUFFIXES)
def test_every_format_acts_alike(trained, to):
    np.testing.assert_allclose(
        act(trained, f"run/policy{SUFFIXES[to]}")[["speed", "care"]], act(trained)[["speed", "care"]], atol=1e-5
    )


@pytest.mark.parametrize("to", SUFFIXES)
def test_policies_on_states_act_alike_in_batches_of_any_size(trained, to):
    states = np.random.default_rng(0).random((7, 4), np.float32)
    expected = runs.load_policy(trained / "sim")[0].act(torch.from_numpy(states))
    loaded = policy.load(trained / "sim" / f"policy{SUFFIXES[to]}")
    np.testing.assert_allclose(loaded.act(states), expected, atol=1e-5)
    np.testing.assert_allclose(loaded.act(states[:1]), expected[:1], atol=1e-5)
    assert (loaded.card.source, loaded.card.observation_size, loaded.card.encoding) == ("sim", 4, None)


def test_rounding_passes_no_bound():
    """-10 and the span to -3.7 add up to more than -3.7 in float32."""
    agent = Agent(torch.nn.Identity(), 2, low=[-10.0], high=[-3.7])
    assert agent.action_low + (agent.action_high - agent.action_low) > -3.7
    agent.average_actor.forward = lambda latent: (latent[:, :1], latent[:, :1])
    actions = Network(agent)(torch.tensor([[50.0, 0.0], [-50.0, 0.0]]))
    assert actions[:, 0].tolist() == [float(agent.action_high), float(agent.action_low)]
    assert actions.max() <= -3.7


def test_more_clips_than_a_block(trained, monkeypatch):
    expected = act(trained)
    monkeypatch.setattr(loaded_policy, "BLOCK_ROWS", 7)
    pd.testing.assert_frame_equal(act(trained), expected, rtol=1e-5)


@pytest.mark.parametrize("to", SUFFIXES)
def test_the_card_says_where_the_policy_comes_from(trained, to):
    card = policy.load(trained / "run" / f"policy{SUFFIXES[to]}").card
    _, meta = runs.load_policy(trained / "run")
    assert card.model_dump(exclude={"sha256", "validation"}) == policy.card_of(meta).model_dump(
        exclude={"sha256", "validation"}
    )
    assert card.validation == "Estimated from your logs: not identified against the logging policy"
    assert card.provenance == meta.provenance
    assert (card.observation_size, card.encoding.backbone, card.encoding.clip_len) == (128, "r3d_18", 16)


def test_the_card_is_read_with_each_formats_own_means(trained):
    run = trained / "run"
    with safe_open(run / "policy.safetensors", "pt") as file:
        texts = [file.metadata()["vtp"]]
    texts.append(onnxruntime.InferenceSession(run / "policy.onnx").get_modelmeta().custom_metadata_map["vtp"])
    (projector,) = {json.loads(text)["projector_sha256"] for text in texts}
    assert len(projector) == 64


def test_onnx_leaves_neither_the_exporters_paths_nor_its_notes(trained, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = policy.export(PolicyExportConfig(run=trained / "run", to="onnx", out=tmp_path / "policy.onnx"))
    assert b"pipeline/policy.py" not in path.read_bytes()
    assert not caplog.records


# Embeddings of another kind


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "timesformer_b"}, ["timesformer_b", "r3d_18", "--backbone r3d_18"]),
        ({"weights_sha256": "1" * 64}, ["111111111111", "000000000000", "--weights random:0"]),
        ({"clip_len": 8}, ["clip_len 8", "--clip-len 16"]),
        ({"fps": 30.0}, ["fps 30.0", "--fps 15.0"]),
    ],
)
def test_embeddings_of_another_encoder_are_refused(trained, tmp_path, changes, words):
    data = dataset.read_embeddings(trained / "embeddings.h5")
    dataset.write_embeddings(tmp_path / "other.h5", replace(data, attrs=data.attrs | changes))
    with raises("embeddings-of-other-encoder") as caught:
        act(trained, "run/policy.onnx", tmp_path / "other.h5")
    assert all(word in str(caught.value) for word in [*words, "other.h5", "policy.onnx"]), caught.value


def test_embeddings_of_another_projector_are_refused(trained, tmp_path):
    data = dataset.read_embeddings(trained / "embeddings.h5")
    dataset.write_embeddings(tmp_path / "other.h5", replace(data, projector_scale=2.0))
    with raises("embeddings-of-other-encoder") as caught:
        act(trained, embeddings=tmp_path / "other.h5")
    assert f"--projector {trained / 'embeddings.h5'}" in str(caught.value)


def test_new_clips_of_the_same_encoder_and_projector_are_welcome(trained, tmp_path):
    data = dataset.read_embeddings(trained / "embeddings.h5")
    dataset.write_embeddings(tmp_path / "new.h5", replace(data, embeddings=data.embeddings[::-1], logs=None))
    expected = act(trained)[["speed", "care"]][::-1]
    np.testing.assert_allclose(act(trained, embeddings=tmp_path / "new.h5")[["speed", "care"]], expected, atol=1e-6)


def test_a_policy_on_states_has_no_embeddings_to_read(trained):
    with raises("policy-on-states"):
        act(trained, "sim/policy.safetensors")


# Damage and malice


@pytest.mark.parametrize("to", SUFFIXES)
def test_a_flipped_bit_is_found_before_anything_runs(trained, tmp_path, to, nothing_runs):
    path, rng = copy(trained, tmp_path, to), np.random.default_rng(0)
    content = path.read_bytes()
    positions = rng.integers(len(content), size=12)
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with raises("policy-corrupt", CorruptError):
            policy.load(path)


@pytest.mark.parametrize("to", SUFFIXES)
@pytest.mark.parametrize("kept", [0, 7, 1000, -1])
def test_a_file_cut_short_is_refused(trained, tmp_path, to, kept, nothing_runs):
    path = copy(trained, tmp_path, to)
    path.write_bytes(path.read_bytes()[:kept])
    with raises("policy-corrupt", CorruptError):
        policy.load(path)


def test_an_onnx_graph_that_the_runtime_refuses_is_one_line(trained, tmp_path):
    model = onnx.load(trained / "run" / "policy.onnx")
    model.opset_import[0].version = 10_000
    path = write_onnx(trained, tmp_path, model)
    with raises("policy-corrupt", CorruptError):
        policy.load(path)


def write_onnx(trained, folder, model):
    """A graph with a card and a sha256 that agree with it."""
    onnx.helper.set_model_props(model, {"vtp": policy.load(trained / "run").card.model_dump_json()})
    path = folder / "policy.onnx"
    path.write_bytes(policy.card.seal(model.SerializeToString()))
    return path


@pytest.mark.parametrize("harm", ["external", "function", "branch"])
def test_an_onnx_graph_that_is_more_than_a_network_is_not_run(trained, tmp_path, harm, nothing_runs):
    model = onnx.load(trained / "run" / "policy.onnx")
    if harm == "external":
        (tmp_path / "elsewhere").write_bytes(bytes(1 << 20))
        weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        onnx.external_data_helper.set_external_data(weights, location="elsewhere")
        weights.ClearField("raw_data")
    elif harm == "function":
        model.graph.node[0].domain = "elsewhere"
        model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    else:
        body = onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["observations"], ["same"])], "body", [],
            [onnx.helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, None)],
        )  # fmt: skip
        truth = onnx.helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["yes"], value=truth))
        model.graph.node.insert(1, onnx.helper.make_node("If", ["yes"], ["out"], then_branch=body, else_branch=body))
    path = write_onnx(trained, tmp_path, model)
    with raises("policy-untrusted", UntrustedError):
        policy.load(path)


def test_a_file_of_another_kind_is_named(trained, tmp_path):
    with raises("policy-untrusted", UntrustedError):
        policy.load(trained / "run" / "best.pt")
    with raises("policy-missing"):
        policy.load(tmp_path / "policy.tflite")


@pytest.mark.parametrize(
    "given", [lambda seen: seen[:, :2] + 2, lambda seen: seen[:, :3] * 0, lambda seen: seen[:, :2] * np.nan]
)
def test_a_policy_that_gives_no_actions_of_its_task_is_refused(trained, monkeypatch, given):
    loaded = policy.load(trained / "run")
    monkeypatch.setattr(acting, "load", lambda path: dataclasses.replace(loaded, network=given))
    with raises("policy-corrupt", CorruptError):
        act(trained)


# The command line


def test_export_and_act(vtp, trained, tmp_path):
    code, out, _ = vtp("policy", "export", trained / "run", "--to", "onnx", "--out", "mine/grasp.onnx")
    assert (code, out) == (0, "wrote mine/grasp.onnx; next: vtp act mine/grasp.onnx --embeddings EMBEDDINGS\n")
    code, out, err = vtp("act", "mine/grasp.onnx", "--embeddings", trained / "embeddings.h5", "--out", "actions.csv")
    assert (code, out, err) == (0, "wrote actions.csv: actions for 120 clips\n", "")
    code, out, _ = vtp("act", "mine/grasp.onnx", "--embeddings", trained / "embeddings.h5")
    assert (code, out) == (0, (tmp_path / "actions.csv").read_text())
    assert out.startswith(",".join(COLUMNS) + "\nv0,0,0.0,1.0,0.")
    code, out, _ = vtp("act", trained / "run", "--embeddings", trained / "embeddings.h5", "--json")
    rows = json.loads(out)
    assert (code, len(rows), list(rows[0])) == (0, 120, COLUMNS)
    assert rows[0]["speed"] == pytest.approx(act(trained)["speed"][0])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["policy", "export", "{}/run", "--to", "onnx", "--out", "policy.pt"], 2, "must end in .onnx"),
        (["policy", "export", "{}/run"], 2, "--to"),
        (["policy", "export", "{}/run", "--to", "tflite"], 2, "tflite"),
        (["policy", "export", "{}/none", "--to", "onnx"], 2, "not a run directory"),
        (["act", "{}/sim", "--embeddings", "{}/embeddings.h5"], 2, "simulator's state"),
        (["act", "{}/run", "--embeddings", "{}/none.h5"], 2, "vtp extract"),
        (["act", "{}/embeddings.h5", "--embeddings", "{}/embeddings.h5"], 2, "vtp policy export RUN"),
    ],
)
def test_mistakes_are_one_line(vtp, trained, arguments, code, words):
    found, out, err = vtp(*(argument.format(trained) for argument in arguments))
    assert (found, out, err.count("\n")) == (code, "", 1), (out, err)
    assert words in err and err.startswith("vtp: ")


def test_damage_is_exit_code_four(vtp, trained, tmp_path):
    path = copy(trained, tmp_path, "safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, out, err = vtp("act", path, "--embeddings", trained / "embeddings.h5")
    assert (code, out) == (4, "")
    assert "damaged" in err


@pytest.mark.parametrize("library", ["onnx", "onnxscript"])
def test_a_missing_library_is_named_with_its_remedy(vtp, trained, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    code, out, err = vtp("policy", "export", trained / "run", "--to", "onnx", "--out", "policy.onnx")
    assert (code, out) == (2, "")
    assert f"{library} is missing" in err and "pip install onnx onnxscript onnxruntime" in err
