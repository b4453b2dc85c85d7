"""The report page: what it says, what it says where something is missing, and that it needs nothing from outside."""

import base64
import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from raising import raises
from runs_by_hand import DISHES, EXPERIMENTS, SECTIONS, SKILL, build_run, edit_summary, report
from small_runs import write_embeddings

from pipeline.config import ReportConfig, SimTrainConfig
from pipeline.files import save_config, write_json
from pipeline.outcomes import SimulatedOutcomes
from pipeline.report import run, run_files
from pipeline.runs import PolicyMetadata, RunDirectory, write_summary
from pipeline.tasks import load_task


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = build_run(tmp_path_factory.mktemp("runs") / "full")
    return path, report(path)


# --- the whole page -------------------------------------------------------------------------------------------------


def test_nothing_is_missing_and_every_number_is_there(full):
    path, page = full
    summary = json.loads((path / "summary.json").read_text())
    profit = summary["profit_mean"]
    for text in (
        f"The policy would earn ${profit:.2f} an hour",
        f"95% interval ${profit - 0.9:.2f} to ${profit + 0.9:.2f}.",
        f"{100 * profit / 39.90:.1f}% of the optimum",
        f"−${31.85 - profit:.2f} an hour against blind",
        f"{(profit + 0.1) / 18:.2f}× the human wage of $18.00",
        "95% interval 86.1% to 90.8%.",
        "Profit is the price of good units less the damage of errors and less energy ($0.10 an hour); no other cost is",
        "1.9% errors",
        "Measured over 8 episodes in closed loop from pixels, in scenes that training never saw.",
        "Average output 103.4 good units an hour",
        "broken.mp4 no video stream encode it again",
        "1,828 of 2,500 actions would meet the service level of 80 good units an hour with at most 6.0% errors.",
        "A 1% higher price would raise profit by 1.09% (95% interval 1.08% to 1.10%).",
        "1% more damage by an error would lower profit by 0.09%.",
        "How the spread responds to a 1% higher human wage is not defined: the spread is not positive.",
        "Of $9,000.00 over 500 training episodes, $900.00 (10.0%) would have gone to customers and $8,100.00 to the",
        "That is $18.00 for each of 500 hours. The spread of",
        "1 of 2 is worth more than nothing (95% intervals above zero); the interval of the other one reaches zero.",
        "Film more like 0023: it is surely worth more than nothing.",
        "0023 20 $4.40 [$3.00, $5.80] $4.20 [$2.90, $5.50] $1.50",
        "would have paid $14,000.00 for work that would have cost them $15,500.00 in flawless human hands",
        "250 101.5 2.0 −3.0 $28.00 $18.50 1.51 $2,375.00 $475.00 $1,900.00 $6,525.00 $1,087.50",
        "Estimated from 384 random orders, each stopped within $0.02 of the full value (740 policies).",
        "taught the policy. It is zero here: no gain in output was attributed to the customer. The estimator of",
        "The estimator of the customers’ share has no measurable skill",
        "Nothing: every part of this page had its data.",
    ):
        assert text in page.text, text
    for name, means in summary["contexts"].items():
        assert f"{name} {means['share']:.0%} of the work" in page.text
        assert f"${means['profit']:.2f} optimum ${means['oracle_profit']:.2f}, blind" in page.text
    for value in summary["provenance"].values():
        assert str(value if value is not None else "–") in page.text


def test_page_is_self_contained(full):
    path, page = full
    assert (path / "report.html").stat().st_size <= 5_000_000
    for name in ("src", "href", "srcset", "data", "action", "poster"):
        assert all(value.startswith("data:") for value in page.attributes(name)), name
    outside = re.sub(r"data:[^\"]*", "", page.html)
    assert "://" not in outside
    assert "url(" not in outside and "@import" not in outside


def test_page_is_accessible(full):
    _, page = full
    assert page.attributes("lang", "html") == ["en"]
    assert all(page.attributes("alt", "img")) and len(page.attributes("src", "img")) == 8
    for tag, attrs in page.elements:
        if tag == "svg":
            assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"])


