"""The model card says what was measured."""

import dataclasses
import io
import re
import shutil

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard, ModelCardData, metadata_eval_result
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from PIL import Image

from speechclip_plus.configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from speechclip_plus.configuration.presets import published_results
from speechclip_plus.configuration.publication import card_for_repository, is_generated
from speechclip_plus.hub_cards.cards import (
    ModelCardFacts,
    SplitSize,
    render_model_card,
    save_model_card,
)
from speechclip_plus.hub_cards.report import training_chart
from speechclip_plus.hub_cards.results import Results, eval_results, update_card

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
COLUMNS = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "median rank": "median_rank", "mean rank": "mean_rank"}


def make_results(branches=("parallel", "cascaded"), **given):
    """Numbers that are all different, so that none can stand in another's place."""
    metrics, chance, number = {}, {}, 0
    for direction in ("speech_to_image", "image_to_speech"):
        for name in COLUMNS.values():
            number += 1
            chance[f"{direction}_{name}"] = number + 50.27
            for place, branch in enumerate(branches):
                metrics[f"{branch}_{direction}_{name}"] = number + 0.26 + 20 * place
    metrics |= {
        "keyword_hit_rate@1": 61.37,
        "keyword_hit_rate_original@1": 64.52,
        "keywords_per_utterance": 7.8311,
        "distinct_keywords": 41,
        "utterances": 500,
        "images": 450,
    }
    intervals = {
        name: (value - 0.11, value + 0.13) for name, value in metrics.items() if "@" in name or "rank" in name
    }
    chance |= {"keyword_hit_rate@1": 1.19, "keyword_hit_rate_most_common@1": 33.44}
    values = {"dataset": "spoken_scenes", "split": "test", "how": "a test", "date": "2026-01-31"}
    return Results(metrics, intervals, chance, **{"retrieval_branch": "parallel", **values, **given})


@pytest.fixture(scope="module")
def facts():
    return ModelCardFacts(
        name="hybrid_plus-tiny-spoken_scenes",
        config=SpeechClipPlusConfig.from_preset("hybrid_plus-tiny"),
        parameters={"trained": 349_607, "frozen": 2_331_233},
        dataset="spoken_scenes",
        splits={"train": SplitSize(8000, 4000, 613, 7.583), "test": SplitSize(500, 450, None, 0.512)},
        languages=("en",),
        hyperparameters={"learning rate": "0.001"},
        steps=30,
        best_step=20,
        best_metric="mean_R@10",
        progress=[
            {"step": 10, "validation loss": 3.1234, "parallel R@10": 41.26},
            {"step": 20, "validation loss": 2.4567, "parallel R@10": 52.37},
            {"step": 30, "validation loss": 2.1111, "parallel R@10": 51.48},
        ],
        curves={
            "Loss": {"total": ([5, 10], [3.0, 2.0])},
            "Validation recall, %": {"parallel, R@10": ([10, 20], [41.26, 52.37])},
        },
        hardware="CPU: a processor, 2 threads",
        seconds=754.0,
        results=[make_results()],
        examples=[("a red | circle", [("red", 0.04, 0.61), ("ring", 0.61, 1.2)])],
        examples_split="test",
        limits="Not for real speech.",
        license="mit",
    )


