"""Run directories of made-up numbers, as train and evaluate leave them, and the page of one, parsed."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from pipeline import econ
from pipeline.config import EmbeddingsTrainConfig, ReportConfig
from pipeline.files import save_config, write_json
from pipeline.report import run
from pipeline.tasks import ErrorTarget

SECTIONS = (
    "headline", "behaviour", "next", "actions", "learning", "economics", "data-value", "provenance", "missing",
)  # fmt: skip
COLOURS = ("#34383d", "#f3f1ea", "#bfe0ea", "#c8553d")

DISHES = dict(  # two actions that share their bounds, four contexts
    task="dishwashing", scenario="mixed", actions={"speed": [0.0, 1.0], "care": [0.0, 1.0]},
    best={"pan": (1.0, 0.31), "plate": (1.0, 0.93), "glass": (0.72, 1.0), "mug": (1.0, 0.62)},
    costs={"energy": 0.1},
)  # fmt: skip
SANDING = dict(  # one action, one context that the task does not name
    task="sanding", scenario="", actions={"pressure": [2.0, 40.0]}, best={"work": (23.0,)},
    costs={"energy": 0.5, "robot": 6.0, "paper": 1.25},
)  # fmt: skip
SORTING = dict(  # three actions, bounds of all kinds; forty contexts, each a smaller share than the one before
    task="sorting", scenario="", costs={},
    actions={"belt_speed": [0.1, 1.5], "tilt": [-30.0, 30.0], "air_litres": [0.0, 2000.0]},
    best={f"part {k:02}": (0.2 + 0.03 * k, 1.4 * k - 28.0, 50.0 * k) for k in range(40)},
)  # fmt: skip

PERIOD = dict(
    first_episode=1, last_episode=250, hours=250.0, mp=101.5, delta_mpl=2.0, delta_mpl_trailing=-3.0, implied_wage=28.0,
    human_wage=18.5, wage_parity=1.51, spread_value=2375.0, rebate=475.0, captured_spread=1900.0, customer_cost=6525.0,
    consumer_surplus=1087.5,
)  # fmt: skip


def frontier(bounds, best, *, axes, names=("pan", "mug"), held=None):
    """What the frontier leaves: key numbers, and in all work and each context a row for each of five points an axis."""
    best = dict(zip(bounds, best, strict=True))
    counts = dict(analytic_count=1828, monte_carlo_count=1830)
    own = counts | dict(optimum=dict(actions=best), policy=dict(actions=best))
    result = counts | dict(
        grid=50,
        points=50 ** len(axes),
        min_mp=80.0,
        max_err=0.06,
        env_steps=60_000_000,
        axes=list(axes),
        actions=bounds,
        held=held or {},
        contexts=dict.fromkeys(names, own),
        optimum=dict(actions=best, mp=100.0, err_rate=0.02, profit=31.77),
    )
    part = np.meshgrid(*[np.linspace(0, 1, 5)] * len(axes), indexing="ij")
    points = {name: bounds[name][0] + one.ravel() * np.ptp(bounds[name]) for name, one in zip(axes, part, strict=True)}
    mp, err_rate = 60 + 50 * part[0].ravel(), 0.1 * part[0].ravel() * (1 - 0.5 * part[-1].ravel())
    feasible = ((mp >= 80) & (err_rate <= 0.06)).astype(int)
    surface = pd.DataFrame(
        points
        | {
            f"{kind}_{key}": values
            for kind in ("analytic", "monte_carlo")
            for key, values in (("mp", mp), ("err_rate", err_rate), ("feasible", feasible))
        }
    )
    return result, pd.concat([surface.assign(context=name) for name in ("all contexts", *names)])


def _curve(curve, x):
    rows = [
        dict(curve=curve, x=at, who=who, value=36.0 * at, low=35.0 * at, high=37.0 * at)
        for at in x
        for who in ("policy", "oracle")
    ]
    return pd.DataFrame(rows)


EXPERIMENTS = {  # key numbers and data, as the experiments leave them
    "frontier": frontier(DISHES["actions"], (1.0, 0.97), axes=("speed", "care")),
    "elasticity": (
        dict(elasticities={"price": {"policy": dict(value=1.09, low=1.08, high=1.1)},
                           "damage": {"policy": dict(value=-0.09, low=None, high=None)},
                           "human_wage": {"policy": dict(value=None, low=None, high=None)}},
             error_target=0.06, shadow_price={"policy": dict(value=0.0)}),
        pd.concat([*(_curve(name, (0.5, 1.0, 2.0)) for name in ("price", "damage", "human_wage")),
                   _curve("error_target", (0.02, 0.1))]),
    ),
    "spread": (
        dict(episodes=500, hours=500.0, spread_usd=9000.0, rebate_usd=900.0, captured_usd=8100.0, customer_share=0.1,
             customer_cost_usd=14000.0, consumer_surplus_usd=1500.0, periods=[PERIOD, PERIOD]),
        pd.DataFrame({"episode": [1, 2], "spread": [3.0, 4.0], "spread_value_total": [3.0, 7.0],
                      "rebate_total": [0.0, 0.5], "customer_share_to_date": [0.0, 0.0714]}),
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
        write_json(path / "experiments" / f"{name}.json", result)
        table.to_csv(path / "experiments" / f"{name}.csv", index=False)
    write_json(path / "data_value.json", {"estimator": SKILL})


def build_run(path, work=DISHES, *, episodes=500, seed=0):
    """A run directory of `work` as train and evaluate leave it; its path."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    config = EmbeddingsTrainConfig(out=path, embeddings=path / "data" / "embeddings.h5", episodes=episodes)
    save_config(path / "config.yaml", config)
    validation = _validation(work, rng)
    validation.to_csv(path / "validation.csv", index=False)
    write_json(path / "summary.json", _summary(path, work, validation))
    _write_training(path, work, episodes, rng)
    _write_frames(path / "frames", work)
    add_experiments(path)
    (path / "data").mkdir()
    failure = {"video_id": "broken.mp4", "reason": "no video stream", "fix": "encode it again"}
    (path / "data" / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    return path


def _bounds(work):
    return np.array(list(work["actions"].values())).T


def _validation(work, rng):
    low, high = _bounds(work)
    names = list(work["best"])
    share = np.linspace(1.0, 0.3, len(names)) if len(names) > 4 else np.ones(len(names))
    context = rng.choice(len(names), size=480, p=share / share.sum())
    context[: len(names)] = np.arange(len(names))  # every one is met
    best = np.array([work["best"][names[k]] for k in context])
    actions = np.clip(best + (high - low) * rng.normal(-0.04, 0.06, best.shape), low, high)
    off = (((actions - best) / (high - low)) ** 2).sum(1)
    return pd.DataFrame(
        {
            "episode": np.repeat(np.arange(8), 60), "step": np.tile(np.arange(60), 8), "row": np.arange(480),
            **dict(zip(work["actions"], actions.T, strict=True)), "attempts": rng.poisson(2, 480) + 1, "errors": 0,
            "context": np.array(names)[context], "profit_usd_per_hour": 30.0 + context % 4 - 300 * off,
        }
    )  # fmt: skip


def _summary(path, work, validation):
    contexts = {}
    for k, (name, best) in enumerate(work["best"].items()):
        steps = validation[validation.context == name]
        contexts[name] = dict(
            share=len(steps) / len(validation),
            actions={action: float(steps[action].mean()) for action in work["actions"]},
            oracle_actions=dict(zip(work["actions"], best, strict=True)),
            profit=float(steps.profit_usd_per_hour.mean()), oracle_profit=30.0 + k % 4, blind_profit=25.0 + k % 4,
            err=0.01 + 0.001 * (k % 7),
        )  # fmt: skip
    profit = float(validation.profit_usd_per_hour.mean())
    costs = sum(work["costs"].values())
    return dict(
        source="embeddings", scenario=work["scenario"], task=work["task"], actions=work["actions"], episodes=8,
        seeds=[0], profit_mean=profit, profit_ci95=[profit - 0.9, profit + 0.9], mp_mean=103.4, err_mean=0.0187,
        wage_parity=(profit + costs) / 18, oracle_profit=39.90, blind_profit=31.85, oracle_ratio=profit / 39.90,
        blind_ratio=profit / 31.85, oracle_ratio_ci95=[0.861, 0.908], costs_usd_per_hour=work["costs"],
        spread=profit + costs - 18, rebate=0.0, captured=profit + costs - 18, wall_s=412.5,
        validation="closed loop from pixels", outcome_model="the simulator, with each step’s context",
        contexts=contexts, human_wage=18.0,
        provenance=dict(
            vtp_version="0.1.0", git_commit=None, torch="2.8.0", created="2025-01-31T12:00:00+00:00",
            command=f"vtp demo --out {path}", embeddings_sha256="ab" * 32, weights="random:0", projector="pca",
            precision="fp32", num_train_clips=720,
        ),
    )  # fmt: skip


def _write_training(path, work, episodes, rng):
    low, high = _bounds(work)
    progress = 1 - np.exp(-np.arange(episodes) / 90)
    target = np.array([ErrorTarget().at(e) for e in range(episodes)])
    err_rate = np.clip(0.02 + 0.13 * (1 - progress) + rng.normal(0, 0.018, episodes), 0, 0.5)
    lambda_dual = [0.0]
    for e in range(1, episodes):
        lambda_dual.append(econ.dual_ascent(lambda_dual[-1], err_rate[e], err_target=target[e], dual_lr=0.01))
    means = {
        f"mean_{name}": low[a]
        + (high[a] - low[a]) * (0.5 + (0.42 - 0.2 * a) * progress + rng.normal(0, 0.03, episodes))
        for a, name in enumerate(work["actions"])
    }
    metrics = pd.DataFrame(
        {
            "episode": np.arange(1, episodes + 1), "profit": 8 + 27.5 * progress + rng.normal(0, 4.5, episodes),
            "err_rate": err_rate, "err_target": target, "lambda_dual": lambda_dual,
            "alpha": 0.9 * (1 - progress) ** 2 + 0.02, **means, "critic_loss": np.full(episodes, np.nan),
            "mean_novelty": 0.0, "mean_weight": 1.0,
        }
    )  # fmt: skip
    metrics.to_csv(path / "metrics.csv", index=False)
    checks = np.unique([*range(50, episodes, 50), episodes])
    validations = pd.DataFrame({"episode": checks, "profit_sampled": 9 + 28 * progress[checks - 1]})
    validations.to_csv(path / "validations.csv", index=False)


def _write_frames(folder, work):
    """Two pictures a context."""
    folder.mkdir()
    index = []
    for k, (name, best) in enumerate(work["best"].items()):
        oracle = dict(zip(work["actions"], best, strict=True))
        policy = {action: value - 0.05 for action, value in oracle.items()}
        for i in range(2):
            image = Image.new("RGB", (192, 144), ("#7d8b8f", "#5a6d68")[i])
            draw = ImageDraw.Draw(image)
            draw.rounded_rectangle([20, 14, 172, 134], 14, "#aeb9bd", "#dfe5e7", 3)
            draw.ellipse([56 + 20 * i, 38, 130 + 20 * i, 112], COLOURS[k % 4], "#22262a", 2)
            file = f"{k}-{i}.png"
            image.save(folder / file)
            index.append(dict(file=file, context=name, actions=policy, oracle_actions=oracle))
    write_json(folder / "frames.json", index)


def edit_summary(path, *, without=(), **changes):
    summary = json.loads((path / "summary.json").read_text()) | changes
    write_json(path / "summary.json", {key: value for key, value in summary.items() if key not in without})


def said_by_logs(verdict, change=None, *, reason="", advice=""):
    """A comparison as a summary keeps it; change: $/h and its interval."""
    return dict(verdict=verdict, change_usd_per_hour=change, reason=reason, advice=advice)


BETTER = said_by_logs("better", [2.35, 1.10, 3.60])
WORSE = said_by_logs("worse", [-1.2, -2.0, -0.4])
LIKE = said_by_logs("not distinguishable", [0.4, -1.0, 1.8], advice="hold out about 12 times as many videos")
UNKNOWN = said_by_logs(
    "not identified", reason="logs have actions like the policy's for 60% of the hours; 90% are needed",
    advice="log pan steps with speed near 0.98",
)  # fmt: skip


def logs_say(over, against=LIKE, **changes):
    """`off_policy` of a summary."""
    return over | dict(
        against_blind=against, logging_policy=[20.1, 19.0, 21.2], direct=[23.0, 22.5, 23.5],
        weighted=[22.1, 20.0, 24.2], doubly_robust=[22.45, 21.0, 23.9], change_at_half_bandwidth=[2.2, 0.9, 3.5],
        change_at_double_bandwidth=[2.0, 1.2, None], effective_steps=212.4, largest_weight=0.012, overlap=0.97,
        propensities="estimated", num_steps=480, num_videos=24, same_videos=False,
        policies={"clone of the logging policy": LIKE, "best constant": BETTER, "greedy": WORSE, "bold": UNKNOWN},
    ) | changes  # fmt: skip


def judged_by_logs(path, off_policy, **changes):
    """Make the summary of a run that of an evaluation on logs."""
    learned = dict(kappa=0.5, unsupported=0.3, fold_gain_usd_per_hour=1.9, fold_gain_lower_bound=0.4)
    edit_summary(
        path, judge="Estimated from your logs", validation="held-out logs", off_policy=off_policy, provenance=learned,
        **({"deployed": "learned policy", "estimator": None} | changes),
    )  # fmt: skip


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

    def text_of(self, section):
        """The HTML of a folded section."""
        return self.html.split(f'<details id="{section}">')[1].split("</details>")[0]

    def attributes(self, name, tag=None):
        return [attrs[name] for t, attrs in self.elements if name in attrs and tag in (None, t)]

    def download(self, name):
        (uri,) = [a["href"] for t, a in self.elements if t == "a" and a.get("download") == name]
        return list(csv.DictReader(io.StringIO(base64.b64decode(uri.split(",", 1)[1]).decode("utf-8"))))


def report(path):
    """The page of a run; whole, with all its sections, and without a NaN."""
    page = Page(run(ReportConfig(run=path)).read_text(encoding="utf-8"))
    assert not page.unbalanced and not page.open
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert set(SECTIONS) <= set(ids)
    assert "nan" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", page.html).lower().replace("provenance", "").split()
    return page
