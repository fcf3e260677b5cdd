"""What users rely on in the model: freezing, batch independence, saving and loading, keywords, errors."""

import copy
import json
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel, HubertConfig, HubertModel

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel
from speechclip_plus.modeling_speechclip_plus import modeling_speechclip_plus as modeling
from speechclip_plus.modeling_speechclip_plus.branches import BranchEncoder

VARIANTS = ["parallel", "cascaded", "cascaded_plus", "hybrid", "hybrid_plus"]
SPEECH = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CLIP = {
    "projection_dim": 20,
    "text_config": {
        "vocab_size": 60,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": 58,
        "eos_token_id": 59,
        "pad_token_id": 59,
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    },
}


def make_config(variant="hybrid_plus", speech=None, **kwargs) -> SpeechClipPlusConfig:
    kwargs.setdefault("branch_config", {"num_attention_heads": 2, "intermediate_size": 32})
    speech = {"model_type": "hubert", **SPEECH, **(speech or {})}
    return SpeechClipPlusConfig(model_variant=variant, speech_config=speech, clip_config=CLIP, **kwargs)


def make_model(variant="hybrid_plus", **kwargs) -> SpeechClipPlusModel:
    torch.manual_seed(0)
    return SpeechClipPlusModel(make_config(variant, **kwargs)).eval()


