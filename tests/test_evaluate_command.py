"""`speechclip-plus evaluate`: every figure of a split from a saved model, and clear errors."""

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from PIL import Image

from speechclip_plus.configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from speechclip_plus.configuration.presets import published_results
from speechclip_plus.hub_cards.results import Results, ScoreRow, ScoreTable, markdown_table, result_tables
from speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
from speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor
from speechclip_plus.trainer.collator import GOLD_SUBWORDS, SpeechImageCollator
from speechclip_plus.trainer.data.load import load_speech_image_dataset
from speechclip_plus.trainer.evaluation.evaluate import SplitOutputs, evaluate, kept_outputs
from speechclip_plus.trainer.evaluation.retrieval_metrics import chance_recall, retrieval_statistics
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus_cli import main as cli
from speechclip_plus_cli.console import model_source
from speechclip_plus_cli.evaluate import published_figures, published_preset

CAPTIONS = ["a red circle", "a red circle", "a blue star above a moon", "the big green ring", "a pink heart", "a moon"]
SECONDS = [0.9, 1.3, 1.7, 1.1, 0.8, 1.5]
IMAGES = [0, 0, 1, 2, 2, 3]


def write_folder(root, with_text=True):
    rng = np.random.default_rng(0)
    rows = []
    for number, (caption, seconds, image) in enumerate(zip(CAPTIONS, SECONDS, IMAGES, strict=True)):
        soundfile.write(root / f"u{number}.wav", rng.normal(0, 0.1, int(seconds * 16_000)), 16_000)
        image = root / f"p{image}.png"
        if not image.exists():
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(image)
        rows.append(
            {"audio": f"u{number}.wav", "image": image.name, "split": "test"}
            | ({"text": caption} if with_text else {})
        )
    with (root / "metadata.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved untrained models by variant, made when asked for."""
    made = {}

    def get(variant):
        if variant not in made:
            speech, clip = tiny_backbone("hubert"), tiny_backbone("clip")
            torch.manual_seed(0)
            model = SpeechClipPlusModel.from_backbones(speech, clip, config=f"{variant}-tiny")
            made[variant] = tmp_path_factory.mktemp("models") / variant
            model.save_pretrained(made[variant])
            SpeechClipPlusProcessor.from_backbones(speech, clip).save_pretrained(made[variant])
        return made[variant]

    return get


def write_alignments(folder, seconds=SECONDS):
    for number, (caption, length) in enumerate(zip(CAPTIONS, seconds, strict=True)):
        words = caption.split()
        edges = np.linspace(0, length, len(words) + 1)
        lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", 0, length, "<exists>", 1]
        lines += ['"IntervalTier"', '"words"', 0, length, len(words)]
        for word, start, end in zip(words, edges, edges[1:], strict=False):
            lines += [start, end, f'"{word}"']
        (folder / f"u{number}.TextGrid").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def evaluated(models, data, tmp_path_factory):
    """The folder of one whole evaluation."""
    root = tmp_path_factory.mktemp("evaluated")
    alignments = write_alignments(tmp_path_factory.mktemp("alignments"))
    command = ["evaluate", str(models("hybrid_plus")), "--data", str(data), "--alignments", str(alignments)]
    assert cli.main([*command, "--output-dir", str(root / "out"), "--batch-size", "4"]) == 0
    return root / "out"


def read(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_figures_are_those_of_the_trainers_evaluation(evaluated, models, data):
    model = SpeechClipPlusModel.from_pretrained(models("hybrid_plus")).eval()
    processor = SpeechClipPlusProcessor.from_pretrained(models("hybrid_plus"))
    rows = load_speech_image_dataset(data, split="test")
    batch = SpeechImageCollator(processor).for_evaluation()(list(rows))
    labels = {name: batch[name] for name in ("image_ids", GOLD_SUBWORDS)}
    del batch[GOLD_SUBWORDS]
    with torch.no_grad():
        outputs = model(**batch)
    expected = evaluate(SplitOutputs.from_predictions(kept_outputs(outputs), labels), model, resamples=0).metrics
    assert {"parallel_mean_R@1", "mean_R@10", "keyword_hit_rate_original@5", "cif_length_error"} <= expected.keys()
    got = read(evaluated)["metrics"]
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_everything_that_the_model_and_the_data_allow_is_measured(evaluated):
    results = read(evaluated)
    named = "model data metrics intervals chance published curves notes bootstrap versions date seconds"
    assert list(results) == named.split()
    for name in (
        "parallel_speech_to_image_R@1",
        "cascaded_image_to_speech_mAP",
        "cascaded_image_to_speech_mteb_R@5",
        "parallel_speech_to_text_R@10",
        "cascaded_mean_text_R@1",
        "mean_R@10",
        "keyword_hit_rate_original@5",
        "content_word_f1",
        "keyword_duplicates",
        "semantic_similarity",
    ):
        assert name in results["metrics"], name
    for name, (low, high) in results["intervals"].items():
        assert low <= results["metrics"][name] <= high or name == "semantic_similarity_shuffled", name
    assert results["metrics"]["aligned_utterances"] == 6 and "boundary_r_value@50ms" in results["metrics"]
    assert results["data"] | {"utterances": 6, "images": 4, "captions": 6} == results["data"]
    assert results["data"]["hours"] == pytest.approx(sum(SECONDS) / 3600, abs=1e-4)
    assert results["published"] is None and results["model"]["variant"] == "hybrid_plus"
    assert results["date"] and results["versions"]["torch"] in torch.__version__
    assert len(results["curves"]["parallel_speech_to_image"]) == 100


def test_guesses_are_of_the_right_numbers_of_items(evaluated):
    chance = read(evaluated)["chance"]
    assert chance["speech_to_image_R@1"] == 25  # four images
    assert chance["speech_to_text_R@1"] == 20  # five different texts
    assert chance["image_to_speech_R@1"] == chance_recall(IMAGES, IMAGES)["image_to_speech_R@1"]


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(evaluated):
    html = (evaluated / "report.html").read_text()
    assert html.count("<audio") == 5 + 3 * 5 and "Weights of the layers" in html
    assert "Keywords that were" in html and 'class="weights"' in html
    assert "http://" not in html and "https://" not in html and "<script " not in html
    assert html.count("<svg") == html.count("</svg>") == 5 + 3


def test_two_runs_give_the_same_figures(evaluated, models, data, tmp_path):
    command = [
        "evaluate",
        str(models("hybrid_plus")),
        "--data",
        "folder",
        "--data-dir",
        str(data),
        "--batch-size",
        "1",
    ]
    assert cli.main([*command, "--output-dir", str(tmp_path / "out")]) == 0
    first, second = read(evaluated), read(tmp_path / "out")
    for name, value in second["metrics"].items():
        assert first["metrics"][name] == pytest.approx(value, abs=1e-3)
    assert second["intervals"].keys() == first["intervals"].keys()


@pytest.mark.parametrize("variant", ["parallel", "cascaded", "hybrid"])
def test_other_variants_are_measured_as_far_as_they_go(models, data, tmp_path, variant):
    out = tmp_path / "out"
    command = ["evaluate", str(models(variant)), "--data", str(data), "--output-dir", str(out), "--limit", "3"]
    assert cli.main(command) == 0
    metrics = read(out)["metrics"]
    assert metrics["utterances"] == 3
    assert ("parallel_mean_R@1" in metrics) == (variant != "cascaded")
    assert ("keyword_hit_rate@1" in metrics) == (variant != "parallel")
    assert "cif_length_error" not in metrics
    assert "Recall at k" in (out / "report.html").read_text()


def test_data_without_captions_are_measured_without_what_needs_them(models, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    data = write_folder(tmp_path / "data", with_text=False)
    out = tmp_path / "out"
    assert cli.main(["evaluate", str(models("hybrid_plus")), "--data", str(data), "--output-dir", str(out)]) == 0
    metrics = read(out)["metrics"]
    assert "keyword_duplicates" in metrics and "parallel_mean_R@1" in metrics
    assert not any("text" in name or "hit_rate" in name or "f1" in name for name in metrics)
    assert "note: The data have no captions" in capsys.readouterr().out


def test_the_options_of_a_data_set_are_passed_on(models, data, capsys):
    command = ["evaluate", str(models("parallel")), "--data", "spoken_scenes", "--output-dir", str(data / "none")]
    assert cli.main([*command, "--option", "num_scenes=0"]) == 1
    assert "num_scenes" in capsys.readouterr().err
    assert cli.main([*command, "--option", "num_scenes"]) == 1
    assert "--option num_scenes is not KEY=VALUE" in capsys.readouterr().err


def failing(capsys, *arguments):
    assert cli.main(["evaluate", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_bad_input_is_one_clear_line_and_leaves_nothing_behind(models, data, tmp_path, capsys):
    out = ("--output-dir", tmp_path / "out")
    given = ("--data", data, *out)
    assert "is no folder of a saved model: it has no config.json" in failing(capsys, data, *given)
    assert "holds a 'clip' model" in failing(capsys, tiny_backbone("clip"), *given)
    assert "There is no folder" in failing(capsys, tmp_path / "nowhere", *given)
    model = models("hybrid_plus")
    assert "There is no data set 'flick'" in failing(capsys, model, "--data", "flick", *out)
    assert "no rows of the split 'train'" in failing(capsys, model, *given, "--split", "train")
    (tmp_path / "words").mkdir()
    words = ("--alignments", tmp_path / "words")
    assert "holds no alignment" in failing(capsys, model, *given, *words)
    (tmp_path / "words" / "other.TextGrid").write_text("no alignment")
    assert "other.TextGrid cannot be read as a TextGrid" in failing(capsys, model, *given, *words)
    (tmp_path / "words" / "other.TextGrid").unlink()
    (tmp_path / "words" / "all.ctm").write_text("other 1 0 1 cat\nother 1 1 1 dog\n")
    assert "None of the 6 utterances has an alignment" in failing(capsys, model, *given, *words)
    write_alignments(tmp_path / "words", [9.0] * 6)
    assert "does not match its recording" in failing(capsys, model, *given, *words)
    assert "has no CIF" in failing(capsys, models("parallel"), *given, *words)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_results_go_into_the_models_card_in_the_place_of_earlier_ones(models, data, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(models("hybrid_plus"), model)
    command = ["evaluate", str(model), "--data", str(data), "--limit", "3", "--update-card", "--force"]
    command += ["--output-dir", str(tmp_path / "out")]
    (model / "README.md").unlink(missing_ok=True)
    assert cli.main(command) == 1
    assert "there is no" in capsys.readouterr().err and not (tmp_path / "out").exists()
    before = "# model\n\n## Results\n\n<!-- measured -->\nNothing yet.\n<!-- /measured -->\n\n## Licence\n\nMIT\n"
    (model / "README.md").write_text(before)
    for _ in range(2):
        assert cli.main(command) == 0
        card = (model / "README.md").read_text()
        assert "Nothing yet" not in card and card.count("### Test split of") == 1
        assert "first 3 utterances" in card and card.endswith("## Licence\n\nMIT\n") and not card.startswith("---")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    low, high = results["intervals"]["parallel_speech_to_image_R@1"]
    assert f"| {results['metrics']['parallel_speech_to_image_R@1']:.1f} [{low:.1f} to {high:.1f}] |" in card
    command.remove("--limit")
    command.remove("3")
    assert cli.main(command) == 0
    card = ModelCard.load(model / "README.md")
    assert card.text.count("### Test split of") == 2  # of the whole split, and of a part of it
    values = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert values["cascaded image to speech R@5"] == round(metrics["cascaded_image_to_speech_R@5"], 2)


def test_an_existing_folder_is_replaced_only_when_asked(models, data, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert "--force" in failing(capsys, models("parallel"), "--data", data, "--output-dir", tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").exists()


def test_force_replaces_an_earlier_evaluation_and_nothing_else(
    models, data, tmp_path, assert_replaces_only_its_own_output
):
    model = shutil.copytree(models("parallel"), tmp_path / "models" / "model")
    own = shutil.copytree(data, tmp_path / "data sets" / "data")

    def run(folder):
        command = ["evaluate", str(model), "--data", str(own), "--limit", "3", "--force"]
        return cli.main([*command, "--output-dir", str(folder)])

    assert_replaces_only_its_own_output(run, [own, model])


@pytest.mark.parametrize(
    "preset", ["parallel-base-flickr8k", "parallel-large-spokencoco", "hybrid_plus-large-flickr8k"]
)
def test_a_published_configuration_is_one_as_long_as_it_still_says_the_same(preset):
    config = SpeechClipPlusConfig.from_preset(preset)
    assert published_preset(config) == preset
    config.branch_config.num_attention_heads = 2
    assert published_preset(config) is None


def test_a_tiny_model_is_none_of_the_published_ones():
    sizes = SpeechClipPlusConfig.from_preset("parallel-tiny").to_dict()
    tiny = {name: sizes[name] for name in ("speech_config", "clip_config")}
    config = SpeechClipPlusConfig(**SpeechClipPlusConfig.from_preset("parallel-base-flickr8k").to_dict() | tiny)
    assert config.preset == "parallel-base-flickr8k" and published_preset(config) is None
    assert published_preset(SpeechClipPlusConfig.from_preset("hybrid_plus-tiny")) is None


def test_published_figures_stand_beside_results_on_their_own_data_alone():
    expected = published_results("parallel-large-flickr8k")["test"]["speech_to_image_R@1"]
    assert published_figures("parallel-large-flickr8k", "flickr8k", "test")["speech_to_image_R@1"] == expected
    assert (
        published_figures("parallel-large-spokencoco", "spokencoco", "test")["preset"] == "parallel-large-spokencoco"
    )
    assert published_figures("parallel-large-flickr8k", "flickr8k", "validation")["mean_R@10"] == 89.0
    for data, split in (("spoken_scenes", "test"), ("spokencoco", "test"), ("flickr8k", "train")):
        assert published_figures("parallel-large-flickr8k", data, split) == {}


def test_the_folder_is_named_after_model_data_and_split_unless_told(models, data, tmp_path, monkeypatch):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "model").symlink_to(models("parallel"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "runs/first", "--data", str(data), "--limit", "2"]) == 0
    assert (tmp_path / "evaluation" / f"first-{data.name}-test" / "results.json").is_file()


def test_published_figures_are_a_row_of_the_table_beside_the_measured_ones():
    data = (torch.eye(4), torch.eye(4), torch.arange(4), torch.arange(4))
    values = retrieval_statistics(*data, resamples=5).values
    metrics = {f"{branch}_{name}": value for branch in ("parallel", "cascaded") for name, value in values.items()}
    published = published_results("parallel-large-flickr8k")["test"]
    measured = Results(
        metrics, chance=chance_recall(range(4), range(4)), published=published, retrieval_branch="parallel"
    )
    (table,) = result_tables(measured)
    rows = [(row.name, row.cells[0]) for row in table.rows]
    assert rows[:3] == [("parallel branch, speech to images", "100.0"), ("published", "39.1"), ("chance", "25.0")]
    assert [name for name, _ in rows].count("published") == 2  # both directions of the branch it was published for


def test_intervals_stand_in_brackets_behind_their_figures():
    rows = [
        ScoreRow("model", ["61.2", "2"], ["60.0 to 62.4", ""]),
        ScoreRow("chance", ["0.2", ""], is_baseline=True),
    ]
    lines = markdown_table(ScoreTable("Scores (percent)", ["R@1", "rank"], rows)).splitlines()
    assert lines[0] == "| | R@1 | rank |"
    assert lines[2:] == ["| model | 61.2 [60.0 to 62.4] | 2 |", "| *chance* | 0.2 |  |"]


def test_a_folder_that_is_not_there_is_no_repository_to_ask_the_hub_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for missing in ("nope", "quickstart/model", "runs/first", str(tmp_path / "gone")):
        with pytest.raises(OSError, match="There is no folder"):
            model_source(missing)
    assert model_source("ann/my-model") == "ann/my-model"
    with pytest.raises(ValueError, match="speechclip-plus quickstart"):
        model_source(None)


def test_a_run_and_a_quickstart_stand_for_the_model_in_them(models, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(models("hybrid_plus"))
    assert model_source(str(tmp_path / "run")) == str(tmp_path / "run" / "model")
