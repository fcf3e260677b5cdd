"""`speechclip-plus train`: from a folder of recordings and images to a saved model."""

import csv
import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image

from speechclip_plus import (
    SpeechClipPlusModel,
    SpeechClipPlusProcessor,
    load_speech_image_dataset,
)
from speechclip_plus_cli import main as cli


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    with (folder / "metadata.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["audio", "image", "text", "split"])
        for number in range(12):
            samples = generator.uniform(-0.5, 0.5, 8000 + 800 * number)
            soundfile.write(folder / f"{number}.wav", samples, 16_000)
            Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
            split = "train" if number < 8 else "validation"
            writer.writerow([f"{number}.wav", f"{number}.png", "a red circle", split])
    return folder


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """A run's folder, started from a file of which the command line changes one value."""
    folder = tmp_path_factory.mktemp("runs")
    config = folder / "run.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "preset": "hybrid_plus-tiny",
                "data": "folder",
                "data_dir": str(data_dir),
                "output_dir": str(folder / "first"),
                "training": {
                    "max_steps": 2,
                    "warmup_steps": 1,
                    "learning_rate": "1e-3",
                    "per_device_train_batch_size": 4,
                    "use_cpu": True,
                    "report_to": "tensorboard" if importlib.util.find_spec("tensorboard") else "none",
                },
            }
        )
    )
    assert cli.main(["train", "--config", str(config), "--set", "max_steps=4", "--set", "eval_steps=2"]) == 0
    return folder / "first"


def test_the_best_model_is_saved_with_its_processor_and_a_card(finished, data_dir):
    model = SpeechClipPlusModel.from_pretrained(finished / "model")
    processor = SpeechClipPlusProcessor.from_pretrained(finished / "model")
    inputs = processor(audio=np.zeros(16_000, dtype=np.float32) + 0.1, sampling_rate=16_000)
    assert model.get_audio_features(**inputs).pooler_output.shape == (1, 128)
    card = (finished / "model" / "README.md").read_text()
    metrics = json.loads((finished / "results.json").read_text())["metrics"]
    assert f"### Validation split of {data_dir.name}\n" in card
    assert f"| parallel branch, speech to images | {metrics['parallel_speech_to_image_R@1']:.1f} [" in card
    assert str(data_dir) not in card and (finished / "model" / "training.png").is_file()


def test_the_configuration_used_is_written_with_what_the_command_line_changed(finished):
    settings = yaml.safe_load((finished / "run.yaml").read_text())
    assert settings["preset"] == "hybrid_plus-tiny"
    assert settings["training"]["max_steps"] == 4  # the command line's, not the file's 2
    assert settings["training"]["learning_rate"] == 1e-3  # a number, though YAML takes 1e-3 for text
    assert settings["training"]["seed"] == 42 and settings["training"]["weight_decay"] == 1e-6  # nobody's but in force
    history = json.loads((finished / "results.json").read_text())["history"]
    assert [entry["step"] for entry in history if "eval_mean_R@10" in entry][:2] == [2, 4]


def test_tensorboard_gets_every_part_of_the_loss_and_the_metrics(finished):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = min(finished.rglob("events.out.tfevents*"), key=lambda file: file.name)
    events = accumulator.EventAccumulator(str(first))
    events.Reload()
    history = json.loads((finished / "results.json").read_text())["history"]
    for name, logged in (("train/cascaded_loss", "cascaded_loss"), ("eval/mean_R@10", "eval_mean_R@10")):
        written = {event.step: event.value for event in events.Scalars(name)}
        expected = {entry["step"]: entry[logged] for entry in history if logged in entry}
        assert written == {step: pytest.approx(expected[step], rel=1e-5) for step in written} and written


def test_training_data_can_be_a_stream_with_options_of_the_data_set(data_dir, tmp_path):
    copy = tmp_path / "copy"
    for split in ("train", "validation"):
        renamed = load_speech_image_dataset("folder", split=split, data_dir=data_dir).rename_column("audio", "sound")
        renamed.to_parquet(copy / f"{split}-00000-of-00001.parquet")
    arguments = ["--data", str(copy), "--option", 'columns={"audio": "sound"}', "--streaming"]
    settings = ["max_steps=3", "eval_steps=3", "warmup_steps=1", "per_device_train_batch_size=4", "use_cpu=true"]
    for setting in settings:
        arguments += ["--set", setting]
    assert cli.main(["train", "--preset", "cascaded-tiny", "--output-dir", str(tmp_path / "run"), *arguments]) == 0
    written = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert written["streaming"] is True and written["data_options"] == {"columns": {"audio": "sound"}}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["utterances"] == 4
    assert [entry["epoch"] for entry in results["history"] if "loss" in entry]  # a stream's rows were trained on