def make_inputs(lengths=(8000, 5000, 6400), seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    waveforms = torch.randn(len(lengths), max(lengths), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_values": waveforms * mask, "attention_mask": mask.long()}


def make_pairs() -> dict[str, torch.Tensor]:
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {**make_inputs(), "pixel_values": pixels, "image_ids": torch.tensor([1, 2, 1])}


# Embeddings


@pytest.mark.parametrize("variant", VARIANTS)
def test_speech_images_and_texts_embed_into_one_space_at_unit_length(variant):
    model = make_model(variant)
    speech = model.get_audio_features(**make_inputs()).pooler_output
    images = model.get_image_features(torch.randn(2, 3, 16, 16)).pooler_output
    texts = model.get_text_features(torch.tensor([[58, 4, 5, 59], [58, 7, 59, 59]])).pooler_output
    for embeds, count in ((speech, 3), (images, 2), (texts, 2)):
        assert embeds.shape == (count, 20)
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(count))


def test_a_hybrid_lets_the_caller_choose_the_branch():
    model, inputs = make_model("hybrid_plus"), make_inputs()
    output = model(**inputs)
    torch.testing.assert_close(
        model.get_audio_features(**inputs, branch="cascaded").pooler_output, output.cascaded_embeds
    )
    torch.testing.assert_close(model.get_audio_features(**inputs).pooler_output, output.parallel_embeds)
    with pytest.raises(ValueError, match="has no 'cascaded' branch"):
        make_model("parallel").get_audio_features(**inputs, branch="cascaded")


def test_texts_of_a_published_clip_configuration_end_at_the_right_subword():
    # openai/clip-vit-base-patch32 carries bos 0 and eos 2; start and end are the table's last two rows.
    text = {**CLIP["text_config"], "bos_token_id": 0, "eos_token_id": 2}
    config = SpeechClipPlusConfig(
        model_variant="cascaded",
        speech_config={"model_type": "hubert", **SPEECH},
        clip_config={**CLIP, "text_config": text},
        branch_config={"num_attention_heads": 2},
    )
    assert (config.start_token_id, config.end_token_id) == (58, 59)
    assert config.excluded_token_ids == {0, 58, 59}


@pytest.mark.parametrize("variant", VARIANTS)
def test_kept_hidden_states_stand_for_the_waveforms_they_came_from(variant):
    model, inputs = make_model(variant), make_inputs()
    states, lengths = model.encode_speech_frames(**inputs)
    assert states.shape[:2] == (3, 3)
    torch.testing.assert_close(
        model(speech_hidden_states=states, frame_lengths=lengths).speech_embeds, model(**inputs).speech_embeds
    )


ENCODERS = {
    "hubert, group norm": {"model_type": "hubert"},
    "hubert, layer norm": {"model_type": "hubert", **LAYER_NORM},
    "wav2vec2, group norm": {"model_type": "wav2vec2"},
    "wavlm, group norm": {"model_type": "wavlm"},
    "wavlm, layer norm": {"model_type": "wavlm", **LAYER_NORM},
}


@pytest.mark.parametrize("speech", ENCODERS.values(), ids=ENCODERS.keys())
def test_an_utterance_embeds_the_same_alone_and_beside_a_longer_one(speech):
    model = make_model("hybrid_plus", speech=speech)
    long, short = torch.randn(1, 16_000), torch.randn(1, 4_321)
    batch = torch.cat([long, torch.nn.functional.pad(short, (0, 16_000 - 4_321))])
    mask = (torch.arange(16_000) < torch.tensor([[16_000], [4_321]])).long()
    with torch.no_grad():
        together, alone = model(batch, mask), model(short)
    assert together.keyword_lengths[1] == alone.keyword_lengths[0]
    torch.testing.assert_close(together.parallel_embeds[1:], alone.parallel_embeds, atol=2e-5, rtol=0)
    torch.testing.assert_close(together.cascaded_embeds[1:], alone.cascaded_embeds, atol=2e-5, rtol=0)


def test_training_statistics_do_not_depend_on_padding_either():
    model = make_model("hybrid_plus", cif_config={"dropout": 0.0}).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.branch.layers[0].attention.dropout = 0.0
    inputs = make_inputs()
    more = {name: torch.nn.functional.pad(value, (0, 4000)) for name, value in inputs.items()}
    torch.testing.assert_close(model(**inputs).cascaded_embeds, model(**more).cascaded_embeds, atol=1e-5, rtol=0)


# Training


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_branch_is_trained_and_all_of_it(variant):
    model = make_model(variant, cif_config={"dropout": 0.0} if variant.endswith("plus") else None).train()
    model(**make_pairs(), return_loss=True).loss.backward()
    for name, parameter in model.named_parameters():
        backbone = name.startswith(("speech_encoder.", "clip."))
        assert (parameter.grad is None) == backbone, name


def test_frozen_backbones_stay_in_evaluation_mode():
    model = make_model().train()
    assert model.branch.training
    assert not any(module.training for module in [*model.speech_encoder.modules(), *model.clip.modules()])


def test_the_originals_dropout_in_the_frozen_encoder_can_be_switched_on():
    model = make_model(speech_encoder_dropout=True).train()
    inputs = make_inputs()
    first, second = (model.encode_speech_frames(**inputs)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert not model.speech_encoder.training  # no time masking
    model.eval()
    torch.testing.assert_close(*(model.encode_speech_frames(**inputs)[0] for _ in range(2)))


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("load", [SpeechClipPlusModel.from_pretrained, AutoModel.from_pretrained])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train_clip", [False, True])
def test_a_loaded_model_trains_what_its_configuration_says(load, dtype, train_clip, tmp_path):
    model = make_model(train_clip=train_clip)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=dtype)
    assert trained_names(loaded) == trained_names(copy.deepcopy(loaded)) == trained_names(model)
    loaded.set_trainable(speech_encoder=True)
    loaded.set_trainable(speech_encoder=False)
    assert trained_names(loaded.to(torch.float16)) == trained_names(model)


@pytest.mark.parametrize("part", ["speech_encoder.encoder.layers.1", "clip.vision_model.encoder.layers.0"])
def test_a_part_of_a_frozen_backbone_trains_when_it_requires_gradients(part, tmp_path):
    backbone = {"repo_id": "someone/backbone", "revision": None}
    model = make_model(speech_backbone=backbone, clip_backbone=backbone)
    layer = model.get_submodule(part).requires_grad_(True)
    model.train()
    model(**make_pairs(), return_loss=True).loss.backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    with pytest.raises(ValueError, match="was trained, so it must be saved"):
        model.save_pretrained(tmp_path, save_backbones=False)


LORA_TARGETS = {
    "speech encoder": r"speech_encoder\.encoder\.layers\.\d+\.attention\.(q|v)_proj",
    "image encoder": r"clip\.vision_model\..*\.(q|v)_proj",
    "text encoder": r"clip\.text_model\..*\.(q|v)_proj",
    "branch": r"branch\.layers\.\d+\.attention\.(q|v)_proj",
}


@pytest.mark.parametrize("targets", LORA_TARGETS.values(), ids=LORA_TARGETS.keys())
def test_adapters_of_peft_train_and_the_weights_below_them_stay(targets):
    model = make_model()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    adapted.train()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # one matrix of each pair starts at zero, and lets no gradient into the other
        optimizer.zero_grad()
        adapted(**make_pairs(), return_loss=True).loss.backward()
        assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
        optimizer.step()
    for name, value in adapted.state_dict().items():
        statistics = "running_" in name or "num_batches" in name  # of the keywords' batch norm, which no adapter holds
        assert statistics or torch.equal(value, before[name]) != ("lora_" in name), name


def test_frozen_encoders_keep_no_graph():
    output = make_model().train()(**make_pairs(), output_hidden_states=True)
    assert not output.hidden_states[-1].requires_grad
    assert not output.image_embeds.requires_grad


@pytest.mark.parametrize("checkpointing", [False, True])
def test_unfrozen_backbones_are_trained(checkpointing):
    model = make_model(train_clip=True)
    model.set_trainable(speech_encoder=True)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    model(**make_pairs(), return_loss=True).loss.backward()
    unused = {"clip.logit_scale", "speech_encoder.masked_spec_embed"}
    # The last layer's norm of a base encoder is inside its layers; CLIP's text tower learns through the keywords.
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without <= unused
    assert model.config.train_speech_encoder and model.config.train_clip


def test_gradient_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        model = make_model(train_speech_encoder=True, cif_config={"dropout": 0.0}).train()
        for module in model.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.speech_encoder.config.apply_spec_augment = False
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**make_pairs(), return_loss=True).loss.backward()
        grads.append(model.speech_encoder.encoder.layers[0].attention.q_proj.weight.grad)
    torch.testing.assert_close(*grads)