def section(card, heading):
    return card.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def tables(text):
    """Each table as a list of rows of cells, the head first, without the rule."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in table.splitlines()] for table in found]
    return [[[cell.strip() for cell in row] for place, row in enumerate(table) if place != 1] for table in rows]


def numbers(text):
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def shown(value, digits):
    return pytest.approx(value, abs=0.5 * 10**-digits + 1e-9)


# ---- the card's numbers


def test_every_number_of_the_results_is_the_metric_of_its_row_and_column(facts):
    """Read back from the text alone; every cell of every table is accounted for."""
    results, checked = facts.results[0], 0
    retrieval, hits, usage = tables(section(render_model_card(facts), "Results"))
    prefix, direction = "", ""
    assert retrieval[0][1:] == list(COLUMNS)
    for name, *cells in retrieval[1:]:
        if name == "*chance*":
            for column, cell in zip(COLUMNS.values(), cells, strict=True):
                assert numbers(cell) == [shown(results.chance[f"{direction}_{column}"], 1)]
                checked += 1
            continue
        branch, _, way = name.partition(" branch, ")
        prefix, direction = branch, {"s": "speech_to_image", "i": "image_to_speech"}[way[0]]
        for column, cell in zip(COLUMNS.values(), cells, strict=True):
            metric = f"{prefix}_{direction}_{column}"
            low, high = results.intervals[metric]
            digits = 4 if column == "median_rank" else 1
            assert numbers(cell) == [shown(results.metrics[metric], digits), shown(low, digits), shown(high, digits)]
            checked += 3
    assert hits[0][1:] == ["measured", "chance"]
    for row, metric, chance in zip(
        hits[1:],
        ("keyword_hit_rate@1", None, "keyword_hit_rate_original@1"),
        ("keyword_hit_rate@1", "keyword_hit_rate_most_common@1", None),
        strict=True,
    ):
        expected = [] if metric is None else [results.metrics[metric], *results.intervals[metric]]
        assert numbers(row[1]) == [shown(value, 1) for value in expected]
        assert numbers(row[2]) == ([] if chance is None else [shown(results.chance[chance], 1)])
        checked += len(expected) + (chance is not None)
    assert [numbers(row[1]) for row in usage[1:]] == [[7.8], [41.0]]
    everything = sum(len(numbers(cell)) for table in (retrieval, hits, usage) for row in table[1:] for cell in row[1:])
    assert checked + 2 == everything == 4 * 5 * 3 + 4 * 5 + 8 + 2


def test_the_other_tables_hold_the_facts_and_nothing_else(facts):
    card = render_model_card(facts)
    (data,) = tables(section(card, "Data"))
    assert data[1:] == [["train", "8,000", "4,000", "613", "7.58"], ["test", "500", "450", "", "0.51"]]
    setting, progress = tables(section(card, "Training"))
    assert dict(setting[1:]) == {
        "trained parameters": "349,607",
        "frozen parameters": "2,331,233",
        "learning rate": "0.001",
        "hardware": "CPU: a processor, 2 threads",
        "time": "12.6 minutes",
    }
    plain = [[cell.strip("*") for cell in row] for row in progress[1:]]
    assert plain == [["10", "3.123", "41.3"], ["20", "2.457", "52.4"], ["30", "2.111", "51.5"]]
    (said,) = tables(section(card, "Keywords"))
    assert said[1] == ["a red \\| circle", "`red` 0.04–0.61, `ring` 0.61–1.20"]


def test_the_best_evaluation_is_in_bold_and_only_it(facts):
    _, progress = tables(section(render_model_card(facts), "Training"))
    bold = [all(cell.startswith("**") for cell in row) for row in progress[1:]]
    assert bold == [False, True, False]
    assert "in bold the best by mean_R@10. The weights here are those of step 30." in render_model_card(facts)


def test_of_many_evaluations_some_are_shown_with_the_best_and_the_last(facts):
    rows = [{"step": step, "validation loss": 1.0} for step in range(1, 101)]
    card = render_model_card(dataclasses.replace(facts, progress=rows, best_step=42))
    _, progress = tables(section(card, "Training"))
    steps = [int(row[0].strip("*")) for row in progress[1:]]
    assert len(steps) <= 21 and 42 in steps and steps[-1] == 100 and f"({len(steps)} of 100)" in card


def test_what_is_not_known_does_not_appear():
    config = SpeechClipPlusConfig.from_preset("parallel-base-flickr8k")
    card = render_model_card(ModelCardFacts(name="a", config=config))
    for word in ("## Results", "## Keywords", "## Data", "eyword", "minutes", "None", "training.png", "step "):
        assert word not in card, word
    assert ModelCard(card).data.eval_results is None


def test_what_others_reported_is_marked_and_kept_out_of_the_metadata(facts):
    published = published_results("parallel-large-flickr8k")["test"]
    results = make_results(("parallel",), published=published)
    card = render_model_card(dataclasses.replace(facts, results=[results]))
    rows = [row for row in tables(section(card, "Results"))[0] if row[0] == "*published*"]
    assert [row[1] for row in rows] == [
        f"{published[f'{way}_R@1']:.1f}" for way in ("speech_to_image", "image_to_speech")
    ]
    assert "figures that the authors reported (arXiv 2210.00705), not measured again" in card
    values = {entry.metric_value for entry in ModelCard(card).data.eval_results}
    assert published["speech_to_image_R@1"] not in values
    assert "authors reported" not in render_model_card(facts)


# ---- metadata


def test_the_metadata_pass_the_hub_librarys_own_checks(facts):
    card = ModelCard(render_model_card(facts))
    assert card.data.license == "mit" and card.data.pipeline_tag == "feature-extraction"
    assert card.data.library_name == "transformers" and card.data.language == ["en"]
    assert {"speechclip-plus", "visually-grounded-speech"} <= set(card.data.tags)
    assert card.data.base_model is None  # folders of this machine are no repositories
    values = card.data.to_dict()
    name, entries = model_index_to_eval_results(values["model-index"])
    assert name == facts.name and eval_results_to_model_index(name, entries) == values["model-index"]
    assert ModelCardData(**values).to_dict() == values
    entry = entries[0]
    again = metadata_eval_result(
        model_pretty_name=name,
        task_pretty_name=entry.task_name,
        task_id=entry.task_type,
        metrics_pretty_name=entry.metric_name,
        metrics_id=entry.metric_type,
        metrics_value=entry.metric_value,
        dataset_pretty_name=entry.dataset_name,
        dataset_id=entry.dataset_type,
        dataset_split=entry.dataset_split,
    )
    assert again["model-index"][0]["results"][0]["task"] == values["model-index"][0]["results"][0]["task"]


def test_the_metadata_hold_every_recall_and_its_interval(facts):
    entries = {entry.metric_name: entry for entry in ModelCard(render_model_card(facts)).data.eval_results}
    assert len(entries) == 13
    for branch in ("parallel", "cascaded"):
        for direction in ("speech_to_image", "image_to_speech"):
            for recall in ("R@1", "R@5", "R@10"):
                entry = entries[f"{branch} {direction.replace('_', ' ')} {recall}"]
                metric = f"{branch}_{direction}_{recall}"
                assert entry.metric_value == pytest.approx(facts.results[0].metrics[metric], abs=0.005)
                ends = facts.results[0].intervals[metric]
                assert entry.metric_args == {
                    "confidence": 0.95,
                    "interval": [pytest.approx(e, abs=0.005) for e in ends],
                }
    assert entries["keyword hit rate, k=1"].metric_value == 61.37


def test_published_backbones_and_a_data_set_of_the_hub_are_named_as_such():
    config = SpeechClipPlusConfig.from_preset("hybrid_plus-base-flickr8k")
    card = render_model_card(ModelCardFacts(name="a", config=config, dataset="me/pairs"))
    data = ModelCard(card).data.to_dict()
    assert data["base_model"] == ["facebook/hubert-base-ls960", "openai/clip-vit-base-patch32"]
    assert data["base_model_relation"] == "adapter" and data["datasets"] == ["me/pairs"]
    assert "Apache 2.0" in section(card, "Licence") and "huggingface.co/datasets/me/pairs" in section(card, "Licence")
    config.train_speech_encoder = True
    card = render_model_card(ModelCardFacts(name="a", config=config))
    assert ModelCard(card).data.base_model_relation == "finetune"


def test_a_part_of_a_split_is_no_result_of_the_split():
    assert eval_results(make_results(limit=3)) == []


def test_backbones_of_this_machine_keep_their_folders_to_themselves(facts, tmp_path):
    config = SpeechClipPlusConfig.from_preset("hybrid_plus-tiny")
    config.speech_backbone = {"repo_id": str(tmp_path), "revision": None}
    assert str(tmp_path) not in render_model_card(dataclasses.replace(facts, config=config))


# ---- results put into a card that is there


CARD = """---
# mine
tags: [a,   b]   # as I like it
model-index:
- name: my model
  results:
  - task: {type: speech-image-retrieval}
    dataset: {name: spoken_scenes, type: spoken_scenes, split: validation}
    metrics:
    - {type: retrieval_recall, value: 12.5, name: old}
