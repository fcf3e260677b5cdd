"""The configuration: presets, blocks, round trips, and errors that say what to change."""

import copy
import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, CLIPConfig, PreTrainedConfig, WavLMConfig

from speechclip_plus import SpeechClipPlusConfig, load_preset, preset_names
from speechclip_plus.configuration.presets import load_vocabulary

PUBLISHED = [name for name in preset_names() if not name.endswith("-tiny")]


def test_the_fifteen_published_configurations_and_a_tiny_one_of_each_variant_are_there():
    assert len(PUBLISHED) == 15
    variants = {"parallel", "cascaded", "cascaded_plus", "hybrid", "hybrid_plus"}
    assert {name.removesuffix("-tiny") for name in set(preset_names()) - set(PUBLISHED)} == variants
    assert {name.split("-")[0] for name in PUBLISHED} == variants


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_what_its_name_says_and_survives_saving(name, tmp_path):
    config = SpeechClipPlusConfig.from_preset(name)
    variant, size, *dataset = name.split("-")
    assert config.model_variant == variant
    if dataset:
        assert config.hidden_size == {"base": 768, "large": 1024}[size]
        assert load_preset(name)["dataset"] == dataset[0]
        if config.has_cascaded:
            assert len(config.keyword_config.vocabulary_ids) == {"flickr8k": 8112, "spokencoco": 19787}[dataset[0]]
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    assert len((tmp_path / "config.json").read_text().splitlines()) < 400  # a vocabulary stands on one line


def test_what_sets_single_published_models_apart_is_in_their_presets():
    odd = SpeechClipPlusConfig.from_preset("cascaded_plus-large-spokencoco")
    assert (odd.cif_config.conv_layers, odd.cif_config.conv_width) == (2, 5)
    mlp = SpeechClipPlusConfig.from_preset("hybrid-large-flickr8k")
    assert mlp.branch_config.parallel_projection_hidden_size == 1024
    fixed = SpeechClipPlusConfig.from_preset("hybrid-large-spokencoco")
    assert fixed.branch_config.layer_type == "transformer_encoder" and not fixed.loss_config.train_temperature
    weighted = SpeechClipPlusConfig.from_preset("hybrid_plus-large-flickr8k")
    assert (weighted.loss_config.cascaded_weight, weighted.loss_config.parallel_weight) == (1.5, 0.5)
    assert weighted.retrieval_branch == "cascaded"


def test_vocabularies_begin_with_padding_and_hold_start_and_end_in_the_published_order():
    assert load_vocabulary("flickr8k")[:4] == [0, 320, 49406, 49407]
    assert load_vocabulary("spokencoco")[:4] == [0, 320, 49406, 49407]


def test_tiny_presets_fit_the_tiny_backbones():
    from speechclip_plus.trainer.tiny_backbones import tiny_backbone

    preset = load_preset("hybrid_plus-tiny")["config"]
    shipped = AutoConfig.from_pretrained(tiny_backbone("hubert")).to_dict()
    for key, value in preset["speech_config"].items():
        assert (list(shipped[key]) if isinstance(value, list) else shipped[key]) == value, key
    clip = AutoConfig.from_pretrained(tiny_backbone("clip")).to_dict()
    for tower in ("text_config", "vision_config"):
        for key, value in preset["clip_config"][tower].items():
            assert clip[tower][key] == value, key


def test_a_presets_block_can_be_changed_in_part():
    config = SpeechClipPlusConfig.from_preset("hybrid_plus-tiny", cif_config={"threshold": 0.9})
    assert config.cif_config.threshold == 0.9
    assert (
        config.cif_config.scale_until_step
        == load_preset("hybrid_plus-tiny")["config"]["cif_config"]["scale_until_step"]
    )


def test_the_speech_encoder_can_be_any_of_the_three_kinds():
    config = SpeechClipPlusConfig(speech_config=WavLMConfig(layerdrop=0.1), clip_config=CLIPConfig())
    assert config.speech_config.layerdrop == 0.0
    assert SpeechClipPlusConfig(**config.to_dict()).speech_config.model_type == "wavlm"


def test_the_preset_and_the_width_of_the_joint_space_are_recorded(tmp_path):
    config = SpeechClipPlusConfig.from_preset("hybrid_plus-tiny", loss_config={"temperature": 0.1})
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).preset == "hybrid_plus-tiny"
    assert config.projection_dim == config.clip_config.projection_dim == 128
    assert SpeechClipPlusConfig().preset is None


