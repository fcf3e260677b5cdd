"""The model card says what was measured."""

import re

import pytest
from huggingface_hub import ModelCard

from speechclip_plus.configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from speechclip_plus.hub_cards.model_card import ModelCardFacts, render_model_card


def make_metrics(branches=("parallel", "cascaded")):
    """Numbers that are all different, so that none can stand in another's place."""
    metrics, number = {}, 0
    for branch in branches:
        for direction in ("speech_to_image", "image_to_speech"):
            for name in ("R@1", "R@5", "R@10", "median_rank"):
                number += 1
                metrics[f"{branch}_{direction}_{name}"] = number + 0.26 if name != "median_rank" else float(number)
    return {
        **metrics,
        "keyword_hit_rate@1": 61.37,
        "keyword_hit_rate_original@1": 64.52,
        "keywords_per_utterance": 7.83,
        "distinct_keywords": 41,
        "utterances": 500,
        "images": 450,
    }


@pytest.fixture(scope="module")
def facts():
    chance = {
        f"{direction}_{name}": value
        for direction in ("speech_to_image", "image_to_speech")
        for name, value in {"R@1": 0.21, "R@5": 1.04, "R@10": 2.08, "median_rank": 250.5}.items()
    }
    return ModelCardFacts(
        name="hybrid_plus-tiny-spoken_scenes",
        config=SpeechClipPlusConfig.from_preset("hybrid_plus-tiny"),
        metrics=make_metrics(),
        chance={**chance, "keyword_hit_rate@1": 1.19},
        counts={"train": 8000},
        training={"learning rate": 0.001},
        backbones={"Speech encoder": "a tiny HuBERT"},
        limits="Not for real speech.",
    )


def table_rows(card):
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][1:]


def test_every_cell_of_the_table_is_the_metric_of_its_row_and_column(facts):
    rows = table_rows(render_model_card(facts))
    assert len(rows) == 4 + 2
    for branch, direction, *cells in rows:
        source, prefix = (facts.chance, "") if branch == "guessing" else (facts.metrics, f"{branch}_")
        names = [f"{prefix}{direction.replace(' ', '_')}_{name}" for name in ("R@1", "R@5", "R@10", "median_rank")]
        assert [float(cell) for cell in cells] == pytest.approx([source[name] for name in names], abs=0.05)


def test_the_metadata_is_read_back_by_the_hub_library_with_every_result(facts):
    card = ModelCard(render_model_card(facts))
    assert card.data.license == "mit" and card.data.pipeline_tag == "feature-extraction"
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert len(results) == 13
    assert results["cascaded image to speech R@5"] == facts.metrics["cascaded_image_to_speech_R@5"]
    assert results["keyword hit rate, k=1"] == 61.37
    assert card.data.base_model is None  # folders of this machine are no repositories


def test_published_backbones_are_named_as_base_models(facts):
    config = SpeechClipPlusConfig.from_preset("hybrid_plus-base-flickr8k")
    card = ModelCard(render_model_card(ModelCardFacts(name="a", config=config, metrics=facts.metrics)))
    assert card.data.base_model == ["facebook/hubert-base-ls960", "openai/clip-vit-base-patch32"]


def test_the_sentence_about_keywords_has_both_conventions_and_chance(facts):
    sentence = next(line for line in render_model_card(facts).splitlines() if line.startswith("Keyword hit rate"))
    assert [float(number) for number in re.findall(r"\d+\.\d", sentence)] == [61.4, 64.5, 1.2, 7.8]
    assert "41 different subwords" in sentence


def test_a_model_without_keywords_has_a_card_without_them(facts):
    metrics = {name: value for name, value in make_metrics(("parallel",)).items() if "keyword" not in name}
    config = SpeechClipPlusConfig.from_preset("parallel-tiny")
    card = render_model_card(ModelCardFacts(name="a", config=config, metrics=metrics))
    assert "eyword" not in card
    assert [row[0] for row in table_rows(card)] == ["parallel", "parallel"]


def test_a_card_without_any_number_is_refused(facts):
    with pytest.raises(ValueError, match="no retrieval recall"):
        render_model_card(ModelCardFacts(name="a", config=facts.config, metrics={}))