def test_the_keyword_count_follows_the_target_only_before_the_configured_step():
    model = make_model("cascaded_plus", cif_config={"scale_until_step": 10, "frames_per_keyword": 4}).train()
    before, after = (model(**make_pairs(), return_loss=True, global_step=step) for step in (9, 10))
    assert before.keyword_lengths.tolist() == before.target_lengths.tolist()
    assert after.keyword_lengths.tolist() != after.target_lengths.tolist()


def test_a_new_model_fires_about_as_often_as_wanted():
    model = make_model("cascaded_plus").train()
    output = model(**{name: torch.cat([value] * 4) for name, value in make_pairs().items()}, return_loss=True)
    assert 0.5 < (output.alpha_sums / output.frame_lengths * 20).mean() < 2


def test_a_caption_target_takes_the_lengths_that_are_given():
    model = make_model("cascaded_plus", cif_config={"target_length": "caption"}).train()
    output = model(**make_pairs(), return_loss=True, target_lengths=torch.tensor([3, 1, 2]))
    assert output.keyword_lengths.tolist() == [3, 1, 2]
    with pytest.raises(ValueError, match="give target_lengths"):
        model(**make_pairs(), return_loss=True)


def test_utterances_of_one_image_are_no_negatives_of_each_other():
    model = make_model("parallel")
    pairs = make_pairs()
    pairs["pixel_values"][2] = pairs["pixel_values"][0]
    output = model(**pairs, return_loss=True)
    logits = output.parallel_logits
    kept = logits.masked_fill(torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0]]).bool(), -torch.inf)
    expected = -(kept.diag() - kept.logsumexp(1) + kept.diag() - kept.logsumexp(0)).mean() / 2
    torch.testing.assert_close(output.loss, expected)


