import errno
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml
from factories import write_video
from small_runs import write_embeddings, write_novelty
from typer.main import get_command

from pipeline import cli, config
from pipeline.cli import help_pages
from pipeline.errors import CorruptError, PartialError, TryAgainError, VtpError

TRAIN = {model.model_fields["source"].default: model for model in get_args(get_args(config.TrainConfig)[0])}
COMMANDS = {
    "demo": config.DemoConfig,
    "simulate": config.SimulateConfig,
    "extract": config.ExtractConfig,
    "merge": config.MergeConfig,
    "doctor": config.DoctorConfig,
    "logs": config.LogsConfig,
    "train": TRAIN,
    "evaluate": config.EvaluateConfig,
    "report": config.ReportConfig,
}
POSITIONAL = {"source": "extract", "embeddings": "logs", "out": "merge, doctor", "run": "evaluate, report"}


@pytest.fixture
def trained_with(monkeypatch, tmp_path):
    """The configs that `vtp train` passes to the stage, which does not train; the files that they name exist."""
    from pipeline import train

    (tmp_path / "data").mkdir()
    write_embeddings(tmp_path / "data/embeddings.h5")
    write_novelty(tmp_path / "n.h5", np.ones(120), "0" * 64)

    seen = []

    def run(cfg, *, progress):
        seen.append(cfg)
        return {"profit_mean": 28.0}

    monkeypatch.setattr(train, "run", run)
    return seen


def assert_one_line(result, *words, code=2):
    exit_code, out, err = result
    assert exit_code == code, (out, err)
    assert err.startswith("vtp: ")
    assert err.count("\n") == 1, f"not one line: {err!r}"
    for word in words:
        assert word in err, f"{word!r} is missing from {err!r}"
    assert "Traceback" not in err
    assert out == ""


# Start-up


LIGHT = """
import sys
from pipeline import cli
sys.argv[0] = "vtp"
try:
    cli.main()
finally:
    heavy = {"torch", "h5py", "decord", "av", "numpy", "pandas", "sklearn", "matplotlib", "gymnasium", "PIL"}
    print("loaded:", sorted(heavy & set(sys.modules)))
"""
LOADING = """
import sys
from importlib.abc import MetaPathFinder
class Watch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            sys.exit("torch is imported")
sys.meta_path.insert(0, Watch())
from pipeline import cli
sys.argv[0] = "vtp"
cli.main()
"""


def test_help_loads_no_heavy_library():
    result = subprocess.run([sys.executable, "-c", LIGHT, "--help"], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded: []"
    for name in COMMANDS:
        assert f"  {name} " in result.stdout


def test_a_flag_shows_all_kinds_of_values_that_it_takes():
    metavars = {option.name: option.metavar for option in get_command(cli.app).commands["extract"].params}
    assert (metavars["shard"], metavars["shards"], metavars["tail"]) == ("INTEGER|auto", "INTEGER", "drop|pad")


def test_version(vtp):
    from pipeline import __version__

    assert vtp("--version")[:2] == (0, f"vtp {__version__}\n")


def test_no_command_shows_four_lines_for_a_newcomer(vtp):
    code, out, err = vtp()
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 4 and max(map(len, lines)) <= 80
    for words in ("vtp demo --quick", "vtp extract VIDEOS", "vtp train", "vtp COMMAND --help", "docs/"):
        assert words in err


def test_every_command_has_one_whole_line_in_the_help(vtp, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for group in ([], ["experiment"], ["policy"]):
        code, out, _ = vtp(*group, "--help")
        assert code == 0 and "..." not in out.partition("\n")[2], out
        assert max(map(len, out.splitlines())) <= 80
        commands = get_command(cli.app)
        for name in group:
            commands = commands.commands[name]
        for name, command in commands.commands.items():
            (line,) = (line for line in out.splitlines() if line.startswith(f"  {name} "))
            assert line.endswith("."), line
            assert " ".join(command.help.split()).startswith(line.removeprefix(f"  {name}").strip())


def test_every_command_is_in_one_section_of_the_help():
    listed = [name for names in help_pages.COMMANDS.values() for name in names]
    assert sorted(listed) == sorted(get_command(cli.app).commands)


def test_options_are_in_sections(vtp):
    out = vtp("extract", "--help")[1]
    places = [out.index(f"\n{section}:\n") for section in help_pages.SETTINGS]
    assert places == sorted(places)
    options = {
        "SOURCE": 0,
        "--task": 0,
        "--fps": 1,
        "--out": 2,
        "--json": 2,
        "--launcher": 3,
        "--shard": 3,
        "--config": 4,
    }
    for option, section in options.items():
        assert [place < out.index(f"\n  {option} ") for place in places] == [k <= section for k in range(5)], option


def test_a_section_names_only_settings_that_a_command_has():
    named = {name for names in help_pages.SETTINGS.values() for name in names}
    assert named <= {"config", "json", "help"} | {
        name for model in vars(config).values() if hasattr(model, "model_fields") for name in model.model_fields
    }


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vtp tr", ["train"]),
        ("vtp extract --clip", ["--clip-len", "--clip-stride"]),
        ("vtp train --source ", ["sim", "embeddings", "video"]),
    ],
)
def test_a_shell_completes_commands_options_and_values_without_a_heavy_library(line, offered):
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    environment = os.environ | words | {"_VTP_COMPLETE": "complete_bash"}
    result = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, env=environment)
    assert result.stdout.splitlines() == [*offered, "loaded: []"], result.stderr


