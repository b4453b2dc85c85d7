"""Continued training of a run's policy with changed outcomes or prices."""

import numpy as np
import pytest
import torch
from raising import raises
from small_runs import embeddings_config, sim_config, write_embeddings, write_task

from pipeline import train
from pipeline.config import VideoTrainConfig
from pipeline.experiments.retrain import NUM_ENVS, Retrainer
from pipeline.files import save_config
from pipeline.outcomes import expected_worth
from pipeline.rl.rollouts import actions_of
from pipeline.runs import RunDirectory, load_policy

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on embeddings that has learned a little, and one in the simulator that has not."""
    folder = tmp_path_factory.mktemp("retrain")
    path = write_embeddings(folder / "embeddings.h5")
    settings = {"episodes": 600, "num_envs": 64, "batch_size": 64, "updates_per_episode": 2, "evaluations": 1}
    train.run(embeddings_config(folder, path, **settings))
    train.run(sim_config(folder, out=folder / "sim", task="dishwashing", scenario="mixed", episodes=8))
    return folder


def test_retraining_is_determined_by_its_seed(trained):
    retrainer = Retrainer(RunDirectory(trained / "run"))
    first, same, other = (retrainer.retrain(retrainer.model, updates=8, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["actor.net.0.weight"], other["actor.net.0.weight"])


def test_retraining_continues_from_the_run_without_changing_it(trained):
    before = (trained / "run" / "best.pt").read_bytes()
    retrainer = Retrainer(RunDirectory(trained / "run"))
    assert retrainer._settings.num_envs == NUM_ENVS and retrainer._settings.lr == 1e-3
    own, _ = load_policy(trained / "run")
    few = retrainer.retrain(retrainer.model, updates=4, seed=0).state_dict()
    for name, value in own.state_dict().items():
        if name.startswith("actor."):  # Adam's first steps have the size of its learning rate
            torch.testing.assert_close(few[name], value, rtol=0, atol=8e-3)
    for name in ("encoder.mean", "encoder.scale"):
        assert torch.equal(few[name], own.state_dict()[name]), "the encoder is unchanged"
    assert (trained / "run" / "best.pt").read_bytes() == before


def test_it_is_judged_on_data_held_out_of_training(trained):
    retrainer = Retrainer(RunDirectory(trained / "run"))
    steps = retrainer.judge(retrainer.model)
    assert sorted(steps["row"].unique()) == list(range(8 * 12, 10 * 12)), "the two videos of the val split"
    assert "val split" in retrainer.held_out
    simulated = Retrainer(RunDirectory(trained / "sim"))
    assert simulated.judge(simulated.model)["episode"].nunique() == 200
    assert "simulator" in simulated.held_out


def test_if_errors_cost_more_the_policy_takes_more_care(trained):
    retrainer = Retrainer(RunDirectory(trained / "run"))
    found = []
    for price in (0.0, 64.0):
        agent = retrainer.retrain(retrainer.model, updates=400, lambda_dual=price, seed=0)
        steps = retrainer.judge(retrainer.model, agent)
        work = expected_worth(retrainer.model, steps["row"].to_numpy(), actions_of(steps, retrainer.model.task))
        found.append((np.average(work.err_rate, weights=work.attempts), steps["care"].mean()))
    (err, care), (err_dear, care_dear) = found
    assert err_dear < err - 0.005 and care_dear > care + 0.05


def test_data_changed_since_training_are_refused(tmp_path):
    """Today's outcomes would differ from those that the policy was trained on."""
    task = write_task(tmp_path, "pressing")
    path = write_embeddings(tmp_path / "embeddings.h5", task=task)
    train.run(embeddings_config(tmp_path, path, task=str(task)))
    before = task.read_text()
    task.write_text(before.replace("human_wage_usd: 15.0", "human_wage_usd: 16.0"))
    with raises("run-other-data"):
        Retrainer(RunDirectory(tmp_path / "run"))
    task.write_text(before)
    Retrainer(RunDirectory(tmp_path / "run"))
    write_embeddings(path, task=task, clips=13)
    with raises("embeddings-differ"):
        Retrainer(RunDirectory(tmp_path / "run"))


def test_a_run_on_video_is_not_retrained(tmp_path):
    save_config(tmp_path / "config.yaml", VideoTrainConfig())
    with raises("retrain-on-video"):
        Retrainer(RunDirectory(tmp_path))