def test_figures_carry_their_data(full):
    path, page = full
    metrics = pd.read_csv(path / "metrics.csv")
    rows = page.download("profit.csv")
    assert len(rows) == 500
    assert float(rows[-1]["profit"]) == pytest.approx(metrics.profit.iloc[-1], rel=1e-5)
    assert float(rows[-1]["profit_mean_25"]) == pytest.approx(metrics.profit.tail(25).mean(), rel=1e-5)
    assert float(page.download("err_rate.csv")[0]["target"]) == 0.1
    assert [row["context"] for row in page.download("contexts.csv")] == list(DISHES["best"])
    assert len(page.download("frontier.csv")) == 75 and len(page.download("value.csv")) == 2
    steps = [page.download(f"actions-{i}.csv") for i in range(1, 5)]
    assert sum(map(len, steps)) == 480
    assert len(page.download("economics.csv")) == 10
    assert len(page.download("spread-periods.csv")) == 2
    by_who = {row["who"]: row for row in page.download("headline.csv")}
    assert float(by_who["Optimum"]["usd_per_hour"]) == 39.90
    assert float(by_who["This policy"]["low"]) < float(by_who["This policy"]["usd_per_hour"])


def test_same_run_same_page(full):
    path, page = full
    assert report(path).html == page.html


@pytest.mark.parametrize(
    ("validation", "measured"),
    [
        ("closed loop from pixels", "3 episodes in closed loop from pixels, in scenes that training never saw"),
        ("held-out clips", "3 videos held out from training, on their stored clips"),
        ("simulator", "3 episodes in the simulator, from its state"),
    ],
)
def test_a_summary_as_validation_writes_it(tmp_path, validation, measured):
    path = build_run(tmp_path / "run", episodes=40)
    if validation != "closed loop from pixels":
        shutil.rmtree(path / "frames")
    task = load_task("dishwashing").in_scenario("mixed")
    rows = [
        (episode, step, step, *DISHES["best"][task.context_names[step]]) for episode in range(3) for step in range(4)
    ]
    steps = pd.DataFrame(rows, columns=["episode", "step", "row", *task.action_names])
    steps["attempts"], steps["errors"] = 2, 0
    metrics = pd.read_csv(path / "metrics.csv").assign(s_cust=0.25)
    metrics.to_csv(path / "metrics.csv", index=False)
    metadata = PolicyMetadata("embeddings", task, 3, "learned from 9 steps", True, {"command": "vtp train"})
    summary = write_summary(
        RunDirectory(path), SimulatedOutcomes(task, description="simulator"), steps, metadata=metadata,
        validation=validation, stage="evaluate", wall_s=1.5,
        evaluation={"seed": 7, "command": "vtp evaluate RUN --seed 7"},
    )  # fmt: skip
    page = report(path)
    for text in (
        f"The policy would earn ${summary['profit_mean']:.2f} an hour",
        f"Measured over {measured}. Here outcomes come from: simulator; in training they were learned from 9 steps.",
        f"${summary['rebate']:.2f} an hour The part of the spread that would go to the customer",
        "made this run vtp train",
        *(f"{name} 25% of the work" for name in DISHES["best"]),
    ):
        assert text in page.text, text
    assert [row["context"] for row in page.download("contexts.csv")] == list(DISHES["best"])
    assert summary["rebate"] == pytest.approx(summary["captured"] / 3) and summary["rebate"] > 1
    assert ("Nothing: every part of this page had its data." in page.text) == (validation != "held-out clips")


# --- what is missing ------------------------------------------------------------------------------------------------