def test_a_command_says_that_it_is_loading_before_it_does(tmp_path):
    """A terminal shows something before torch is imported, which takes seconds."""
    ours, terminal = pty.openpty()
    command = [sys.executable, "-c", LOADING, "train", "--source", "sim", "--out", str(tmp_path / "run")]
    subprocess.run(command, stderr=terminal)
    os.close(terminal)
    assert os.read(ours, 1000).decode().splitlines() == ["vtp train: loading", "torch is imported"]
    os.close(ours)


# Flags


def settings_of(command):
    """The command's settings: each with its field in every model that has it, by source."""
    models = command if isinstance(command, dict) else {"": command}
    names = dict.fromkeys(name for model in models.values() for name in model.model_fields)
    return {
        name: {tag: model.model_fields[name] for tag, model in models.items() if name in model.model_fields}
        for name in names
    }


@pytest.mark.parametrize(("name", "model"), COMMANDS.items())
def test_every_setting_has_a_flag_and_every_flag_a_setting(name, model):
    command = get_command(cli.app).commands[name]
    options = {p.name: p for p in command.params}
    assert set(options) - {"config", "json", "help"} == set(settings_of(model))
    for setting in settings_of(model):
        if name in POSITIONAL.get(setting, ""):
            assert options[setting].param_type_name == "argument"
        else:
            assert options[setting].opts == [f"--{setting.replace('_', '-')}"]


def help_of(name):
    """The help text of each setting of a command, before it is broken into lines."""
    return {parameter.name: parameter.help for parameter in get_command(cli.app).commands[name].params}


@pytest.mark.parametrize(("name", "model"), COMMANDS.items())
def test_the_help_of_a_command_shows_what_happens_by_default(vtp, name, model):
    code, out, _ = vtp(name, "--help")
    assert code == 0
    page, helps = "".join(out.split()), help_of(name)
    for setting, fields in settings_of(model).items():
        text = helps[setting]
        assert "".join(text.split()) in page  # the terminal breaks long lines anywhere after a hyphen or a slash
        for field in fields.values():
            assert field.description in text
            if not (field.is_required() or field.default is None or field.default is False):
                assert ("on" if field.default is True else str(field.default)) in text, setting
        if all(field.default is None or field.default is False for field in fields.values()):
            assert ("by default" in text) != ("default: off" in text), f"{setting} says it twice or not at all"


def test_a_switch_that_is_on_can_be_turned_off(vtp):
    assert help_of("extract")["verify"].endswith("[default: on]")
    assert "--no-verify" in vtp("extract", "--help")[1]
    assert vtp("extract", "nowhere.mp4", "--no-verify")[0] == vtp("extract", "nowhere.mp4", "--verify")[0] == 2


@pytest.mark.parametrize(
    ("setting", "ending"),
    [
        ("source", "[required]"),
        ("out", "[default: runs/train]"),
        ("episodes", "[default: 500 (sim), 20000 (embeddings), 2000 (video)]"),
        ("num_envs", "[default: 32 (sim), 256 (embeddings), 8 (video)]"),
        ("updates_per_episode", "[default: 8.0 (sim, video), 1.0 (embeddings)]"),
        ("batch_size", "[default: 256 (sim, embeddings), 32 (video)]"),
        ("observation_noise", "[default: 0.0 (sim, video), 0.2 (embeddings)]"),
        ("gamma", "[default: 0.995 (sim), 0.0 (embeddings, video)]"),
        ("task", "by default none. [default: dishwashing (sim)]"),
        ("scenario", "by default its first. [sim only]"),
        ("embeddings", "[embeddings, video only; default: data/embeddings.h5]"),
        ("centre", "[embeddings only; default: corpus]"),
        ("unfreeze_after", "[video only]"),
        ("encoder_layers", "[video only; default: layer4]"),
        ("patience", "without improvement. [default: off]"),
        ("overwrite", "[default: off]"),
    ],
)
def test_the_help_of_train_says_which_source_has_which_default(setting, ending):
    assert help_of("train")[setting].endswith(ending)