def test_blocks_are_configurations_that_a_dictionary_without_their_type_also_makes():
    config = SpeechClipPlusConfig.from_preset("hybrid_plus-tiny")
    blocks = ("branch_config", "cif_config", "keyword_config", "loss_config")
    assert {*blocks, "speech_config", "clip_config"} == set(SpeechClipPlusConfig.sub_configs)
    assert all(isinstance(getattr(config, name), PreTrainedConfig) for name in blocks)
    values = config.to_diff_dict()
    for name in blocks:
        values[name] = {key: value for key, value in values[name].items() if key != "model_type"}
    assert SpeechClipPlusConfig(**values).to_diff_dict() == config.to_diff_dict()


def test_copies_are_equal_and_independent():
    config = SpeechClipPlusConfig.from_preset("hybrid_plus-tiny")
    other = copy.deepcopy(config)
    assert other == config
    other.cif_config.threshold = 2.0
    assert other != config


def test_showing_a_configuration_shortens_its_vocabulary():
    assert "8112 ids]" in repr(SpeechClipPlusConfig.from_preset("cascaded-base-flickr8k"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_variant": "serial"}, "Unknown model_variant 'serial'; choose one of parallel, cascaded"),
        ({"model_variant": "parallel", "cif_config": {}}, "has no CIF.*choose cascaded_plus or hybrid_plus"),
        ({"model_variant": "parallel", "keyword_config": {}}, "has no keywords"),
        ({"branch_config": {"num_attention_heads": 7}}, r"\(7\) does not divide.*\(768\)"),
        ({"branch_config": {"layer_type": "lstm"}}, "layer_type.*'attention_and_norm', 'transformer_encoder'"),
        ({"branch_config": {"dropout": 1.0}}, "dropout.*smaller than 1, got 1.0"),
        ({"cif_config": {"threshold": 0}}, "threshold.*greater than 0, got 0"),
        ({"cif_config": {"conv_width": 4}}, "must be odd"),
        ({"cif_config": {"tail_threshold": 1.5}}, "no remainder could ever reach it"),
        ({"cif_config": {"treshold": 1}}, "does not know 'treshold'; it has.*threshold"),
        ({"model_variant": "hybrid", "keyword_config": {"num_keywords": 76}}, "between 1 and 75"),
        ({"keyword_config": {"num_keywords": 8}}, "CIF decides how many"),
        ({"keyword_config": {"vocabulary_ids": [1, 1]}}, "repeated ids"),
        ({"keyword_config": {"vocabulary_ids": [5, 50_000]}}, "the id 50000, outside CLIP's 49408"),
        ({"keyword_config": {"vocabulary_ids": [0]}}, "no token that may become a keyword"),
        ({"keyword_config": {"temperature": 0}}, "temperature.*greater than 0"),
        ({"loss_config": {"cascaded_weight": -1}}, "cascaded_weight.*greater or equal to 0"),
        ({"model_variant": "cascaded", "retrieval_branch": "parallel"}, "has only: cascaded"),
        ({"padding": "none"}, "padding.*'invariant', 'original'"),
        ({"format_version": 99}, "saved by a newer version. Upgrade"),
        ({"variant": "hybrid"}, "did you mean 'model_variant'"),
        ({"backbones_saved": False}, "speech_backbone must say where"),
        ({"speech_backbone": {"name": "hubert"}}, "repo_id"),
        ({"clip_config": {"text_config": {"vocab_size": 99}}}, "bos_token_id is 49406, outside its vocabulary of 99"),
    ],
)  # fmt: skip
def test_an_impossible_configuration_says_what_to_change(changes, message):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=rf"(?s){message}"):
        SpeechClipPlusConfig(**changes)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="Near to it: hybrid_plus-large-flickr8k"):
        SpeechClipPlusConfig.from_preset("hybridplus-large-flickr8k")


def test_a_saved_configuration_of_a_newer_version_is_refused(tmp_path):
    SpeechClipPlusConfig.from_preset("parallel-tiny").save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "format_version": 2}))
    with pytest.raises(ValueError, match="newer version"):
        AutoConfig.from_pretrained(tmp_path)