# a remark
license: mit
---
# My model

Text of mine.

## Results

<!-- measured -->
Nothing yet.
<!-- /measured -->

My own words.

## Licence

MIT
"""


def test_results_go_in_and_leave_the_text_and_the_other_metadata_alone(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(CARD)
    update_card(file, make_results())
    once = file.read_text()
    update_card(file, make_results())
    assert file.read_text() == once  # and the same again changes nothing
    card, before = ModelCard(once), ModelCard(CARD)
    begin, stop = card.text.index("<!-- measured"), card.text.index("<!-- /measured -->")
    assert card.text[:begin] == before.text[: before.text.index("<!-- measured")]
    assert card.text[stop:] == before.text[before.text.index("<!-- /measured -->") :]
    data = card.data
    assert data.model_name == "my model" and data.license == "mit" and data.tags == ["a", "b"]
    splits = [entry.dataset_split for entry in data.eval_results]
    assert splits.count("validation") == 1 and splits.count("test") == 13


def test_newer_results_replace_those_of_the_same_data_and_no_others(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("# a model\n\nText.\n")
    update_card(file, make_results(split="validation"))
    update_card(file, make_results())
    newer = make_results()
    newer.metrics["parallel_speech_to_image_R@1"] = 77.77
    update_card(file, newer)
    text = file.read_text()
    assert text.count("### Test split") == text.count("### Validation split") == 1 and "77.8 [" in text
    values = [
        e.metric_value for e in ModelCard(text).data.eval_results if e.metric_name == "parallel speech to image R@1"
    ]
    assert values == [1.26, 77.77]


def test_a_part_of_a_split_and_options_have_sections_of_their_own(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("# a model\n")
    for given in ({}, {"limit": 3}, {"options": {"languages": "fr"}}, {"limit": 3}):
        update_card(file, make_results(**given))
    text = file.read_text()
    assert text.count("### Test split of spoken_scenes") == 3
    assert text.count("(first 3 utterances)\n") == 1 and text.count("(languages=fr)\n") == 1
    assert len(ModelCard(text).data.eval_results) == 2 * 13


def test_metadata_that_cannot_be_read_are_an_error_and_the_card_stays(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("---\nmodel-index:\n- results: [\n---\n# a\n")
    before = file.read_text()
    with pytest.raises(ValueError, match="README.md: the metadata .* cannot be read"):
        update_card(file, make_results())
    assert file.read_text() == before


def test_a_card_says_which_data_without_their_folder():
    assert Results(dataset="folder", data_dir="/home/me/huts").title == "test split of huts"
    assert Results(dataset="/home/me/huts").title == "test split of huts"
    assert Results(dataset="me/pairs").title == "test split of me/pairs"


# ---- the image, and the card in a folder


def test_the_picture_shows_a_panel_for_losses_and_one_for_recalls(facts, tmp_path):
    save_model_card(tmp_path, facts)
    image = Image.open(tmp_path / "training.png").convert("RGB")
    assert image.size == (2080, 600)
    assert "](training.png)" in (tmp_path / "README.md").read_text()
    left = np.asarray(image)[:, :1040].reshape(-1, 3)
    is_curve = (np.abs(left.astype(int) - (0x0B, 0x6E, 0x69)) < 24).all(1)
    assert is_curve.sum() > 500
    assert training_chart({"Loss": {"total": ([1], [float("nan")])}}) is None


def test_a_curve_is_drawn_where_its_values_are(facts):
    def top_of(values):
        image = training_chart({"Recall, %": {"a": ([0, 10], values)}})
        pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)[130:520]
        return np.nonzero((np.abs(pixels - (0x0B, 0x6E, 0x69)) < 24).all(2))[0].min()

    quarter, half, three = (top_of([value, value]) for value in (25.0, 50.0, 75.0))
    assert quarter > half > three and quarter - half == pytest.approx(half - three, abs=2)


def test_a_cards_code_loads_from_the_repository_that_it_is_pushed_to(facts):
    card = render_model_card(facts)
    named = card_for_repository(card, "me/mine")
    assert named.count('from_pretrained("me/mine",') == 2 and card_for_repository(named, "me/mine") == named
    assert named.replace("me/mine", facts.name) == card  # and nothing else changed
    assert card_for_repository("no title", "me/mine") == "no title"


def test_the_cards_code_runs(facts, tmp_path, monkeypatch, capsys, card_model):
    shutil.copytree(card_model, tmp_path / facts.name)
    save_model_card(tmp_path / facts.name, facts)
    soundfile.write(tmp_path / "query.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    for file in ("first.png", "second.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / file)
    card = (tmp_path / facts.name / "README.md").read_text()
    assert is_generated(card)
    monkeypatch.chdir(tmp_path)
    values = {}
    exec(re.search(r"```python\n(.*?)```", section(card, "Use"), re.DOTALL)[1], values)
    assert values["similarity"].shape == (1, 2) and capsys.readouterr().out.strip()


@pytest.fixture(scope="module")
def card_model(tmp_path_factory):
    from speechclip_plus import SpeechClipPlusModel, SpeechClipPlusProcessor
    from speechclip_plus.trainer.tiny_backbones import tiny_backbone

    folder = tmp_path_factory.mktemp("card") / "model"
    speech, clip = tiny_backbone("hubert"), tiny_backbone("clip")
    SpeechClipPlusModel.from_backbones(speech, clip, config="hybrid_plus-tiny").save_pretrained(
        folder, remote_code=True
    )
    SpeechClipPlusProcessor.from_backbones(speech, clip).save_pretrained(folder)
    return folder