def test_a_setting_that_sources_describe_differently_shows_both():
    assert help_of("train")["task"].startswith("sim: Task with a simulator")
    assert " embeddings, video: Task file or name whose prices" in help_of("train")["task"]


@pytest.mark.parametrize("source", TRAIN)
def test_defaults_reach_the_stage_untouched(vtp, trained_with, source):
    code, out, _ = vtp("train", "--source", source, "--json")
    assert code == 0
    assert trained_with == [TRAIN[source]()]
    assert json.loads(out) == {"profit_mean": 28.0}


@pytest.mark.parametrize("source", TRAIN)
def test_every_flag_of_another_source_is_refused_by_name(vtp, trained_with, source):
    for name, fields in settings_of(TRAIN).items():
        if source not in fields:
            flag = f"--{name.replace('_', '-')}"
            owners = " or ".join(f"--source {owner}" for owner in fields)
            assert_one_line(vtp("train", "--source", source, flag, "1"), f"{flag} needs {owners}, not {source}")
    assert trained_with == []


def test_flags_win_over_the_file_and_the_file_over_defaults(vtp, trained_with, tmp_path):
    (tmp_path / "c.yaml").write_text("source: sim\nepisodes: 7\nlr: 1.0e-4\n")
    vtp("train", "--config", "c.yaml", "--episodes", 9, "--json")
    assert trained_with == [config.SimTrainConfig(episodes=9, lr=1e-4)]


def test_a_flag_chooses_the_source_over_the_file_and_its_settings_must_fit(vtp, trained_with, tmp_path):
    (tmp_path / "c.yaml").write_text("source: sim\nepisodes: 7\n")
    vtp("train", "--config", "c.yaml", "--source", "video", "--frame-size", 64, "--json")
    assert trained_with == [config.VideoTrainConfig(episodes=7, frame_size=64)]
    (tmp_path / "c.yaml").write_text("source: embeddings\ncentre: video\n")
    result = vtp("train", "--config", "c.yaml", "--source", "video", "--json")
    assert_one_line(result, "--centre needs --source embeddings, not video")


@pytest.mark.parametrize(
    "cfg",
    [
        config.SimTrainConfig(episodes=3, scenario="mixed", tau=0.02),
        config.EmbeddingsTrainConfig(novelty=None, reward_window="episode", gamma=0.5),
        config.VideoTrainConfig(unfreeze_after=9, novelty=Path("n.h5")),
    ],
    ids=lambda cfg: cfg.source,
)
def test_a_saved_config_is_a_config_file(vtp, trained_with, tmp_path, cfg):
    from pipeline.files import save_config

    save_config(tmp_path / "c.yaml", cfg)
    vtp("train", "--config", "c.yaml", "--json")
    assert trained_with == [cfg]


