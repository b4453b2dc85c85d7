"""The report page: what it says, what it says where something is missing, and that it needs nothing from outside."""

import base64
import csv
import io
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml
from browser import needs_browser, visit
from PIL import Image, ImageDraw

from pipeline import econ, evaluate
from pipeline.config import FrontierConfig, ReportConfig, TrainConfig
from pipeline.errors import VtpError
from pipeline.experiments import frontier
from pipeline.report import figures, run, run_files, themed
from pipeline.synthetic import dynamics

MIXED = dynamics.scenario("dishwashing", "mixed")
BEST = {"pan": (1.0, 0.31), "plate": (1.0, 0.93), "glass": (0.72, 1.0), "mug": (1.0, 0.62)}
COLOURS = {"pan": "#34383d", "plate": "#f3f1ea", "glass": "#bfe0ea", "mug": "#c8553d"}
SECTIONS = (
    "headline", "behaviour", "actions", "learning", "economics", "experiments", "data-value", "provenance", "missing",
)  # fmt: skip


def expected(context: int, speed, care):
    """Expected profit in $/h and error probability of an action in a context."""
    rate, p_err = dynamics.dynamics(MIXED, context, speed, care)
    c = MIXED.contexts[context]
    mp = dynamics.STEPS_PER_HOUR * dynamics.expected_attempts(rate) * (1 - p_err)
    return econ.profit(econ.implied_wage(mp, p_err, c.price_usd, c.damage_usd), MIXED.energy_usd_per_hour), p_err


PERIOD = dict(
    first_episode=1, last_episode=250, hours=250.0, mp=101.5, delta_mpl=2.0, delta_mpl_trailing=-3.0, implied_wage=28.0,
    human_wage=18.5, wage_parity=1.51, spread_value=2375.0, rebate=475.0, captured_spread=1900.0, customer_cost=6525.0,
    consumer_surplus=1087.5,
)  # fmt: skip
EXPERIMENTS = {  # key numbers and data, as the experiments leave them
    "frontier": (
        dict(analytic_count=1828, monte_carlo_count=1830, grid=50, min_mp=80.0, max_err=0.06, env_steps=60_000_000,
             optimum=dict(speed=1.0, care=0.97, profit=31.77), contexts={"pan": {}, "mug": {}}),
        pd.DataFrame({"speed": [0.0, 1.0], "care": [0.0, 1.0]}),
    ),
    "elasticity": (
        dict(elasticities={"price": {"policy": dict(value=1.09, low=1.08, high=1.1)},
                           "damage": {"policy": dict(value=-0.09, low=None, high=None)},
                           "human_wage": {"policy": dict(value=None, low=None, high=None)}},
             error_target=0.06, shadow_price={"policy": dict(value=0.0)}),
        pd.DataFrame({"curve": ["price"], "x": [1.0], "value": [35.0]}),
    ),
    "spread": (
        dict(episodes=500, hours=500.0, spread_usd=9000.0, rebate_usd=900.0, captured_usd=8100.0, customer_share=0.1,
             customer_cost_usd=14000.0, consumer_surplus_usd=1500.0, periods=[PERIOD, PERIOD]),
        pd.DataFrame({"episode": [1, 2], "spread": [3.0, 4.0]}),
    ),
    "value": (
        dict(demonstrations=2, profit_of_none=31.8, profit_of_all=36.0, worth_more_than_nothing=1, paid_per_hour=4.2,
             spread_per_hour=18.1, orders=384, tolerance=0.02, policies_learned=740),
        pd.DataFrame(dict(name=["0023", "0004"], clips=20, value=[4.4, -0.2], low=[3.0, -0.9], high=[5.8, 0.5],
                          leave_one_out=[1.5, 0.1], price=[4.2, 0.0], price_low=[2.9, 0.0], price_high=[5.5, 0.5])),
    ),
}  # fmt: skip
SKILL = dict(episodes=500, r2=-0.01, r2_ci95=[-0.02, 0.004], rank_correlation=0.02, rank_correlation_ci95=[-0.05, 0.09])