def test_a_run_goes_on_with_the_output_folder_alone(finished, capsys):
    assert cli.main(["train", "--output-dir", str(finished)]) == 1
    assert "holds a run already: go on with it (--resume)" in capsys.readouterr().err
    assert cli.main(["train", "--output-dir", str(finished), "--resume", "--set", "max_steps=5"]) == 0
    said = capsys.readouterr().out
    assert "training: 8 utterances, 8 images, 0.0 hours\nvalidation: 4 utterances" in said
    assert "5 steps of 4 pairs on cpu, evaluated every 2 steps" in said and "going on from" in said
    history = json.loads((finished / "results.json").read_text())["history"]
    assert max(entry["step"] for entry in history) == 5


def test_a_finished_run_is_not_trained_further(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert cli.main(["train", "--output-dir", str(finished), "--resume"]) == 0
    assert "this run is finished (5 of 5 steps)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


QUICK = ["max_steps=2", "eval_steps=2", "warmup_steps=1", "per_device_train_batch_size=4", "use_cpu=true"]


@pytest.fixture
def without_splits(data_dir, tmp_path):
    """A copy of the data whose table has no column split, and arguments that train on it."""
    folder = tmp_path / "own"
    shutil.copytree(data_dir, folder)
    rows = list(csv.reader((folder / "metadata.csv").read_text().splitlines()))
    (folder / "metadata.csv").write_text("\n".join(",".join(row[:3]) for row in rows))
    arguments = ["--preset", "cascaded-tiny", "--data", str(folder), "--output-dir", str(tmp_path / "run")]
    return ["train", *arguments, *(part for setting in QUICK for part in ("--set", setting))]


def test_of_recordings_without_splits_a_share_is_held_out(without_splits, tmp_path, capsys):
    assert cli.main(without_splits) == 0
    said = capsys.readouterr().out
    assert "no validation split: 10% of the images" in said
    assert "training: 11 utterances" in said and "validation: 1 utterances" in said
    assert "validation, speech to image: cascaded R@1 100 % R@10 100 %; chance 100.0 % and 100.0 %" in said
    written = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert written["data_options"] == {"validation_share": 0.1}


@pytest.mark.parametrize("how", ["command", "file"])
def test_training_without_evaluation_takes_all_recordings(how, without_splits, tmp_path, capsys):
    (tmp_path / "no.yaml").write_text("training:\n  eval_strategy: no\n")  # which YAML takes for false
    more = ["--set", "eval_strategy=no"] if how == "command" else ["--config", str(tmp_path / "no.yaml")]
    assert cli.main([*without_splits, *more]) == 0
    said = capsys.readouterr().out
    assert "training: 12 utterances" in said and "not evaluated" in said and "validation" not in said
    assert SpeechClipPlusModel.from_pretrained(tmp_path / "run" / "model").config.has_cascaded


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_processes_without_gpus_are_told_of_use_cpu(tmp_path):
    code = "from speechclip_plus import SpeechClipPlusTrainingArguments as Arguments; Arguments(output_dir='run')"
    (tmp_path / "make.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "make.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "none of them sees a GPU of its own: give use_cpu=True" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--stepz"]])
@pytest.mark.parametrize("command", ["train", "data", "quickstart"])
def test_help_and_wrong_usage_answer_without_pytorch(command, arguments):
    code = f"import sys; from speechclip_plus_cli.main import main; main({[command, *arguments]!r})"
    code += "; print(*{'torch', 'transformers', 'datasets', 'speechclip_plus'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1].strip() == ""


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (["--set", "max_step=3"], {}, "no training argument 'max_step'. The nearest is 'max_steps'"),
        ([], {"presett": "x"}, "no setting (in"),
        ([], {"training": {"learning_rat": 1}}, "The nearest is 'learning_rate'"),
        (["--set", "max_steps"], {}, "--set max_steps is not KEY=VALUE"),
        (["--set", "max_steps=abc"], {}, "max_steps takes a number; got 'abc'"),
        ([], {"training": {"bf16": "yes"}}, "bf16 takes true or false; got 'yes'"),
        (["--preset", "hybrid-tny"], {}, "Near to it: hybrid-tiny"),
        ([], {"output_dir": None}, "Give --output-dir"),
    ],
)
def test_what_does_not_exist_is_named_with_the_nearest(arguments, content, message, tmp_path, capsys):
    config = tmp_path / "run.json"
    config.write_text(json.dumps({"output_dir": str(tmp_path / "run"), **content}))
    assert cli.main(["train", "--config", str(config), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