def test_a_batch_of_one_trains_where_torchs_batch_norm_refuses():
    model = make_model("cascaded").train()
    pairs = {name: value[:1] for name, value in make_pairs().items()}
    assert model(**pairs, return_loss=True).loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_statistics_and_temperature_in_float32(dtype, tmp_path):
    make_model().save_pretrained(tmp_path)
    model = SpeechClipPlusModel.from_pretrained(tmp_path, dtype=dtype)
    assert model.dtype == dtype
    assert model.keyword_norm.running_var.dtype == model.logit_scale.dtype == torch.float32
    output = model(**make_pairs(), return_loss=True)
    assert output.speech_embeds.dtype == dtype
    assert output.alphas.dtype == output.loss.dtype == torch.float32
    assert output.loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_configuration_of_a_model_in_half_precision_builds_one_in_float32(dtype, tmp_path):
    make_model().save_pretrained(tmp_path / "float32")
    SpeechClipPlusModel.from_pretrained(tmp_path / "float32", dtype=dtype).save_pretrained(tmp_path / "half")
    for config in (SpeechClipPlusConfig.from_pretrained(tmp_path / "half"), make_config(dtype=dtype)):
        config.clip_config.dtype = config.speech_config.dtype = dtype
        model = SpeechClipPlusModel(config).eval()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model(**make_pairs(), return_loss=True).loss.isfinite()
    half = AutoModel.from_config(make_config(dtype=dtype)).eval()
    assert half.dtype == half.clip.dtype == dtype and half.keyword_norm.running_var.dtype == torch.float32
    assert half(**make_pairs(), return_loss=True).loss.isfinite()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_scale_of_similarities_is_at_most_100(variant):
    model = make_model(variant).train()
    model.logit_scale.data.fill_(200.0)
    output = model(**make_pairs(), return_loss=True)
    output.loss.backward()
    assert output.loss.isfinite() and model.similarity_scale.item() == pytest.approx(100)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.logit_scale.grad  # it can come back


def test_autocast_gives_a_finite_loss_with_float32_parts():
    model = make_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**make_pairs(), return_loss=True)
    output.loss.backward()
    assert output.loss.dtype == output.alphas.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# Outputs


def test_hidden_states_and_attentions_are_returned_on_request():
    model = make_model("hybrid")
    model.set_attn_implementation("eager")
    output = model(**make_inputs(), output_hidden_states=True, output_attentions=True)
    frames = output.hidden_states[0].shape[1]
    assert len(output.hidden_states) == 3
    assert [attention.shape for attention in output.attentions] == [(3, 2, frames, frames)] * 2
    assert output.branch_attentions[0].shape == (3, 2, 9 + frames, 9 + frames)