def add_experiments(path):
    (path / "experiments").mkdir()
    for name, (result, table) in EXPERIMENTS.items():
        run_files.write_json(path / "experiments" / f"{name}.json", result)
        table.to_csv(path / "experiments" / f"{name}.csv", index=False)
        svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle r="9"/></svg>'
        (path / "experiments" / f"{name}.svg").write_text(svg)
    run_files.write_json(path / "data_value.json", {"estimator": SKILL})


def build_run(path, *, episodes=500, seed=0):
    """A run directory as train and evaluate leave it, of made-up numbers; return its path."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    config = TrainConfig(source="embeddings", out=path, embeddings=path / "data" / "embeddings.h5", episodes=episodes)
    run_files.save_config(path / "config.yaml", config)

    rows, contexts = [], {}
    for episode in range(8):
        for step in range(60):
            k = int(rng.integers(4))
            best = BEST[MIXED.contexts[k].name]
            speed, care = (float(np.clip(b + rng.normal(-0.04, 0.06), 0, 1)) for b in best)
            attempts = int(rng.poisson(2)) + 1
            rows.append([episode, step, MIXED.contexts[k].name, speed, care, attempts, 0, expected(k, speed, care)[0]])
    columns = ["episode", "step", "context", "speed", "care", "attempts", "errors", "profit_usd_per_hour"]
    validation = pd.DataFrame(rows, columns=columns)
    validation.to_csv(path / "validation.csv", index=False)

    for k, context in enumerate(MIXED.contexts):
        steps = validation[validation.context == context.name]
        speed, care = BEST[context.name]
        contexts[context.name] = dict(
            share=len(steps) / len(validation),
            speed=float(steps.speed.mean()),
            care=float(steps.care.mean()),
            oracle_speed=speed,
            oracle_care=care,
            profit=float(steps.profit_usd_per_hour.mean()),
            oracle_profit=float(expected(k, speed, care)[0]),
            blind_profit=float(expected(k, 1.0, 0.85)[0]),
            err=float(np.mean(expected(k, steps.speed, steps.care)[1])),
        )
    profit = float(validation.profit_usd_per_hour.mean())
    summary = dict(
        source="embeddings", scenario="mixed", task="dishwashing", episodes=8, seeds=[0],
        profit_mean=profit, profit_ci95=[profit - 0.9, profit + 0.9], mp_mean=103.4, err_mean=0.0187,
        wage_parity=(profit + 0.1) / 18, oracle_profit=39.90, blind_profit=31.85, oracle_ratio=profit / 39.90,
        blind_ratio=profit / 31.85, oracle_ratio_ci95=[0.861, 0.908],
        spread=profit + 0.1 - 18, rebate=0.0, captured=profit + 0.1 - 18, wall_s=412.5,
        validation="closed loop from pixels", outcome_model="the simulator, with each step’s context",
        contexts=contexts, human_wage=18.0,
        provenance=dict(
            vtp_version="0.1.0", git_commit=None, torch="2.8.0", created="2025-01-31T12:00:00+00:00",
            command=f"vtp demo --out {path}", embeddings_sha256="ab" * 32, weights="random:0", projector="pca",
            precision="fp32", num_train_clips=720,
        ),
    )  # fmt: skip
    run_files.write_json(path / "summary.json", summary)

    progress = 1 - np.exp(-np.arange(episodes) / 90)
    target = np.array([econ.error_target(e) for e in range(episodes)])
    err_rate = np.clip(0.02 + 0.13 * (1 - progress) + rng.normal(0, 0.018, episodes), 0, 0.5)
    lambda_dual = [0.0]
    for e in range(1, episodes):
        lambda_dual.append(econ.dual_ascent(lambda_dual[-1], err_rate[e], err_target=target[e], dual_lr=0.01))
    metrics = pd.DataFrame(
        {
            "episode": np.arange(1, episodes + 1),
            "profit": 8 + 27.5 * progress + rng.normal(0, 4.5, episodes),
            "err_rate": err_rate,
            "err_target": target,
            "lambda_dual": lambda_dual,
            "alpha": 0.9 * (1 - progress) ** 2 + 0.02,
            "mean_speed": 0.5 + 0.42 * progress + rng.normal(0, 0.03, episodes),
            "mean_care": 0.5 + 0.22 * progress + rng.normal(0, 0.04, episodes),
            "critic_loss": np.full(episodes, np.nan),
        }
    )
    metrics.to_csv(path / "metrics.csv", index=False)
    checks = np.unique([*range(50, episodes, 50), episodes])
    pd.DataFrame({"episode": checks, "profit_sampled": 9 + 28 * progress[checks - 1]}).to_csv(
        path / "validations.csv", index=False
    )

    (path / "frames").mkdir()
    index = []
    for name, (speed, care) in BEST.items():
        for i in range(2):
            image = Image.new("RGB", (192, 144), ("#7d8b8f", "#5a6d68")[i])
            draw = ImageDraw.Draw(image)
            draw.rounded_rectangle([20, 14, 172, 134], 14, "#aeb9bd", "#dfe5e7", 3)
            draw.ellipse([56 + 20 * i, 38, 130 + 20 * i, 112], COLOURS[name], "#22262a", 2)
            file = f"{name}-{i}.png"
            image.save(path / "frames" / file)
            index.append(dict(file=file, context=name, speed=speed - 0.05, care=care - 0.05, oracle_speed=speed))
            index[-1]["oracle_care"] = care
    run_files.write_json(path / "frames" / "frames.json", index)

    add_experiments(path)
    (path / "data").mkdir()
    failure = {"video_id": "broken.mp4", "reason": "no video stream", "fix": "encode it again"}
    (path / "data" / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    return path


def edit_summary(path, **changes):
    summary = json.loads((path / "summary.json").read_text())
    run_files.write_json(path / "summary.json", summary | changes)


class Page(HTMLParser):
    """A parsed page: elements as (tag, attributes), text outside style and script, and whether tags balance."""

    VOID = frozenset({"meta", "link", "img", "br", "rect", "path"})

    def __init__(self, html):
        super().__init__()
        self.html, self.elements, self.text, self.open, self.unbalanced = html, [], "", [], []
        self.feed(html)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)
        self.text += " "

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def attributes(self, name, tag=None):
        return [attrs[name] for t, attrs in self.elements if name in attrs and tag in (None, t)]

    def download(self, name):
        (uri,) = [a["href"] for t, a in self.elements if t == "a" and a.get("download") == name]
        return list(csv.DictReader(io.StringIO(base64.b64decode(uri.split(",", 1)[1]).decode("utf-8"))))


def report(path):
    page = Page(run(ReportConfig(run=path)).read_text(encoding="utf-8"))
    assert not page.unbalanced and not page.open
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert set(SECTIONS) <= set(ids)
    assert "nan" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", page.html).lower().replace("provenance", "").split()
    return page


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = build_run(tmp_path_factory.mktemp("runs") / "full")
    return path, report(path)


# --- chart geometry -------------------------------------------------------------------------------------------------


def test_line_path_breaks_at_nan_and_draws_a_lone_point():
    nan = math.nan
    assert figures.line_path(np.array([0, 10, 20, 30.0]), np.array([5, 6, nan, 8.0])) == "M0 5h0L10 6M30 8h0"
    assert figures.line_path(np.array([1.0]), np.array([nan])) == ""


def test_thin_keeps_the_extremes():
    y = np.zeros(10_000)
    y[1234], y[5678], y[9000:9100] = 7, -7, math.nan
    x, thinned = figures.thin(np.arange(10_000.0), y, 100)
    assert len(x) <= 200
    assert np.nanmax(thinned) == 7 and np.nanmin(thinned) == -7
    assert np.all(np.diff(x) > 0)


@pytest.mark.parametrize(
    ("positions", "expected_positions"),
    [([10, 50], [10, 50]), ([50, 50], [50, 57]), ([99, 98], [100, 93]), ([], [])],
)
def test_spread_apart(positions, expected_positions):
    assert figures.spread_apart(positions, 7) == pytest.approx(expected_positions)


def test_bars_share_an_axis_that_holds_zero():
    policy, oracle = figures.bars([("p", -10.0, "policy"), ("o", 30.0, "oracle")], str, (-12.0, -8.0))
    assert (oracle.start, oracle.width) == pytest.approx((100 * 12 / 42, 100 * 30 / 42))
    assert (policy.start, policy.width) == pytest.approx((100 * 2 / 42, 100 * 10 / 42))
    assert (policy.low, policy.high) == pytest.approx((0, 100 * 4 / 42))


def test_line_chart_places_values_on_the_axis():
    x, y = np.arange(3.0), np.array([0.0, 10.0, 20.0])
    download = figures.csv_download("a.csv", pd.DataFrame({"a": y}))
    chart = figures.line_chart(
        "t", [figures.Series("p", x, y, "policy")], caption="", summary="", y_format=str, download=download,
        references=[figures.Reference("r", 10.0, "oracle")],
    )  # fmt: skip
    assert chart.paths == [("ref oracle", "M0 500H1000"), ("policy", "M0 1000h0L500 500L1000 0")]
    assert [(label.at, label.label) for label in chart.labels] == [(50, "r"), (0, "p")]


@pytest.mark.parametrize(("value", "labels"), [(0.0, ["0.0", "1.0"]), (5.0, ["0.0", "5.0"]), (-2.0, ["-2.0", "0.0"])])
def test_a_constant_has_an_axis_from_zero(value, labels):
    y = np.full(3, value)
    chart = figures.line_chart(
        "t", [figures.Series("p", np.arange(3.0), y, "policy")], caption="", summary="", y_format=str,
        download=figures.csv_download("a.csv", pd.DataFrame({"a": y})),
    )  # fmt: skip
    assert [chart.y_ticks[0].label, chart.y_ticks[-1].label] == labels


def test_a_long_table_is_thinned_and_says_so():
    download = figures.csv_download("a.csv", pd.DataFrame({"a": range(9000)}))
    rows = base64.b64decode(download.uri.split(",")[1]).decode().split()
    assert len(rows) == 1 + 1800 and rows[:3] == ["a", "0", "5"]
    assert download.note == "1 row in 5"


# --- the whole page -------------------------------------------------------------------------------------------------


def test_nothing_is_missing_and_every_number_is_there(full):
    path, page = full
    summary = json.loads((path / "summary.json").read_text())
    profit = summary["profit_mean"]
    for text in (
        f"The policy earns ${profit:.2f} an hour",
        f"95% interval ${profit - 0.9:.2f} to ${profit + 0.9:.2f}.",
        f"{100 * profit / 39.90:.1f}% of the oracle",
        f"+${profit - 31.85:.2f} an hour against blind",
        f"{(profit + 0.1) / 18:.2f}× the human wage of $18.00",
        "95% interval 86.1% to 90.8%.",
        "1.9% errors",
        "Measured over 8 episodes in closed loop from pixels, in scenes that training never saw.",
        "103.4 an hour",
        "broken.mp4 no video stream encode it again",
        "1,828 of 2,500 actions meet 80 good units an hour and 6.0% errors by formula, 1,830 in 60,000,000 simulated",
        "profit answers to the price with 1.09 (95% interval 1.08 to 1.10) percent",
        "the spread answers to the human wage with not defined, for it is not positive",
        "$9,000.00 of spread was paid: $900.00 (10.0%) to customers, $8,100.00 to the platform.",
        "Of 2, 1 are worth more than nothing for certain",
        "0023 20 $4.40 [$3.00, $5.80] $4.20 [$2.90, $5.50] $1.50",
        "paid $14,000.00 for work that would have cost them $15,500.00 in flawless human hands",
        "250 101.5 2.0 −3.0 $28.00 $18.50 1.51 $2,375.00 $475.00 $1,900.00 $6,525.00 $1,087.50",
        "384 orders of arrival, cut where within $0.02 of what all data earns: 740 policies",
        "taught the policy. It is zero here: no gain in output was attributed to the customer. The estimator of",
        "The estimator of the customers’ share has no skill",
        "Nothing: every part of this page had its data.",
    ):
        assert text in page.text, text
    for name, means in summary["contexts"].items():
        assert f"{name} {means['share']:.0%} of the work" in page.text
        assert f"${means['profit']:.2f} an hour of ${means['oracle_profit']:.2f} possible" in page.text
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
    assert all(page.attributes("alt", "img")) and len(page.attributes("src", "img")) == 8 + 4
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
    assert [row["context"] for row in page.download("contexts.csv")] == list(BEST)
    assert len(page.download("frontier.csv")) == len(page.download("value.csv")) == 2
    steps = [page.download(f"actions-{i}.csv") for i in range(1, 5)]
    assert sum(map(len, steps)) == 480
    assert len(page.download("economics.csv")) == 9
    assert len(page.download("spread-periods.csv")) == 2
    by_who = {row["who"]: row for row in page.download("headline.csv")}
    assert float(by_who["Oracle"]["usd_per_hour"]) == 39.90
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
    steps = pd.DataFrame([(episode, step, step) for episode in range(3) for step in range(4)])
    steps.columns = ["episode", "step", "context"]
    steps[["speed", "care"]] = [BEST[MIXED.context_names[k]] for k in steps.context]
    steps["attempts"], steps["errors"] = 2, 0
    metrics = pd.read_csv(path / "metrics.csv").assign(s_cust=0.25)
    metrics.to_csv(path / "metrics.csv", index=False)
    meta = {"source": "embeddings", "seed": 3, "outcome_model": "simulator", "provenance": {"command": "vtp train"}}
    summary = evaluate.write_summary(
        path, MIXED, steps, meta=meta, validation=validation, stage="evaluate", wall_s=1.5,
        evaluation={"seed": 7, "command": "vtp evaluate RUN --seed 7"},
    )  # fmt: skip
    page = report(path)
    for text in (
        f"The policy earns ${summary['profit_mean']:.2f} an hour",
        f"Measured over {measured}. Outcomes come from: simulator.",
        f"${summary['rebate']:.2f} an hour The part of the spread that goes to the customer",
        "made this run vtp train",
        *(f"{name} 25% of the work" for name in BEST),
    ):
        assert text in page.text, text
    assert [row["context"] for row in page.download("contexts.csv")] == list(BEST)
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
    assert "In its last 5 training episodes it earned $" in page.text
    assert len(page.attributes("id")) >= len(SECTIONS)


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(VtpError, match="is not a run directory; make one with: vtp train --out"):
        run(ReportConfig(run=tmp_path / "none"))
    with pytest.raises(VtpError, match=r"holds none of config\.yaml, summary\.json and metrics\.csv"):
        run(ReportConfig(run=tmp_path))


def test_changed_scenes_are_said_beside_the_usual_ones(tmp_path):
    build_run(tmp_path / "run", episodes=3)
    assert "that no demonstration shows" not in report(tmp_path / "run").text
    changed = tmp_path / "run" / "changed" / "summary.json"
    changed.parent.mkdir()
    changed.write_text(json.dumps({"profit_mean": 22.5, "oracle_ratio": 0.571}))
    text = report(tmp_path / "run").text
    assert "a background and sizes that no demonstration shows it is $22.50, 57.1% of the oracle" in text
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
    assert "Nothing is known by kind of object" in page.text
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
    run_files.write_json(path / "experiments" / "elasticity.json", result)
    assert (
        "retrained at every point by 1,200 updates (2 seeds) and judged, as the others, on 8 videos: over the "
        "whole range profit answers to the price with 1.10, 1.05, – and to damage with 1.10, 1.05, – (fixed, "
        "retrained, oracle)."
    ) in report(path).text


def test_clips_without_labels_are_told_how_to_get_them(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    shutil.rmtree(path / "frames")
    for file in (path / "experiments").glob("value.*"):
        file.unlink()
    edit_summary(path, validation="held-out clips", labelled=False)
    page = report(path)
    assert "cannot be told: the clips have no labels" in page.text
    assert page.text.count(f"vtp extract MANIFEST --out {path / 'data' / 'embeddings.h5'}") == 4, "twice each"
    assert "vtp experiment value" not in page.text, "it would fail"


def test_a_run_without_novelty_is_told_how_to_get_it(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    edit_summary(path, provenance={"novelty": "none: every clip weighs 1"})
    page = report(path)
    assert "There were no novelty weights: every clip weighed the same in training." in page.text
    assert f"vtp novelty --embeddings {path / 'data' / 'embeddings.h5'} && vtp train --config" in page.text


def test_what_training_would_ignore_is_no_setting(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    settings = report(path).text.split("Training settings")[1]
    assert "embeddings " in settings and " scenario " not in settings and " task " not in settings
    run_files.save_config(path / "config.yaml", TrainConfig(source="sim", out=path))
    settings = report(path).text.split("Training settings")[1]
    assert " scenario seed " in settings and " embeddings " not in settings


def test_the_commands_repeat_the_run(full):
    path, page = full
    commands = page.text.split("Where this comes from")[1]
    for command in ("train --config", "evaluate", "experiment frontier", "experiment value --embeddings", "report"):
        assert f"vtp {command} " in commands
    assert "vtp extract --config" not in commands, "only where extraction left its settings"
    embeddings = path / "data" / "embeddings.h5"
    embeddings.with_suffix(".yaml").write_text("")
    edit = json.loads((path / "summary.json").read_text())
    try:
        edit_summary(path, evaluation={"seed": 7, "command": "vtp evaluate RUN --seed 7"})
        commands = report(path).text.split("Where this comes from")[1]
    finally:
        embeddings.with_suffix(".yaml").unlink()
        run_files.write_json(path / "summary.json", edit)
    assert f"vtp extract --config {embeddings.with_suffix('.yaml')} --out " in commands
    assert "vtp evaluate RUN --seed 7" in commands


def test_times_are_those_of_the_stages(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    edit_summary(path, stages_wall_s={"train": 300.0, "evaluate": 112.5})
    text = report(path).text
    assert "train, seconds 300 evaluate, seconds 112.5 all stages, seconds 412.5" in text


def test_every_colour_of_a_figure_has_one_for_the_dark(tmp_path):
    frontier.run(FrontierConfig(out=tmp_path, task="bricklaying", scenario="mixed", grid=6, episodes=1))
    svg = (tmp_path / "frontier.svg").read_text()
    assert set(re.findall("#[0-9a-f]{6}", svg)) <= set(themed.DARK)
    shown = themed.themed(svg)
    assert re.findall(r": #[0-9a-f]{6}", shown) == [], "all are variables now"
    assert "@media screen and (prefers-color-scheme:dark)" in shown


def test_skill_of_the_estimator_in_words(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    for changes, words in (
        (dict(r2_ci95=[0.01, 0.2]), "has skill"),
        (dict(rank_correlation_ci95=[0.01, 0.2]), "better than chance, but is no better than a constant"),
        (dict(r2=None), "500 episodes are too few"),
    ):
        run_files.write_json(path / "data_value.json", {"estimator": SKILL | changes})
        assert words in report(path).text


def test_a_policy_of_the_simulator_has_no_demonstrations(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    run_files.save_config(path / "config.yaml", TrainConfig(source="sim", out=path))
    assert "There are no demonstrations: the policy learned in the simulator." in report(path).text


def test_losing_policy_and_one_context(tmp_path):
    path = build_run(tmp_path / "run", episodes=40)
    edit_summary(path, profit_mean=-3.21, profit_ci95=[-4.0, -2.4], oracle_profit=28.43, blind_profit=28.43)
    edit_summary(path, oracle_ratio=-0.113, oracle_ratio_ci95=[-0.141, -0.084])
    page = report(path)
    assert "The policy loses $3.21 an hour" in page.text
    assert "95% interval −$4.00 to −$2.40." in page.text
    assert "−11.3% of the oracle" in page.text and "95% interval −14.1% to −8.4%." in page.text
    assert "−$31.64 an hour against blind" in page.text
    assert "blind is the oracle" in page.text


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
    run_files.write_json(path / "frames" / "frames.json", [{"file": file, "context": "pan"}])
    page = report(path)
    assert "frames/frames.json cannot be read" in page.text
    assert base64.b64encode(b"secret").decode() not in page.html


def test_frames_are_left_out_for_size(tmp_path, monkeypatch):
    path = build_run(tmp_path / "run", episodes=40)
    largest = max(p.stat().st_size for p in (path / "frames").glob("*.png"))
    monkeypatch.setattr(run_files, "FRAME_BYTES", 5 * largest)
    page = report(path)
    shown = len(page.attributes("src", "img")) - 4
    assert 5 <= shown < 8
    assert f"{8 - shown} more pictures left out for size." in page.text
    assert {alt.split(",")[0] for alt in page.attributes("alt", "img") if ", as the policy" in alt} == set(BEST)


def test_long_run_stays_small(tmp_path):
    path = build_run(tmp_path / "run", episodes=20_000)
    validation = pd.read_csv(path / "validation.csv")
    pd.concat([validation] * 100).to_csv(path / "validation.csv", index=False)
    rng = np.random.default_rng(0)
    for image in (path / "frames").glob("*.png"):
        Image.fromarray(rng.integers(256, size=(160, 205, 3), dtype=np.uint8)).save(image)
    report(path)
    assert (path / "report.html").stat().st_size <= 5_000_000


# --- a real browser -------------------------------------------------------------------------------------------------


LAID_OUT = """{
  width: innerWidth,
  content: document.documentElement.scrollWidth,
  ground: getComputedStyle(document.body).backgroundColor,
  images: document.images.length,
  broken: [...document.images].filter((image) => !image.naturalWidth).map((image) => image.alt),
  flat: [...document.querySelectorAll("svg, img, table")].filter((element) => {
    const {width, height} = element.getBoundingClientRect();
    return element.checkVisibility() && (width < 10 || height < 10);
  }).map((element) => element.outerHTML.slice(0, 80)),
  empty: [...document.querySelectorAll(".plot svg")].filter((svg) => !svg.querySelector("path[d^=M]")).length,
}"""


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_a_browser_draws_every_figure_logs_nothing_and_asks_nobody(full, tmp_path, width, dark):
    _, page = full
    found, console, asked = visit(tmp_path / "browser", page.html, LAID_OUT, width=width, dark=dark)
    assert (console, asked) == ([], [])
    assert (found["width"], found["images"]) == (width, 8 + 4)
    assert found["content"] <= width, "nothing is wider than the window"
    assert (found["broken"], found["flat"], found["empty"]) == ([], [], 0)
    assert found["ground"] == ("rgb(18, 21, 24)" if dark else "rgb(251, 251, 249)")


@needs_browser
def test_every_table_sorts_in_a_browser(full, tmp_path):
    """Each head once: numbers rise, texts are in order, and what is not known comes last."""
    _, page = full
    click = """[...document.querySelectorAll("table.sortable")].map((table) =>
      [...table.tHead.rows[0].cells].map((head, column) => {
        head.querySelector("button").click();
        const numeric = head.classList.contains("number");
        const keys = [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.key);
        const known = keys.filter((key) => key !== "").map((key) => numeric ? Number(key) : key);
        const compare = (a, b) => numeric ? a - b : a.localeCompare(b);
        const rising = known.every((key, i) => !i || compare(known[i - 1], key) <= 0);
        return [head.getAttribute("aria-sort"), keys.length, rising, keys.lastIndexOf("") < 0 || keys.at(-1) === ""];
      }))"""
    tables, console, _ = visit(tmp_path / "browser", page.html, click)
    assert console == []
    assert [len(heads) for heads in tables] == [10, 12, 5, 3], "contexts, periods, values, failures"
    assert all(head == ["ascending", head[1], True, True] and head[1] > 0 for heads in tables for head in heads)


@needs_browser
def test_the_browser_would_tell_of_errors_and_requests(tmp_path):
    page = "<body><img src='http://example.org/a.png'><script>undefinedFunction()</script></body>"
    found, console, asked = visit(tmp_path / "browser", page, "[...document.images].map((i) => i.naturalWidth)")
    assert found == [0]
    assert asked == ["http://example.org/a.png"]
    assert len([line for line in console if "undefinedFunction is not defined" in line]) == 1
