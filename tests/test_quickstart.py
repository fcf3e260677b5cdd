"""The main job, from the command line to the report, very small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from speechclip_plus.atomic_files import finished_folder
from speechclip_plus.modeling_speechclip_plus.input_paths import list_files
from speechclip_plus_cli.console import Console
from speechclip_plus_cli.main import main
from speechclip_plus_cli.quickstart.answers import AnswerRequest, answer
from speechclip_plus_cli.quickstart.folder import MADE_BY, check_output_dir
from speechclip_plus_cli.quickstart.plan import MIN_STEPS, RESERVED_SECONDS, Plan

EVAL_SCENES = 12


def run(*arguments, folder):
    """Run the command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "speechclip_plus_cli", "quickstart", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished quickstart: its process and the folder that it was started in."""
    folder = tmp_path_factory.mktemp("quickstart")
    process = run(
        *("--train-scenes", "40", "--captions-per-scene", "1", "--eval-scenes", str(EVAL_SCENES)),
        *("--steps", "6", "--batch-size", "16", "--time-budget-minutes", "5"),
        folder=folder,
    )
    assert process.returncode == 0, process.stderr
    return process, folder


@pytest.fixture(scope="module")
def results(made):
    return json.loads((made[1] / "quickstart" / "results.json").read_text())


def test_it_prints_the_budget_and_the_plan_first_and_progress_after(made):
    lines = made[0].stdout.splitlines()
    assert "Time budget: 5 minutes" in lines[0]
    told = made[0].stdout
    places = [
        told.index(text) for text in ("making the data", "frozen encoders", "training: 6 steps", "evaluating", "Done")
    ]
    assert places == sorted(places)
    assert "loss" in told and "parallel" in told and "quantity" in told and "validation" in told


def test_it_leaves_the_model_the_results_and_the_report_and_nothing_else(made):
    folder = made[1]
    assert [path.name for path in folder.iterdir()] == ["quickstart"]
    samples = ["first.png", "query.wav", "second.png"]  # to try the model with
    files = sorted(path.name for path in (folder / "quickstart").iterdir())
    assert files == sorted(["model", "report.html", "results.json", *samples])
    assert {"README.md", "config.json", "model.safetensors", "processor_config.json"} <= {
        path.name for path in (folder / "quickstart" / "model").iterdir()
    }


def test_the_results_hold_figures_of_both_branches_beside_chance(results):
    test, chance = results["test"], results["chance"]
    assert test["utterances"] == test["images"] == EVAL_SCENES
    for branch in ("parallel", "cascaded"):
        for direction in ("speech_to_image", "image_to_speech"):
            assert 0 <= test[f"{branch}_{direction}_R@1"] <= test[f"{branch}_{direction}_R@10"] <= 100
    assert chance["speech_to_image_R@1"] == pytest.approx(100 / EVAL_SCENES)
    assert 0 < chance["keyword_hit_rate@1"] < chance["keyword_hit_rate_most_common@1"]
    assert 0 <= test["keyword_hit_rate@1"] <= test["keyword_hit_rate_original@1"] <= 100


def test_the_losses_and_evaluations_of_the_training_are_kept(results):
    history = results["history"]
    assert history["train"]["step"] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(history["train"][name]).all() for name in ("loss", "parallel_loss", "cascaded_loss"))
    assert history["validation"]["step"] == [1, 2, 3, 4, 5, 6]
    assert results["training"]["steps"] == 6


def test_the_card_carries_the_measured_numbers(made, results):
    card = ModelCard.load(made[1] / "quickstart" / "model" / "README.md")
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["parallel speech to image R@10"] == pytest.approx(
        results["test"]["parallel_speech_to_image_R@10"], abs=0.01
    )
    assert values["keyword hit rate, k=1"] == pytest.approx(results["test"]["keyword_hit_rate@1"], abs=0.01)


def test_keywords_come_from_the_subwords_of_the_training_captions(made):
    from speechclip_plus import SpeechClipPlusConfig

    config = SpeechClipPlusConfig.from_pretrained(made[1] / "quickstart" / "model")
    vocabulary = config.keyword_config.vocabulary_ids
    assert 10 < len(vocabulary) == len(set(vocabulary)) < 200


def test_the_report_shows_the_figures_the_queries_and_the_check_of_the_loaded_model(made, results):
    html = (made[1] / "quickstart" / "report.html").read_text()
    assert f"{results['test']['parallel_speech_to_image_R@10']:.1f}" in html
    assert html.count('<svg class="speech"') == 6
    assert html.count("<audio") == 6 + 3 * 5
    assert f"embeds {EVAL_SCENES} recordings and {EVAL_SCENES} pictures as it did in training" in html
    assert "http" not in html


def test_a_model_that_changed_on_its_way_is_noticed(made, tmp_path):
    model = made[1] / "quickstart" / "model"
    request = AnswerRequest(
        str(model),
        str(tmp_path / "report.html"),
        eval_scenes=EVAL_SCENES,
        expected=str(tmp_path / "expected.safetensors"),
    )
    from speechclip_plus import SpeechClipPlusModel

    width = SpeechClipPlusModel.from_pretrained(model).config.clip_config.projection_dim
    import torch

    wrong = torch.nn.functional.normalize(torch.ones(EVAL_SCENES, width), dim=-1)
    save_file({"image_embeds": wrong}, tmp_path / "expected.safetensors")
    with torch.no_grad(), pytest.raises(ValueError, match="What was saved is not what was trained"):
        answer(request)
    torch.set_grad_enabled(True)
    assert not (tmp_path / "report.html").exists()


def test_own_recordings_search_own_pictures_with_a_trained_model(made, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, colour in (("one.png", "red"), ("two.jpg", "blue")):
        Image.new("RGB", (300, 200), colour).save(pictures / name)
    soundfile.write(tmp_path / "me.wav", np.random.default_rng(0).uniform(-0.1, 0.1, (44_100, 2)), 44_100)
    process = run(
        *("--model", str(made[1] / "quickstart"), "--audio", "me.wav", "--images", "pictures"),
        folder=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    html = (tmp_path / "answers" / "report.html").read_text()
    assert "me.wav" in html and "one.png" in html and "two.jpg" in html
    assert "right picture" not in html  # nobody knows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers", "me.wav", "pictures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--audio", "missing.wav"], "no recording or folder missing.wav"),
        (["--images", "empty"], "holds no picture"),
        (["--audio", "bad.wav"], "bad.wav.*cannot be read as audio"),
        (["--time-budget-minutes", "0"], "must be at least 1"),
        (["--batch-size", "1"], "--batch-size must be at least 2"),
        (["--train-scenes", "0"], "--train-scenes must be at least 8"),
        (["--model", "empty"], "no folder of a saved model"),
        (["--output-dir", "mine"], "holds files that the quickstart did not make"),
        (["--output-dir", "bad.wav"], "is a file"),
        (["--output-dir", "."], "current folder or above it"),
    ],
)
def test_what_cannot_work_is_said_at_once_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    import re

    assert re.search(message, error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.wav", "empty", "mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def quickstart_output(folder):
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"made_by": MADE_BY}))
    return folder


def test_an_earlier_output_may_be_replaced_and_anything_else_only_when_asked(tmp_path):
    check_output_dir(quickstart_output(tmp_path / "earlier"), overwrite=False)
    check_output_dir(tmp_path / "new", overwrite=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="--overwrite"):
        check_output_dir(tmp_path / "mine", overwrite=False)
    check_output_dir(tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_crash_leaves_the_earlier_output_as_it_was(tmp_path, error):
    earlier = quickstart_output(tmp_path / "quickstart")
    before = (earlier / "results.json").read_text()
    with pytest.raises(error), finished_folder(earlier) as work:
        (work / "half.txt").write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart"]
    assert [path.name for path in earlier.iterdir()] == ["results.json"]
    assert (earlier / "results.json").read_text() == before


def test_a_finished_run_takes_the_place_of_the_earlier_output(tmp_path):
    earlier = quickstart_output(tmp_path / "quickstart")
    (earlier / "old.txt").write_text("old")
    with finished_folder(earlier) as work:
        (work / "new.txt").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart"]
    assert [path.name for path in earlier.iterdir()] == ["new.txt"]


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


def test_a_smaller_budget_plans_less_and_a_slow_machine_trains_fewer_steps():
    whole, third = Plan.for_minutes(15), Plan.for_minutes(5)
    assert third.train_scenes == pytest.approx(whole.train_scenes / 3, abs=1)
    assert third.steps == pytest.approx(whole.steps / 3, abs=1)
    assert whole.steps_within(1e9, 0.1) == whole.steps
    assert whole.steps_within(RESERVED_SECONDS + 100, 1.0) == 90
    assert whole.steps_within(0, 1.0) == MIN_STEPS
    assert Plan.for_minutes(5, steps=7).steps == 7


def test_the_console_tells_the_time_of_each_part(capsys):
    now = iter([0.0, 5.0, 5.0, 65.0, 65.0, 75.0])
    console = Console(clock=lambda: next(now))
    console.phase("data", "making")
    console.phase("training", "learning")
    assert console.phase_seconds == {"data": 60.0, "training": 10.0}
    assert capsys.readouterr().out.splitlines() == ["[ 0:05] making", "[ 1:05] learning"]


def test_files_are_taken_as_given_and_folders_are_searched(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/2.PNG", "a/b/1.jpg", "a/notes.txt", "x.unknown"):
        (tmp_path / name).write_text("")
    found = list_files([str(tmp_path / "x.unknown"), str(tmp_path / "a")], (".png", ".jpg"), "picture")
    assert [str(path.relative_to(tmp_path)) for path in found] == ["x.unknown", "a/2.PNG", "a/b/1.jpg"]


def test_the_saved_weights_are_safetensors_that_load(made):
    state = load_file(made[1] / "quickstart" / "model" / "model.safetensors")
    assert {"logit_scale", "parallel_projection.weight", "cif.projection.weight"} & set(state)
    assert Path(made[1] / "quickstart" / "model" / "model.safetensors").stat().st_size < 20e6