def test_attentions_under_sdpa_are_left_out_with_a_warning_that_says_how_to_get_them(monkeypatch):
    said = []
    monkeypatch.setattr(modeling.logger, "warning_once", said.append)
    assert make_model()(**make_inputs(), output_attentions=True).attentions is None
    assert "set_attn_implementation('eager')" in said[0]


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_other_attention_agrees_with_sdpa(implementation, caplog):
    model = make_model()
    with torch.no_grad():
        sdpa = model(**make_pairs())
        model.set_attn_implementation(implementation)
        other = model(**make_pairs())
    assert "undefined behavior" not in caplog.text
    for name in ("parallel_embeds", "cascaded_embeds", "image_embeds"):
        torch.testing.assert_close(other[name], sdpa[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer_type", ["attention_and_norm", "transformer_encoder"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cls_outputs_are_the_same_whether_frame_outputs_are_computed_or_not(layer_type, attention):
    config = SpeechClipPlusConfig.from_preset(
        "hybrid-tiny", branch_config={"layer_type": layer_type, "num_layers": 2, "intermediate_size": 64}
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    branch = BranchEncoder(config)
    frames, mask = torch.randn(2, 7, config.hidden_size), torch.arange(7) < torch.tensor([[7], [4]])
    outputs = {}
    for frame_outputs in (True, False):
        branch.zero_grad()
        cls, others, _ = branch(frames, mask, frame_outputs=frame_outputs)
        assert others.shape[1] == (7 if frame_outputs else 0)
        cls.square().sum().backward()
        outputs[frame_outputs] = [cls, *(parameter.grad.clone() for parameter in branch.parameters())]
    for whole, part in zip(outputs[True], outputs[False], strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)


def test_a_tuple_holds_what_the_output_holds():
    model, inputs = make_model("parallel"), make_inputs()
    torch.testing.assert_close(model(**inputs, return_dict=False)[0], model(**inputs).speech_embeds)


# Keywords


class Letters:
    """Decodes subword 7 as "w7"."""

    def decode(self, ids):
        return " ".join(f"w{i}" for i in ids) + " "


def test_keywords_come_with_text_similarity_neighbours_and_times():
    model = make_model("hybrid_plus", keyword_config={"vocabulary_ids": [0, 58, 59, 7, 9, 30, 31]})
    inputs = make_inputs()
    rows = model.extract_keywords(**inputs, tokenizer=Letters(), top_k=3)
    output = model(**inputs)
    durations = inputs["attention_mask"].sum(1) / 16_000
    assert [len(row) for row in rows] == output.keyword_lengths.tolist()
    for row, duration in zip(rows, durations.tolist(), strict=True):
        for keyword in row:
            assert keyword.id in {7, 9, 30, 31}
            assert keyword.text == f"w{keyword.id}"
            assert keyword.neighbours[0].id == keyword.id
            assert len(keyword.neighbours) == 3
            similarities = [neighbour.similarity for neighbour in keyword.neighbours]
            assert similarities == sorted(similarities, reverse=True)
        ends = [keyword.end for keyword in row]
        assert [keyword.start for keyword in row] == [0.0, *ends[:-1]]
        assert ends == sorted(ends) and ends[-1] <= duration


def test_keywords_are_those_of_evaluation_mode_while_the_model_stays_in_training_mode():
    model, modes = make_model(), []
    expected = model.extract_keywords(**make_inputs())
    model.train()
    model.layer_sum.register_forward_hook(lambda *_: modes.append((model.training, model.branch.training)))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert model.extract_keywords(**make_inputs()) == expected
    assert modes == [(True, True)] and not model.clip.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_fixed_number_of_keywords_has_no_times():
    rows = make_model("cascaded", keyword_config={"num_keywords": 4}).extract_keywords(**make_inputs())
    assert [len(row) for row in rows] == [4, 4, 4]
    assert rows[0][0].text is None and rows[0][0].start is None


def test_start_end_and_padding_are_never_keywords():
    model = make_model("cascaded")
    # A vocabulary in which they would be nearest to everything.
    with torch.no_grad():
        model.keyword_norm.weight.zero_()
        model.keyword_norm.bias.copy_(model.get_input_embeddings().weight[58].repeat_interleave(8))
    assert not {0, 58, 59} & set(model(**make_inputs()).keyword_ids.flatten().tolist())


def test_the_keyword_norm_starts_where_the_vocabularys_embeddings_lie():
    model = make_model("cascaded_plus", keyword_config={"vocabulary_ids": [3, 4, 5, 6]})
    table = model.get_input_embeddings().weight[3:7]
    torch.testing.assert_close(model.keyword_norm.bias.detach(), table.mean(0).detach())
    torch.testing.assert_close(model.keyword_norm.weight.detach(), table.std(0).detach())


# Saving and loading


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_loads_through_auto_classes_and_computes_the_same(variant, tmp_path):
    model = make_model(variant, keyword_config=None if variant == "parallel" else {"vocabulary_ids": [2, 3, 5, 8]})
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, SpeechClipPlusModel)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SpeechClipPlusConfig)
    files = {path.name for path in tmp_path.iterdir()}
    for_sentence_transformers = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
    assert files == {"README.md", "config.json", "model.safetensors", *for_sentence_transformers}
    torch.testing.assert_close(loaded(**make_inputs()).speech_embeds, model(**make_inputs()).speech_embeds)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(1)
    HubertModel(HubertConfig(**SPEECH)).save_pretrained(folder / "speech")
    clip = CLIPModel(CLIPConfig(**CLIP))
    torch.nn.init.normal_(clip.text_model.embeddings.token_embedding.weight, mean=0.7, std=2.0)
    clip.save_pretrained(folder / "clip")
    return str(folder / "speech"), str(folder / "clip")


def from_backbones(backbones, variant="hybrid_plus"):
    return SpeechClipPlusModel.from_backbones(*backbones, config=make_config(variant))


def test_backbones_are_joined_with_their_weights_and_statistics(backbones):
    model = from_backbones(backbones)
    clip = CLIPModel.from_pretrained(backbones[1])
    table = clip.text_model.embeddings.token_embedding.weight
    torch.testing.assert_close(model.get_input_embeddings().weight, table)
    torch.testing.assert_close(model.keyword_norm.bias, table.mean(0))
    pixels = torch.randn(1, 3, 16, 16)
    features = clip.get_image_features(pixels).pooler_output
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, features / features.norm())
    speech = HubertModel.from_pretrained(backbones[0]).eval()
    waveform = torch.randn(1, 5000)
    torch.testing.assert_close(
        model.encode_speech_frames(waveform)[0][:, -1], speech(waveform).last_hidden_state, atol=1e-5, rtol=0
    )