# What is wrong is said in one line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["source is missing", "What the policy observes", "--source"]),
        (["extract"], ["source is missing", "Give it as SOURCE or in --config"]),
        (["evaluate"], ["run is missing", "Give it as RUN"]),
        (["extract", "x.mp4", "--clip-len", "0"], ["--clip-len 0", "greater than or equal to 1"]),
        (["extract", "x.mp4", "--fps", "nan"], ["--fps nan", "input should be"]),
        (["extract", "x.mp4", "--tail", "keep"], ["--tail keep", "'drop' or 'pad'"]),
        (["train", "--source", "film"], ["--source film", "'sim', 'embeddings' or 'video'"]),
        (["train", "--source", "sim", "--episodes", "many"], ["--episodes many", "valid integer"]),
        (["train", "--source", "sim", "--episodes", "0"], ["--episodes 0", "greater than or equal to 1"]),
        (["train", "--source", "sim", "--gamma", "1"], ["--gamma 1", "less than 1"]),
        (["train", "--source", "sim", "--lr", ""], ["--lr ''", "valid number"]),
        (["train", "--source", "sim", "--seeds", "4-0"], ["--seeds 4-0", "a range must rise"]),
        (["train", "--source", "sim", "--seeds", "1", "--seed", "2"], ["--seed 2 and --seeds 1 exclude each other"]),
        (["train", "--source", "sim", "--launcher", "local"], ["--launcher runs an array; add --seeds"]),
        (["train", "--source", "sim", "--seeds", "1", "--no-wait"], ["--no-wait needs --launcher slurm"]),
        (["extract", "x.mp4", "--launcher", "pbs"], ["--launcher pbs", "'local' or 'slurm'"]),
        (["extract", "x.mp4", "--launcher", "slurm"], ["--launcher runs an array; add --shards"]),
        (
            ["extract", "x.mp4", "--shards", "2", "--shard", "1", "--launcher", "slurm"],
            ["--launcher runs all shards and --shard 1 only one"],
        ),
        (["extract", "x.mp4", "--shards", "2", "--slurm-gres", "gpu:1"], ["--slurm-gres needs --launcher slurm"]),
        (["train", "--source", "sim", "--seed", "1\n2"], [r"--seed '1\n2'", "valid integer"]),
        (["simulate", "--videos", "-1"], ["--videos -1", "greater than or equal to 1"]),
        (["simulate", "--task", "ironing"], ["'ironing'", "dishwashing, bricklaying, bin-picking"]),
        (["train", "--source", "sim", "--task", "ironing"], ["'ironing'", "dishwashing, bricklaying, bin-picking"]),
        (["train", "--source", "sim", "--scenario", "soap"], ["'soap'", "dishwashing"]),
        (["evaluate", "runs/none"], ["runs/none"]),
        (["report", "runs/none"], ["runs/none"]),
    ],
)
def test_a_bad_value_is_named_with_its_rule(vtp, tmp_path, arguments, words):
    assert_one_line(vtp(*arguments), *words)
    assert list(tmp_path.iterdir()) == [], "an error of usage writes nothing"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wat: 1\n", ["'wat' is not a setting", "use one of source, out, episodes"]),
        ("episodes: 0\n", ["--episodes 0", "greater than or equal to 1"]),
        ("episodes: [1, 2]\n", ["--episodes [1, 2]", "valid integer"]),
        ("- episodes\n", ["holds no settings", "name: value"]),
        ("episodes\n", ["holds no settings", "name: value"]),
        ("1: 2\n", ["holds no settings", "name: value"]),
        ("on: 2\n", ["holds no settings", "name: value"]),  # YAML reads `on` as true
        ("seed: 1\nepisodes: [1,\n", ["cannot be read", "line 3"]),
        ("a: !!python/object/apply:os.system ['touch ran']\n", ["cannot be read", "line 1"]),
        ("\0", ["cannot be read"]),
    ],
)
def test_a_bad_config_file_is_one_line_too(vtp, tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    assert_one_line(vtp("train", "--source", "sim", "--config", "c.yaml"), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_a_config_file_that_cannot_be_read(vtp, tmp_path):
    assert_one_line(vtp("train", "--config", "none.yaml"), "none.yaml cannot be read", "No such file")
    assert_one_line(vtp("train", "--config", "."), "cannot be read")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    assert_one_line(vtp("train", "--config", "c.yaml"), "c.yaml cannot be read")


def test_training_on_embeddings_that_are_not_there_names_both_ways_out(vtp):
    assert_one_line(
        vtp("train", "--source", "embeddings", "--embeddings", "d/e.h5"),
        "no embeddings at d/e.h5",
        "vtp extract VIDEOS --out d/e.h5",
        "--source sim",
    )


@pytest.mark.parametrize("arguments", [["train", "--wat", "1"], ["fly"], ["train", "--episodes"]])
def test_unknown_flags_and_commands_are_errors_of_usage(vtp, arguments):
    code, out, err = vtp(*arguments)
    assert code == 2
    assert "Traceback" not in out + err


# How it ends


def ends_with(monkeypatch, error):
    from pipeline import train

    def run(cfg, *, progress):
        raise error

    monkeypatch.setattr(train, "run", run)


def test_an_interrupted_command_ends_with_75(vtp, monkeypatch):
    ends_with(monkeypatch, KeyboardInterrupt())
    assert_one_line(vtp("train", "--source", "sim"), "interrupted; run the same command again", code=75)


def test_a_full_disk_ends_with_75_wherever_it_is_noticed(vtp, monkeypatch):
    ends_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "runs/a/events"))
    assert_one_line(vtp("train", "--source", "sim"), "no space left to write runs/a/events", "free some", code=75)


def test_our_own_bugs_keep_their_traceback(vtp, monkeypatch):
    ends_with(monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError, match="ours"):
        vtp("train", "--source", "sim")


