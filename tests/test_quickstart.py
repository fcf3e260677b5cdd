"""The quickstart, from the command line to the report, very small."""

import argparse
import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from speechclip_plus_cli.console import Console
from speechclip_plus_cli.main import main
from speechclip_plus_cli.quickstart import MIN_STEPS, RESERVED_SECONDS, Plan, _check_same, add_arguments

EVAL_SCENES = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished quickstart: its process and the folder that it was started in."""
    folder = tmp_path_factory.mktemp("quickstart")
    arguments = ["--train-scenes", "40", "--eval-scenes", str(EVAL_SCENES), "--steps", "6"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "speechclip_plus_cli", "quickstart", *arguments, "--time-budget-minutes", "5"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process, folder


@pytest.fixture(scope="module")
def results(made):
    return json.loads((made[1] / "quickstart" / "results.json").read_text())


def test_it_prints_the_budget_and_the_plan_first_and_progress_after(made):
    told = made[0].stdout
    assert "Time budget: 5 minutes" in told.splitlines()[0]
    in_order = ("making the data", "frozen encoders", "training: 6 steps", "evaluating", "Done")
    places = [told.index(text, told.index("1. making the data")) for text in in_order]
    assert places == sorted(places)
    assert "{'loss'" not in told  # the trainer's own dictionaries
    assert "loss" in told and "parallel" in told and "quantity" in told and "validation" in told


def test_it_leaves_the_model_samples_the_results_and_the_report_and_nothing_else(made):
    folder = made[1]
    assert [path.name for path in folder.iterdir()] == ["quickstart"]
    files = {path.name for path in (folder / "quickstart").iterdir() if not path.name.startswith(".")}
    assert files == {"model", "report.html", "results.json", "first.png", "query.wav", "second.png"}
    model = {path.name for path in (folder / "quickstart" / "model").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "processor_config.json"} <= model
    assert not [name for name in model if name.endswith(".py")]


def test_the_results_hold_figures_of_both_branches_beside_chance(results):
    metrics, chance = results["metrics"], results["chance"]
    assert metrics["utterances"] == metrics["images"] == EVAL_SCENES
    for branch in ("parallel", "cascaded"):
        for direction in ("speech_to_image", "image_to_speech"):
            assert 0 <= metrics[f"{branch}_{direction}_R@1"] <= metrics[f"{branch}_{direction}_R@10"] <= 100
    assert chance["speech_to_image_R@1"] == pytest.approx(100 / EVAL_SCENES)
    assert 0 <= metrics["keyword_hit_rate@1"] <= metrics["keyword_hit_rate_original@1"] <= 100


def test_the_losses_and_evaluations_of_the_training_are_kept(results):
    losses = [entry for entry in results["history"] if "loss" in entry]
    assert [entry["step"] for entry in losses] == [1, 2, 3, 4, 5, 6]
    assert all({"parallel_loss", "cascaded_loss", "quantity_loss"} <= set(entry) for entry in losses)
    assert len([entry for entry in results["history"] if "eval_mean_R@10" in entry]) == 6
    assert results["training"]["steps"] == 6


def test_the_card_carries_the_measured_numbers(made, results):
    card = ModelCard.load(made[1] / "quickstart" / "model" / "README.md")
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    expected = results["metrics"]["parallel_speech_to_image_R@10"]
    assert values["parallel speech to image R@10"] == pytest.approx(expected, abs=0.01)
    assert values["keyword hit rate, k=1"] == pytest.approx(results["metrics"]["keyword_hit_rate@1"], abs=0.01)


def test_keywords_come_from_the_tokens_of_the_training_captions(made):
    from speechclip_plus import SpeechClipPlusConfig

    config = SpeechClipPlusConfig.from_pretrained(made[1] / "quickstart" / "model")
    vocabulary = config.keyword_config.vocabulary_ids
    assert 10 < len(vocabulary) == len(set(vocabulary)) < 200


def test_the_report_shows_the_figures_the_queries_and_the_training(made, results):
    html = (made[1] / "quickstart" / "report.html").read_text()
    assert f"{results['metrics']['parallel_speech_to_image_R@10']:.1f}" in html
    assert "From speech to images" in html and "From images to speech" in html
    assert "Loss over training steps" in html and "Validation recall over training steps" in html
    assert html.count('aria-label="Waveform of ') == 5
    assert html.count("<audio") == 5 + 3 * 5
    assert "http" not in html


def test_a_model_that_changed_on_its_way_is_noticed():
    _check_same({"mean_R@1": 52.0, "loss": 1.0}, {"mean_R@1": 52.2})
    with pytest.raises(ValueError, match="not the trained one: mean_R@1 was 52"):
        _check_same({"mean_R@1": 52.0}, {"mean_R@1": 12.0})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--time-budget-minutes", "0"], 1, "must be at least 1"),
        (["--train-scenes", "0"], 2, "not at least 1"),
        (["--output-dir", "mine"], 1, "thesis.txt was not written by"),
        (["--output-dir", "bad.wav"], 1, "is a file"),
        (["--output-dir", "."], 1, "in use"),
    ],
)
def test_what_cannot_work_is_said_at_once_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, code, message):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.wav", "mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_being_stopped_leaves_nothing(tmp_path):
    """A process that is killed politely in the middle of its work cleans up."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "speechclip_plus_cli", "quickstart", "--train-scenes", "3000"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "making the data" in line:
            break
    assert any(path.name.startswith(".quickstart-") for path in tmp_path.iterdir())
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def plan(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return Plan.from_arguments(parser.parse_args(arguments))


def test_a_smaller_budget_plans_less_and_a_slow_machine_trains_fewer_steps():
    whole, third = plan("--time-budget-minutes", "15"), plan("--time-budget-minutes", "5")
    assert third.train_scenes == pytest.approx(whole.train_scenes / 3, abs=1)
    assert third.steps == pytest.approx(whole.steps / 3, abs=1)
    assert whole.steps_within(1e9, 0.1) == whole.steps
    assert whole.steps_within(RESERVED_SECONDS + 100, 1.0) == 90
    assert whole.steps_within(0, 1.0) == MIN_STEPS
    assert plan("--steps", "7").steps == 7


def test_the_console_tells_the_time_of_each_part(capsys):
    now = iter([0.0, 5.0, 5.0, 65.0, 65.0, 75.0])
    console = Console(clock=lambda: next(now))
    console.phase("data", "making")
    console.phase("training", "learning")
    assert console.phase_seconds == {"data": 60.0, "training": 10.0}
    assert capsys.readouterr().out.splitlines() == ["[ 0:05] making", "[ 1:05] learning"]


def test_the_saved_weights_are_safetensors_that_load(made):
    state = load_file(made[1] / "quickstart" / "model" / "model.safetensors")
    assert {"logit_scale", "parallel_projection.weight", "cif.projection.weight"} & set(state)
    assert (made[1] / "quickstart" / "model" / "model.safetensors").stat().st_size < 20e6
