"""Tasks unlike the built-in ones: one action, three of them outside [0, 1], one unnamed context, and forty contexts."""

import yaml

from pipeline.tasks import parse_task

ONE_ACTION = """
name: polishing
step_s: 30
human_wage_usd: 20
costs_usd_per_hour: {energy: 1.0}
actions:
  pressure: {low: 2.0, high: 12.0}
contexts: {price_usd: 0.25, damage_usd: 2.0}
simulator:
  attempts_per_minute: 1 + 0.5 * pressure
  error_probability: 0.01 + 0.0008 * (pressure - 2)**2
"""

THREE_ACTIONS = """
name: welding
step_s: 20
human_wage_usd: 30
costs_usd_per_hour: {energy: 2.0, gas: 1.0}
actions:
  current: {low: 40.0, high: 220.0}
  offset: {low: -2.0, high: 2.0}
  travel: {low: 1.0, high: 9.0, attempts: rises}
contexts:
  thin: {price_usd: 0.3, damage_usd: 1.0}
  thick: {price_usd: 0.5, damage_usd: 2.0}
simulator:
  attempts_per_minute: 0.6 * travel
  error_probability: min(0.01 + 0.5 * ((current - best) / 180)**2 + 0.05 * offset**2 + 0.01 * (travel / 3)**2, 0.95)
  contexts:
    thin: {best: 80}
    thick: {best: 160}
"""

NAMES = [f"part {number:02d}" for number in range(40)]
FORTY_CONTEXTS = yaml.safe_dump(
    {
        "name": "sorting",
        "step_s": 10,
        "human_wage_usd": 20.0,
        "costs_usd_per_hour": {"energy": 1.0},
        "actions": {"speed": {"low": 0.1, "high": 1.5}, "grip": {"low": 5.0, "high": 40.0}},
        "contexts": {name: {"price_usd": 0.02 + 0.002 * i, "damage_usd": 0.02 * i} for i, name in enumerate(NAMES)},
        "simulator": {
            "attempts_per_minute": "60 / (1.2 + 2.0 / speed)",
            "error_probability": "min(slip * (speed / 1.5)**3 + 0.1 * ((grip - 20) / 20)**2 + 0.004, 0.9)",
            "contexts": {name: {"slip": 0.1 + 0.01 * i} for i, name in enumerate(NAMES)},
        },
    },
    sort_keys=False,
)
TEXTS = {"one action": ONE_ACTION, "three actions": THREE_ACTIONS, "forty contexts": FORTY_CONTEXTS}
TASKS = {name: parse_task(text, name) for name, text in TEXTS.items()}