@pytest.mark.parametrize(("error", "code"), [(VtpError, 2), (PartialError, 3), (CorruptError, 4), (TryAgainError, 75)])
def test_every_error_has_its_exit_code(vtp, monkeypatch, error, code):
    ends_with(monkeypatch, error("a [bold]value[/bold] breaks a rule"))
    assert_one_line(vtp("train", "--source", "sim"), "a [bold]value[/bold] breaks a rule", code=code)


@pytest.mark.slow
def test_a_short_training_run_from_a_shell_and_again_in_process(vtp, tmp_path):
    """A pipe for output, a summary to read by machine, and the same seed gives the same policy."""
    small = {"episodes": 8, "num-envs": 8, "warmup-steps": 100, "updates-per-episode": 2}
    command = ["train", "--source=sim", "--json", *(f"--{name}={value}" for name, value in small.items())]
    result = subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import main; main()", *command, "--out", "a"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stderr, "a progress bar was drawn where there is no terminal"
    summary = json.loads(result.stdout)
    assert summary == json.loads((tmp_path / "a" / "summary.json").read_text())
    saved = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert (saved["episodes"], saved["source"]) == (8, "sim")

    code, out, _ = vtp(*command, "--out", "b")
    assert code == 0
    again = json.loads(out)
    assert again["profit_mean"] == pytest.approx(summary["profit_mean"], rel=1e-4)
    ours, theirs = (one["contexts"]["plate"] for one in (again, summary))
    assert ours["actions"] == pytest.approx(theirs["actions"], rel=1e-4)
    assert ours["profit"] == pytest.approx(theirs["profit"], rel=1e-4)


# Experiments


def test_an_experiment_prints_its_key_numbers_and_leaves_its_files(vtp):
    code, out, _ = vtp("experiment", "frontier", "--out", "here", "--grid", 5, "--episodes", 1, "--json")
    assert code == 0
    assert {"analytic_count", "monte_carlo_count", "optimum", "wall_s"} <= set(json.loads(out))
    code, out, _ = vtp("experiment", "frontier", "--out", "here", "--grid", 5, "--episodes", 1)
    assert code == 0 and yaml.safe_load(out)["grid"] == 5


@pytest.mark.slow
def test_experiments_work_for_bricklaying_too(vtp, tmp_path):
    train = ("train", "--source", "sim", "--task", "bricklaying", "--scenario", "mixed", "--out", "run", "--json")
    code, out, _ = vtp(*train, "--episodes", 4, "--num-envs", 4, "--warmup-steps", 200)
    assert code == 0 and json.loads(out)["task"] == "bricklaying"
    few = {"frontier": ("--grid", 5, "--episodes", 1), "elasticity": ("--points", 2), "spread": ()}
    for name, flags in few.items():
        code, out, err = vtp("experiment", name, "run", *flags, "--json")
        assert code == 0, err
        assert json.loads(out) == json.loads((tmp_path / "run" / "experiments" / f"{name}.json").read_text())
        for kind in ("csv", "svg", "png"):
            assert (tmp_path / "run" / "experiments" / f"{name}.{kind}").stat().st_size > 0
    assert vtp("report", "run")[0] == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "mixed bricklaying" in page and "experiments/" not in page, "nothing is missing"
    code, out, _ = vtp("evaluate", "run", "--episodes", 2, "--steps", 2)
    assert code == 0 and "rebate: The skill of the estimator of the" in out


def test_an_experiment_on_no_run_is_one_line(vtp):
    assert_one_line(vtp("experiment", "elasticity"), "RUN")
    assert_one_line(vtp("experiment", "elasticity", "nowhere"), "nowhere", "vtp train")
    assert_one_line(vtp("experiment", "spread", "nowhere"), "nowhere", "vtp train")


def test_compare_takes_two_runs_or_more(vtp, tmp_path):
    assert_one_line(vtp("compare"), "RUNS")
    assert_one_line(vtp("compare", "one"), "at least 2")
    assert_one_line(vtp("compare", "one", "two"), "one", "vtp train")


@pytest.mark.slow
def test_sigterm_ends_an_extraction_with_75(tmp_path):
    """The finished video is kept, and no decoder is left behind."""
    for number, num_frames in enumerate((4, 250)):
        write_video(tmp_path / f"{number}.mp4", num_frames, fps=15)
    out = tmp_path / "out/embeddings.h5"
    flags = ["--weights", "random:0", "--clip-len", "2", "--clip-stride", "1", "--batch-size", "2", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", "from pipeline.cli import main; main()", "extract", str(tmp_path), *flags],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline_s = time.monotonic() + 60
    while not (children := children_of(process.pid)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "interrupted; run the same command again to continue" in message
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)
    assert not out.exists()


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