def test_the_trained_part_alone_is_small_and_loads_with_its_backbones(backbones, tmp_path):
    model = from_backbones(backbones)
    torch.nn.init.normal_(model.branch.cls_tokens)
    model.save_pretrained(tmp_path / "part", save_backbones=False)
    model.save_pretrained(tmp_path / "whole")
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("part", "whole")}
    assert sizes["part"] < sizes["whole"] / 2
    saved = json.loads((tmp_path / "part" / "config.json").read_text())
    assert saved["speech_backbone"]["repo_id"] == backbones[0]
    loaded = SpeechClipPlusModel.from_pretrained(tmp_path / "part")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, msg=name)
    loaded.save_pretrained(tmp_path / "again")  # whole by default
    assert (tmp_path / "again" / "model.safetensors").stat().st_size == sizes["whole"]


def test_the_commit_of_a_backbones_repository_is_recorded_and_restored(backbones, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commits = {"speech": "a" * 40, "clip": "b" * 40}
    for (name, commit), source in zip(commits.items(), backbones, strict=True):  # as the Hub's cache lays it out
        repository = tmp_path / "cache" / f"models--maker--{name}"
        shutil.copytree(source, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    model = SpeechClipPlusModel.from_backbones(
        "maker/speech", "maker/clip", config=make_config(), cache_dir=tmp_path / "cache"
    )
    assert model.config.speech_backbone == {"repo_id": "maker/speech", "revision": commits["speech"]}
    assert model.config.clip_backbone == {"repo_id": "maker/clip", "revision": commits["clip"]}
    (tmp_path / "cache" / "models--maker--clip" / "refs" / "main").write_text("c" * 40)  # the branch moved on
    model.save_pretrained(tmp_path / "part", save_backbones=False)
    loaded = SpeechClipPlusModel.from_pretrained(tmp_path / "part", cache_dir=tmp_path / "cache")
    torch.testing.assert_close(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_missing_backbone_is_an_error_and_never_a_random_tower(backbones, tmp_path):
    model = from_backbones(backbones)
    model.config.clip_backbone = {"repo_id": str(tmp_path / "gone"), "revision": None}
    model.save_pretrained(tmp_path / "part", save_backbones=False)
    with pytest.raises(OSError, match="needs the backbone .*gone"):
        SpeechClipPlusModel.from_pretrained(tmp_path / "part")


def test_trained_backbones_cannot_be_left_out(backbones, tmp_path):
    model = from_backbones(backbones)
    model.set_trainable(clip=True)
    with pytest.raises(ValueError, match="clip was trained"):
        model.save_pretrained(tmp_path / "part", save_backbones=False)
    assert not (tmp_path / "part").exists()


def test_unknown_origins_cannot_be_left_out(tmp_path):
    with pytest.raises(ValueError, match="not known where the speech_encoder came from"):
        make_model().save_pretrained(tmp_path / "part", save_backbones=False)


def test_a_backbone_of_another_kind_is_refused(backbones):
    with pytest.raises(ValueError, match="is a 'clip' model; it must be one of hubert"):
        SpeechClipPlusModel.from_backbones(backbones[1], backbones[1], config=make_config())


def test_a_truncated_weights_file_is_an_error(tmp_path):
    make_model("parallel").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(Exception, match="(?i)incomplete|safetensor|size|header"):
        SpeechClipPlusModel.from_pretrained(tmp_path)


def test_a_folder_that_is_no_model_is_an_error(tmp_path):
    with pytest.raises(OSError, match="no file named model.safetensors"):
        SpeechClipPlusModel.from_pretrained(tmp_path)


# Bad input


def test_a_speech_encoder_without_an_adapter_is_refused():
    config = SpeechClipPlusConfig(speech_config={"model_type": "bert"})
    with pytest.raises(ValueError, match="'bert'; the speech encoder must be one of hubert, wavlm"):
        SpeechClipPlusModel(config)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "either input_values or speech_hidden_states"),
        ({"input_values": torch.randn(8000)}, r"shape \(B, S\)"),
        ({"input_values": torch.randn(1, 1, 8000)}, r"shape \(B, S\)"),
        ({"input_values": torch.zeros(1, 8000, dtype=torch.int16)}, "floating-point"),
        ({"input_values": torch.randn(0, 8000)}, "the batch is empty"),
        ({"input_values": torch.randn(1, 300)}, "at least 400"),
        ({"input_values": torch.randn(1, 8000), "attention_mask": torch.ones(1, 7000)}, "shape of input_values"),
        ({"input_values": torch.randn(2, 900), "attention_mask": torch.arange(900).lt(torch.tensor([[900], [9]]))},
         r"rows \[1\]"),
        ({"speech_hidden_states": torch.randn(1, 4, 9, 24)}, r"\(B, 3, T, 24\)"),
        ({"speech_hidden_states": torch.randn(1, 3, 9, 24)}, "need frame_lengths"),
        ({**make_inputs(), "return_loss": True}, "needs images"),
        ({**make_pairs(), "pixel_values": torch.randn(2, 3, 16, 16), "return_loss": True}, "3 utterances and 2 im"),
        ({**make_pairs(), "image_ids": torch.tensor([1, 2])}, "one image for each of the 3 utterances"),
        ({**make_pairs(), "image_embeds": torch.randn(3, 20)}, "not both"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_clear_error(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**inputs)


def test_a_list_instead_of_a_tensor_points_to_the_processor():
    with pytest.raises(TypeError, match="SpeechClipPlusProcessor"):
        make_model()(input_values=[0.0] * 8000)


def test_a_misspelt_argument_is_an_error():
    with pytest.raises(TypeError, match="'pixel_value'"):
        make_model()(**make_inputs(), pixel_value=torch.randn(3, 3, 16, 16))


def test_a_backbone_that_is_no_repository_or_folder_is_named():
    with pytest.raises(TypeError, match="repository or folder, not as a HubertModel"):
        SpeechClipPlusModel.from_backbones(HubertModel(HubertConfig(**SPEECH)), "some/clip")


# Other ways of moving a model


def test_a_model_on_the_meta_device_becomes_whole_by_to_empty_and_its_weights():
    model = make_model()
    with torch.device("meta"):
        empty = SpeechClipPlusModel(model.config).eval()
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert empty.extract_keywords(**make_inputs()) == model.extract_keywords(**make_inputs())


@pytest.mark.parametrize("vocabulary_ids", [None, [2, 3, 5, 8]])
def test_a_model_offloaded_to_disk_computes_the_same(vocabulary_ids, tmp_path):
    model = make_model(keyword_config={"vocabulary_ids": vocabulary_ids})
    model.save_pretrained(tmp_path)
    offloaded = SpeechClipPlusModel.from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": "60KB"}, offload_folder=tmp_path / "offload"
    )
    assert offloaded.hf_device_map["clip"] == "disk"
    for key in ("parallel_logits", "cascaded_logits"):
        torch.testing.assert_close(offloaded(**make_pairs())[key], model(**make_pairs())[key])
    assert offloaded.extract_keywords(**make_inputs(), top_k=2) == model.extract_keywords(**make_inputs(), top_k=2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pickled_or_copied_model_is_trained_in_the_same_parts_and_computes_the_same(variant):
    model = make_model(variant, speech=LAYER_NORM).to(torch.bfloat16).float_statistics()
    model.branch.layers[0].attention.requires_grad_(False)
    model.speech_encoder.encoder.layers[1].requires_grad_(True)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert trained_names(other) == trained_names(model) and not other.training
        assert {name: value.dtype for name, value in other.state_dict().items()} == {
            name: value.dtype for name, value in model.state_dict().items()
        }
        torch.testing.assert_close(other(**make_pairs()).to_tuple(), model(**make_pairs()).to_tuple(), rtol=0, atol=0)
    assert pickle.loads(pickle.dumps(model.train())).training


def test_another_process_is_given_a_model_and_computes_the_same():
    model, inputs = make_model(), make_inputs()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        keywords = pool.submit(model.extract_keywords, **inputs).result()
    assert keywords == model.extract_keywords(**inputs)


def test_added_tokens_may_become_keywords_and_the_start_and_end_tokens_stay(tmp_path):
    model = make_model()
    before = model.get_text_features(torch.tensor([[58, 5, 59]])).pooler_output
    model.resize_token_embeddings(70)
    assert (model.config.start_token_id, model.config.end_token_id) == (58, 59)
    assert model.is_keyword.shape == (70,) and model.is_keyword[60:].all() and not model.is_keyword[58:60].any()
    torch.testing.assert_close(model.get_text_features(torch.tensor([[58, 5, 59]])).pooler_output, before)
    model.save_pretrained(tmp_path)
    again = SpeechClipPlusModel.from_pretrained(tmp_path)
    assert again.extract_keywords(**make_inputs()) == model.extract_keywords(**make_inputs())
    with pytest.raises(ValueError, match="bos_token_id is 58, outside its vocabulary of 50"):
        model.resize_token_embeddings(50)


def test_overrides_at_load_keep_the_rest_of_a_block_and_are_validated(tmp_path):
    make_model(cif_config={"conv_layers": 2}).save_pretrained(tmp_path)
    changed = {"cif_config": {"dropout": 0.1}, "clip_config": {"text_config": {"attention_dropout": 0.3}}}
    for config in (
        SpeechClipPlusModel.from_pretrained(tmp_path, **changed).config,
        AutoConfig.from_pretrained(tmp_path, **changed),
    ):
        assert (config.cif_config.dropout, config.cif_config.conv_layers) == (0.1, 2)
        assert (config.text_config.attention_dropout, config.text_config.vocab_size) == (0.3, 60)
        assert config.clip_config.projection_dim == 20
    with pytest.raises(ValueError, match="conv_width must be odd"):
        SpeechClipPlusModel.from_pretrained(tmp_path, cif_config={"conv_width": 4})
    with pytest.raises(OSError, match="model.fp16.safetensors"):
        SpeechClipPlusModel.from_pretrained(tmp_path, variant="fp16")