PARTS = {
    "config.yaml": ("the settings of this run are not known", "vtp train --source embeddings --out {run}"),
    "summary.json": ("the policy has not been validated", "vtp evaluate {run}"),
    "metrics.csv": ("there are no learning curves", "vtp train --config {run}/config.yaml"),
    "validation.csv": ("single actions cannot be shown", "vtp evaluate {run}"),
    "validations.csv": ("no validations made during training", "vtp train --config {run}/config.yaml"),
    "frames/frames.json": ("there are no pictures of what the policy saw", "vtp evaluate {run}"),
    "data_value.json": ("the skill of the estimator", "vtp train --config {run}/config.yaml"),
    "experiments/frontier.json": ("", "vtp experiment frontier {run}"),
    "experiments/elasticity.csv": ("", "vtp experiment elasticity {run}"),
    "experiments/spread.json": ("", "vtp experiment spread {run}"),
    "experiments/value.csv": ("", "--embeddings {run}/data/embeddings.h5 --out {run}/experiments"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_missing_part_is_said_with_its_command(tmp_path, part, damage):
    path = build_run(tmp_path / "run", episodes=60)
    if damage == "missing":
        (path / part).unlink()
    else:
        (path / part).write_text("")
    page = report(path)
    consequence, command = PARTS[part]
    state = "is missing" if damage == "missing" else "cannot be read"
    name = part if damage == "missing" else part.removesuffix(".csv") if "experiments" in part else part
    name = name.removesuffix(".json") if damage == "damaged" and "experiments" in part else name
    assert re.search(rf"{re.escape(name)} {state}.*{re.escape(consequence)}", page.text)
    assert command.format(run=path) in page.text


def test_only_metrics(tmp_path):
    path = build_run(tmp_path / "run", episodes=100)
    for name in ("config.yaml", "summary.json", "validation.csv", "validations.csv", "frames", "data", "experiments"):
        target = path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    page = report(path)
    assert "This policy has not been validated" in page.text
    assert "In its last 5 training episodes it would have earned $" in page.text
    assert len(page.attributes("id")) >= len(SECTIONS)


def test_no_run_is_an_error(tmp_path):
    with raises("run-missing"):
        run(ReportConfig(run=tmp_path / "none"))
    with raises("run-empty"):
        run(ReportConfig(run=tmp_path))


def test_changed_scenes_are_said_beside_the_usual_ones(tmp_path):
    build_run(tmp_path / "run", episodes=3)
    assert "that no demonstration shows" not in report(tmp_path / "run").text
    changed = tmp_path / "run" / "changed" / "summary.json"
    changed.parent.mkdir()
    changed.write_text(json.dumps({"profit_mean": 22.5, "oracle_ratio": 0.571}))
    text = report(tmp_path / "run").text
    assert "a background and sizes that no demonstration shows it would earn $22.50, 57.1% of the optimum" in text
    changed.write_text("{")
    assert "changed/summary.json cannot be read" in report(tmp_path / "run").text


def test_one_episode(tmp_path):
    path = build_run(tmp_path / "run", episodes=1)
    edit_summary(path, profit_ci95=None, episodes=1)
    page = report(path)
    assert "There is no interval: that takes at least two validation episodes." in page.text
    assert len(page.download("profit.csv")) == 1


def test_nan_metrics(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    metrics = pd.read_csv(path / "metrics.csv")
    metrics["alpha"] = metrics["mean_care"] = np.nan
    metrics.loc[5:9, "profit"] = np.nan
    metrics.loc[20, "err_rate"] = np.inf
    metrics["episode"] = np.nan
    metrics.to_csv(path / "metrics.csv", index=False)
    page = report(path)
    assert "metrics.csv has no finite number for: Temperature, α." in page.text
    assert page.download("profit.csv")[5]["profit"] == ""


def test_nulls_in_the_summary(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    keys = ("oracle_profit", "blind_profit", "oracle_ratio", "wage_parity", "human_wage", "spread", "contexts")
    edit_summary(path, **dict.fromkeys(keys), validation="held-out clips", outcome_model="seed parameters")
    page = report(path)
    assert "summary.json has no number for wage_parity, oracle_profit, blind_profit, spread." in page.text
    assert "summary.json has no contexts: nothing is known by context." in page.text
    assert (
        "Measured over 8 videos held out from training, on their stored clips." in page.text
        and "Outcomes come from: seed parameters." in page.text
    )
    edit_summary(path, profit_mean=None)
    assert "This policy has not been validated" in report(path).text


def test_no_pictures_where_validation_renders_none(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    shutil.rmtree(path / "frames")
    edit_summary(path, validation="simulator")
    page = report(path)
    assert "There are no pictures: the policy sees the simulator’s state." in page.text
    assert "Nothing: every part of this page had its data." in page.text
    edit_summary(path, validation="held-out clips")
    page = report(path)
    assert "There are no pictures: validation was on stored clips." in page.text
    assert f"vtp evaluate {path}" in page.text
    for simulator in (None, {"renderer": None}):
        edit_summary(path, task_definition={"name": "sorting", "simulator": simulator})
        page = report(path)
        assert "There are no pictures: nothing draws this task." in page.text
        assert "Nothing: every part of this page had its data." in page.text


@pytest.mark.parametrize("row", ['{"video_id": "a.mp4", "reason": "empty"}', "[]", "not JSON"])
def test_a_damaged_list_of_failures_is_said(tmp_path, row):
    path = build_run(tmp_path / "run", episodes=40)
    (path / "data" / "failures.jsonl").write_text(row)
    page = report(path)
    assert re.search(r"failures\.jsonl cannot be read \(.+\): failed videos are not known", page.text)
    assert f"vtp extract VIDEOS --out {path / 'data' / 'embeddings.h5'}" in page.text


def test_a_retrained_policy_is_set_beside_the_others(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    result, _ = EXPERIMENTS["elasticity"]
    slopes = {who: dict(value=value) for who, value in (("policy", 1.1), ("retrained", 1.05), ("oracle", None))}
    result = result | dict(
        retrained=dict(updates=1200, seeds=2),
        judged_on="8 videos",
        elasticities_over_range=dict(price=slopes, damage=slopes),
    )
    write_json(path / "experiments" / "elasticity.json", result)
    assert (
        "retrained at every point by 1,200 updates (2 seeds) and judged, as the others, on 8 videos: over the whole "
        "range a 1% higher price would change profit by 1.10%, 1.05%, –, and 1% more damage by 1.10%, 1.05%, – (fixed, "
        "retrained, optimum)."
    ) in report(path).text


def test_clips_without_labels_are_told_how_to_get_them(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    shutil.rmtree(path / "frames")
    for file in (path / "experiments").glob("value.*"):
        file.unlink()
    edit_summary(path, validation="held-out clips", labelled=False)
    page = report(path)
    assert "value of each demonstration is not known: the clips have no labels" in page.text
    assert page.text.count(f"vtp extract MANIFEST --out {path / 'data' / 'embeddings.h5'}") == 4, "twice each"
    assert "vtp experiment value" not in page.text, "it would fail"


def test_a_run_without_novelty_scores_is_told_how_to_get_them(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    embeddings = path / "data" / "embeddings.h5"
    write_embeddings(embeddings)
    page = report(path)
    assert "There is no gallery of the most novel clips: no clip has been scored." in page.text
    assert f"vtp novelty --embeddings {embeddings}" in page.text


def test_settings_are_those_of_the_source(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    settings = report(path).text.split("Training settings")[1]
    assert f"embeddings {path / 'data' / 'embeddings.h5'}" in settings and " scenario " not in settings
    save_config(path / "config.yaml", SimTrainConfig(out=path, scenario="mixed"))
    settings = report(path).text.split("Training settings")[1]
    assert " scenario mixed " in settings and " embeddings " not in settings


def test_the_commands_repeat_the_run(full):
    path, page = full
    commands = page.text.split("Commands, versions and hashes")[1]
    for command in ("train --config", "evaluate", "experiment frontier", "experiment value --embeddings", "report"):
        assert f"vtp {command} " in commands
    assert "vtp extract --config" not in commands, "only where extraction left its settings"
    embeddings = path / "data" / "embeddings.h5"
    embeddings.with_suffix(".yaml").write_text("")
    edit = json.loads((path / "summary.json").read_text())
    try:
        edit_summary(path, evaluation={"seed": 7, "command": "vtp evaluate RUN --seed 7"})
        commands = report(path).text.split("Commands, versions and hashes")[1]
    finally:
        embeddings.with_suffix(".yaml").unlink()
        write_json(path / "summary.json", edit)
    assert f"vtp extract --config {embeddings.with_suffix('.yaml')} --out " in commands
    assert "vtp evaluate RUN --seed 7" in commands


def test_times_are_those_of_the_stages(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    edit_summary(path, stages_wall_s={"train": 300.0, "evaluate": 112.5})
    text = report(path).text
    assert "train, seconds 300 evaluate, seconds 112.5 all stages, seconds 412.5" in text


def test_skill_of_the_estimator_in_words(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    for changes, words in (
        (dict(r2_ci95=[0.01, 0.2]), "has skill"),
        (dict(rank_correlation_ci95=[0.01, 0.2]), "better than chance, but is no better than a constant"),
        (dict(r2=None), "500 episodes are too few"),
    ):
        write_json(path / "data_value.json", {"estimator": SKILL | changes})
        assert words in report(path).text


def test_a_policy_of_the_simulator_has_no_demonstrations(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    save_config(path / "config.yaml", SimTrainConfig(out=path))
    assert "There are none: the policy learned in the simulator." in report(path).text


def test_losing_policy_and_one_context(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    edit_summary(path, profit_mean=-3.21, profit_ci95=[-4.0, -2.4], oracle_profit=28.43, blind_profit=28.43)
    edit_summary(path, oracle_ratio=-0.113, oracle_ratio_ci95=[-0.141, -0.084])
    page = report(path)
    assert "The policy would lose $3.21 an hour" in page.text
    assert "95% interval −$4.00 to −$2.40." in page.text
    assert "−11.3% of the optimum" in page.text and "95% interval −14.1% to −8.4%." in page.text
    assert "−$31.64 an hour against blind" in page.text
    assert "blind is the optimum" in page.text


# --- hostile input --------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert('\"x\"')</script>"


def test_hostile_strings_are_escaped(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    for name in ("summary.json", "frames/frames.json", "validation.csv"):
        text = (path / name).read_text().replace('"glass"', json.dumps(HOSTILE))
        (path / name).write_text(text.replace(",glass,", "," + '"' + HOSTILE.replace('"', '""') + '"' + ","))
    edit_summary(path, outcome_model=HOSTILE, provenance={HOSTILE: HOSTILE, "command": HOSTILE})
    (path / "config.yaml").write_text(yaml.safe_dump({"source": "embeddings", "embeddings": str(path / HOSTILE)}))
    page = report(path)
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 1
    assert page.text.count(HOSTILE) >= 5
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)


@pytest.mark.parametrize("file", ["../config.yaml", "link.png", "gone.png"])
def test_frames_stay_in_their_folder(tmp_path, file):
    path = build_run(tmp_path / "run", episodes=40)
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    os.symlink(secret, path / "frames" / "link.png")
    write_json(path / "frames" / "frames.json", [{"file": file, "context": "pan"}])
    page = report(path)
    assert "frames/frames.json cannot be read" in page.text
    assert base64.b64encode(b"secret").decode() not in page.html


def test_frames_are_left_out_for_size(tmp_path, monkeypatch):
    path = build_run(tmp_path / "run", episodes=40)
    largest = max(p.stat().st_size for p in (path / "frames").glob("*.png"))
    monkeypatch.setattr(run_files, "FRAME_BYTES", 5 * largest)
    page = report(path)
    shown = len(page.attributes("src", "img"))
    assert 5 <= shown < 8
    assert f"{8 - shown} more pictures left out for size." in page.text
    assert {alt.split(",")[0] for alt in page.attributes("alt", "img") if ", as the policy" in alt} == set(
        DISHES["best"]
    )


def test_long_run_stays_small(tmp_path):
    path = build_run(tmp_path / "run", episodes=20_000)
    validation = pd.read_csv(path / "validation.csv")
    pd.concat([validation] * 100).to_csv(path / "validation.csv", index=False)
    rng = np.random.default_rng(0)
    for image in (path / "frames").glob("*.png"):
        Image.fromarray(rng.integers(256, size=(160, 205, 3), dtype=np.uint8)).save(image)
    report(path)
    assert (path / "report.html").stat().st_size <= 5_000_000
