"""Checkpoints in the original's format, made here from models of ours, become the same models again."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel, SpeechClipPlusProcessor
from speechclip_plus.conversion import checkpoint, convert, original_config
from speechclip_plus.conversion.checkpoint import (
    UnsafeCheckpointError,
    plain,
    read_checkpoint,
)
from speechclip_plus.conversion.convert import convert_checkpoint
from speechclip_plus.conversion.state_dict_names import recover_vocabulary
from speechclip_plus_cli import main as cli

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = ["parallel", "cascaded", "cascaded_plus", "hybrid", "hybrid_plus"]
WIDTH, SUBWORDS, SUBWORD_WIDTH = 32, 600, 64
REDUCED = [0, 320, SUBWORDS - 2, SUBWORDS - 1, *range(5, 60, 3)]


# Making checkpoints


def make_model(variant="hybrid_plus", large=False, reduced=True, **blocks):
    torch.manual_seed(0)
    tower = {"intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1, "projection_dim": 48}
    text = {**tower, "hidden_size": SUBWORD_WIDTH, "vocab_size": SUBWORDS}
    text |= {"bos_token_id": SUBWORDS - 2, "eos_token_id": SUBWORDS - 1}
    vision = {**tower, "hidden_size": 64, "image_size": 16, "patch_size": 8}
    speech = {"model_type": "hubert", "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2}
    speech |= {"num_attention_heads": 4, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16}
    speech |= {"num_conv_pos_embedding_groups": 4}
    if large:
        speech |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    if variant != "parallel":
        ids = REDUCED if reduced else None
        keyword = {"vocabulary_ids": ids, "excluded_ids": None if reduced else [0, 2, 3]}
        blocks["keyword_config"] = keyword | blocks.get("keyword_config", {})
    blocks["branch_config"] = {"num_attention_heads": 2} | blocks.get("branch_config", {})
    model = SpeechClipPlusModel(
        SpeechClipPlusConfig(
            model_variant=variant,
            padding="original",
            normalize_hidden_states=True,
            speech_config=speech,
            clip_config={"projection_dim": 48, "text_config": text, "vision_config": vision},
            **blocks,
        )
    )
    with torch.no_grad():  # so that nothing is at the value that it would have anyway
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.add_(0.05 * torch.randn_like(value).abs() if name.endswith("running_var") else 0)
                value.add_(0.05 * torch.randn_like(value) * (not name.endswith("running_var")))
    return model.eval()


def to_original(model, batch_norm="joint", weight_norm="hook", copies=True):
    """The weights as the original stores them."""
    config, state = model.config, model.state_dict()
    branch = "parallel_branch" if config.model_variant == "parallel" else "cascaded_branch"
    mode = ".2.1." if config.speech_config.feat_extract_norm == "layer" else ".2."
    gains = {"hook": "weight_{}", "parametrization": "parametrizations.weight.original{}"}[weight_norm]
    first, second = ("g", "v") if weight_norm == "hook" else ("0", "1")
    rules = [
        (r"^speech_encoder\.masked_spec_embed$", "audio_encoder.encoder.mask_emb"),
        (r"^speech_encoder\.feature_projection\.projection\.", "audio_encoder.encoder.post_extract_proj."),
        (r"^speech_encoder\.feature_projection\.layer_norm\.", "audio_encoder.encoder.layer_norm."),
        (r"\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", f".pos_conv.0.{gains.format(first)}"),
        (r"\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", f".pos_conv.0.{gains.format(second)}"),
        (r"\.pos_conv_embed\.conv\.", ".pos_conv.0."),
        (r"(conv_layers\.\d+)\.conv\.", r"\1.0."),
        (r"(conv_layers\.\d+)\.layer_norm\.", rf"\1{mode}"),
        (r"^(speech_encoder\.encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
        (r"^(speech_encoder\.encoder\.layers\.\d+)\.attention\.", r"\1.self_attn."),
        (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
        (r"\.feed_forward\.output_dense\.", ".fc2."),
        (r"^speech_encoder\.", "audio_encoder.encoder."),
        (r"^layer_sum\.weight$", "audio_encoder.weightedsum_layer.weights"),
        (r"^clip\.vision_model\.embeddings\.class_embedding", "clip.model.visual.class_embedding"),
        (r"^clip\.vision_model\.embeddings\.position_embedding\.weight", "clip.model.visual.positional_embedding"),
        (r"^clip\.vision_model\.embeddings\.patch_embedding\.", "clip.model.visual.conv1."),
        (r"^clip\.vision_model\.pre_layrnorm\.", "clip.model.visual.ln_pre."),
        (r"^clip\.vision_model\.post_layernorm\.", "clip.model.visual.ln_post."),
        (r"^clip\.vision_model\.encoder\.layers\.", "clip.model.visual.transformer.resblocks."),
        (r"^clip\.text_model\.encoder\.layers\.", "clip.model.transformer.resblocks."),
        (r"^clip\.text_model\.embeddings\.token_embedding\.", "clip.model.token_embedding."),
        (r"^clip\.text_model\.embeddings\.position_embedding\.weight", "clip.model.positional_embedding"),
        (r"^clip\.text_model\.final_layer_norm\.", "clip.model.ln_final."),
        (r"^clip\.logit_scale$", "clip.model.logit_scale"),
        (r"(resblocks\.\d+)\.layer_norm(\d)\.", r"\1.ln_\2."),
        (r"(resblocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.c_fc."),
        (r"(resblocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.c_proj."),
        (r"(resblocks\.\d+)\.self_attn\.", r"\1.attn."),
        (r"^cif\.weight_projection\.", "cascaded_branch.downsampling.weight_proj.1."),
        (r"^keyword_projection\.(?=\d)", "cascaded_branch.linear_proj.sequential."),
        (r"^keyword_projection\.", "cascaded_branch.linear_proj."),
        (r"^logit_scale$", "criterion.temperature"),
    ]
    projection = f"{branch}.{'linear_proj' if config.model_variant == 'parallel' else 'parallel_proj'}."
    rules += [(r"^parallel_projection\.(?=\d)", f"{projection}sequential."), (r"^parallel_projection\.", projection)]
    if config.branch_config.layer_type == "attention_and_norm":
        rules += [(r"^branch\.layers\.0\.attention\.", f"{branch}.self_att.multihead_attn_layer.")]
        rules += [(r"^branch\.layers\.0\.attention_norm\.", f"{branch}.self_att.attentionBlock_Norm.")]
    else:
        layer = rf"{branch}.self_att.model.layers.\1."
        rules += [(r"^branch\.layers\.(\d+)\.attention\.", rf"{layer}self_attn.")]
        rules += [(r"^branch\.layers\.(\d+)\.attention_norm\.", rf"{layer}norm1.")]
        rules += [(r"^branch\.layers\.(\d+)\.feed_forward_norm\.", rf"{layer}norm2.")]
        rules += [(r"^branch\.layers\.(\d+)\.feed_forward\.0\.", rf"{layer}linear1.")]
        rules += [(r"^branch\.layers\.(\d+)\.feed_forward\.3\.", rf"{layer}linear2.")]
        rules += [(r"^branch\.norm\.", f"{branch}.self_att.model.norm.")]

    original, fused = {}, {}
    for name, value in state.items():
        value = value.clone()
        if match := re.match(r"cif\.convolutions\.(\d+)\.(.*)", name):
            original[f"cascaded_branch.downsampling.conv.{3 * int(match[1])}.{match[2]}"] = value
            continue
        if name == "branch.cls_tokens":
            counts = {"parallel": [1], "hybrid_plus": [1], "hybrid": [1, len(value) - 1]}.get(
                config.model_variant, [len(value)]
            )
            names = ["parallel_cls", "cascaded_cls"] if len(counts) == 2 else ["cls"]
            for part, tokens in zip(names, value.split(counts), strict=True):
                original[f"{branch}.{part}"] = tokens[None].clone()
            continue
        if name.startswith("keyword_norm."):
            original |= _batch_norm(name.removeprefix("keyword_norm."), value, config, batch_norm)
            continue
        if name in ("clip.text_projection.weight", "clip.visual_projection.weight"):
            new = "clip.model.text_projection" if "text" in name else "clip.model.visual.proj"
            original[new] = value.T.contiguous()
            continue
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        heads_apart = re.match(r"(.*)\.([qkv])_proj\.(weight|bias)$", new)
        if heads_apart and not new.startswith("audio_encoder."):
            fused.setdefault((heads_apart[1], heads_apart[3]), {})[heads_apart[2]] = value
        else:
            original[new] = value
    for (prefix, kind), parts in fused.items():
        original[f"{prefix}.in_proj_{kind}"] = torch.cat([parts[part] for part in "qkv"])
    if not config.loss_config.train_temperature:
        del original["criterion.temperature"]
    if not config.has_cascaded or config.keyword_config.vocabulary_ids is not None:
        full = original["clip.model.token_embedding.weight"]
        original["clip.original_text_emb_weight"] = full
        original["clip.model.token_embedding.weight"] = full[REDUCED].clone()
    for name, size in (("eye_mat", 256), ("neg_eye_mat", 256), ("eye_mat_fl", 512)):
        original[f"criterion.{name}"] = torch.eye(size)
    original["audio_encoder.encoder.label_embs_concat"] = torch.zeros(20, 16)
    original["audio_encoder.encoder.final_proj.weight"] = torch.zeros(16, WIDTH)
    if config.has_cascaded:
        original["cascaded_branch.vector_quantizer.curr_temp"] = torch.tensor([0.1])
        if copies:
            copied = {f"cascaded_branch.{name}": t for name, t in original.items() if name.startswith("clip.")}
            original |= copied
    return OrderedDict(original)


def _batch_norm(name, value, config, form):
    places = config.keyword_config.num_keywords
    if places is None or form == "joint" or value.dim() == 0 and form == "shared":
        return {f"cascaded_branch.bn_layer.bn_layer.{name}": value}
    if value.dim() == 0:
        return {f"cascaded_branch.bn_layer.bn_layers.{place}.{name}": value for place in range(places)}
    by_place = value.reshape(-1, places).T  # channel d * K + k
    if form == "shared":
        return {f"cascaded_branch.bn_layer.bn_layer.{name}": by_place[0].clone()}
    return {f"cascaded_branch.bn_layer.bn_layers.{place}.{name}": by_place[place].clone() for place in range(places)}


def hyperparameters(config, year=2024):
    """What the original's YAML file says, as nested dictionaries."""
    args = {"n_layers": 1, "d_model": WIDTH, "nhead": config.branch_config.num_attention_heads, "dropout": 0.1}
    args |= {"layer_norm_eps": 1e-5, "norm_first": False, "dim_feedforward": 99}
    kind = {"type": "Whatever"} if year == 2024 else {}
    used, unused = {"transformer_args": args | kind}, {"transformer_args": args | kind | {"nhead": 1}}
    cascaded = {
        **(unused if config.model_variant == "parallel" else used),
        "vq": {"args": {"temp": "fixed=0.1", "hard": True}},
        "keyword": {"batchnorms": {"std_scale": 1.0}, "detokenized_K_neighbors": 5},
    }
    if year == 2022:
        cascaded["transformer_type"] = "Whatever"
    if config.has_cif:
        cascaded["downsampling"] = {
            "type": "cif",
            "cif": {"cif_threshold": 1.0, "scaling_step": 777, "apply_scaling": True, "apply_tail_handling": True,
                    "tail_handling_firing_threshold": 0.5, "quantity_loss_weight": 0.25, "conv_cif_layer_num": 9},
        }  # fmt: skip
    return {
        "model_settings": {
            "cascaded_objective_weight": 0.5,
            "parallel_objective_weight": 1.5,
            "parallel_branch": used if config.model_variant == "parallel" else unused,
            "cascaded_branch": cascaded,
        },
        "cl_loss": {"args": {"temperature": 0.05}},
        "retrieval": {"audio_feat_src": config.retrieval_branch},
        "clip": {"reduce_subword_embbedding": "somewhere.npy"},
        "audio_encoder": {"name": "hubert_base", "normalize_hiddenstates": True},
        "data": {"dataset": {"name": "flickr", "normalize_waveform": True}},
    }


@pytest.fixture
def original_modules():
    """Stand in for the original's packages while a checkpoint is written; they are gone when it is read."""
    names = ["avssl", "avssl.base", "avssl.base.ordered_namespace", "pytorch_lightning", "pytorch_lightning.loggers"]
    modules = {name: types.ModuleType(name) for name in names}
    sys.modules.update(modules)

    def define(module, name, base=object):
        made = type(name, (base,), {"__module__": module})
        setattr(modules[module], name, made)
        return made

    yield types.SimpleNamespace(
        Namespace=define("avssl.base.ordered_namespace", "OrderedNamespace"),
        Logger=define("pytorch_lightning.loggers", "WandbLogger"),
        Callback=define("pytorch_lightning.loggers", "Callback", dict),
    )
    for name in names:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path, original_modules):
    """Write a checkpoint as Lightning does, with its namespaces, callbacks and loggers."""

    def as_namespace(value):
        if not isinstance(value, dict):
            return value
        namespace = original_modules.Namespace()
        namespace.__dict__.update({key: as_namespace(entry) for key, entry in value.items()})
        return namespace

    def write(state, config=None, year=2024, name="model.ckpt", **more):
        settings = hyperparameters(config, year) if isinstance(config, SpeechClipPlusConfig) else config
        logger = original_modules.Logger()
        logger.__dict__ = {"_save_dir": Path("exp"), "step": np.float64(3.5), "self": logger}
        callback = original_modules.Callback(best=np.float32(81.03))
        callback.seen = {1, 2}
        path = tmp_path / name
        torch.save(
            {
                "epoch": 3,
                "pytorch-lightning_version": "1.5.10",
                "state_dict": state,
                "callbacks": {"ModelCheckpoint": callback, "counts": defaultdict(list, a=[1])},
                "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
                "hyper_parameters": {} if settings is None else {"config": as_namespace(settings), "logger": logger},
                **more,
            },
            path,
        )
        return path

    return write


def outputs(model):
    torch.manual_seed(1)
    waveforms = torch.randn(3, 9_000)
    mask = (torch.arange(9_000) < torch.tensor([[9_000], [7_000], [4_321]])).long()
    with torch.no_grad():
        output = model(waveforms * mask, mask, pixel_values=torch.randn(3, 3, 16, 16))
    names = ["parallel_logits", "cascaded_logits", "parallel_embeds", "cascaded_embeds", "image_embeds", "keyword_ids"]
    return {name: output[name] for name in names if output.get(name) is not None}


def assert_same_model(folder, model):
    converted = SpeechClipPlusModel.from_pretrained(folder)
    expected, found = model.state_dict(), converted.state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    theirs, ours = outputs(model), outputs(converted)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=name)
    return converted


# What converts


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("year", [2022, 2024])
def test_every_variant_becomes_the_same_model_again(variant, year, large, write, tmp_path):
    kind = {"parallel": "transformer_encoder"}.get(variant, "attention_and_norm")
    model = make_model(
        variant, large, branch_config={"layer_type": kind, "intermediate_size": 56},
    )  # fmt: skip
    state = to_original(model, weight_norm="hook" if year == 2022 else "parametrization")
    conversion = convert_checkpoint(write(state, model.config, year), tmp_path / "out")
    converted = assert_same_model(tmp_path / "out", model).config
    assert conversion.used + len(conversion.ignored) == len(state)
    assert ("clip.model.token_embedding.weight" in conversion.ignored) == (variant == "parallel")
    assert converted.model_variant == variant and converted.padding == "original"
    assert converted.branch_config.num_attention_heads == 2
    assert converted.loss_config.parallel_weight == 1.5 and converted.retrieval_branch == model.config.retrieval_branch
    if converted.has_cif:
        assert (converted.cif_config.scale_until_step, converted.cif_config.dropout) == (777, 0.5)
    if converted.has_cascaded:
        assert converted.keyword_config.vocabulary_ids == REDUCED and converted.keyword_config.excluded_ids is None


def test_a_converted_model_can_be_loaded_to_embed_the_same_whatever_the_batch(write, tmp_path):
    model = make_model()
    convert_checkpoint(write(to_original(model), model.config), tmp_path / "out")
    invariant = SpeechClipPlusModel.from_pretrained(tmp_path / "out", padding="invariant")
    long, short = torch.randn(1, 9_000), torch.randn(1, 5_000)
    padded = torch.cat([long, torch.nn.functional.pad(short, (0, 4_000))])
    mask = (torch.arange(9_000) < torch.tensor([[9_000], [5_000]])).long()
    alone = model.get_audio_features(short).pooler_output
    torch.testing.assert_close(invariant.get_audio_features(padded, mask).pooler_output[1:], alone, rtol=0, atol=1e-5)
    assert (model.get_audio_features(padded, mask).pooler_output[1:] - alone).abs().max() > 1e-4


@pytest.mark.parametrize("form", ["joint", "per place"])
@pytest.mark.parametrize("variant", ["cascaded", "hybrid"])
def test_batch_norms_of_every_form_convert(variant, form, write, tmp_path):
    model = make_model(variant)
    convert_checkpoint(write(to_original(model, form), model.config), tmp_path / "out")
    assert_same_model(tmp_path / "out", model)


def test_a_batch_norm_that_all_places_share_is_repeated_for_each(write, tmp_path):
    model = make_model("cascaded", keyword_config={"num_keywords": 3})
    norm = model.keyword_norm
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            value.copy_(value.reshape(-1, 3)[:, :1].expand(-1, 3).reshape(-1))
    convert_checkpoint(write(to_original(model, "shared"), model.config), tmp_path / "out")
    assert_same_model(tmp_path / "out", model)


def test_hidden_layers_more_convolutions_and_a_fixed_temperature_are_seen_in_the_weights(write, tmp_path):
    model = make_model(
        "hybrid_plus",
        branch_config={"parallel_projection_hidden_size": 40, "layer_type": "transformer_encoder", "num_layers": 2},
        keyword_config={"projection_hidden_size": 36},
        cif_config={"conv_layers": 2, "conv_width": 5},
        loss_config={"train_temperature": False, "temperature": 0.05},
    )
    model.logit_scale.data.fill_(float(np.log(1 / 0.05)))
    convert_checkpoint(write(to_original(model), model.config), tmp_path / "out")
    config = assert_same_model(tmp_path / "out", model).config
    assert (config.cif_config.conv_layers, config.cif_config.conv_width) == (2, 5)
    assert config.branch_config.num_layers == 2 and not config.loss_config.train_temperature


def test_a_full_vocabulary_leaves_out_what_the_original_left_out(write, tmp_path):
    model = make_model(reduced=False)
    settings = hyperparameters(model.config)
    settings["clip"]["reduce_subword_embbedding"] = None
    conversion = convert_checkpoint(write(to_original(model), settings), tmp_path / "out")
    assert conversion.config.keyword_config.vocabulary_ids is None
    assert conversion.config.keyword_config.excluded_ids == [0, 2, 3]
    assert any("never takes the tokens [0, 2, 3]" in note for note in conversion.notes)
    assert_same_model(tmp_path / "out", model)


def test_a_reduced_table_alone_needs_the_clip_it_came_from(write, tmp_path):
    model = make_model()
    state = to_original(model, copies=False)
    del state["clip.original_text_emb_weight"]
    path = write(state, model.config)
    with pytest.raises(ValueError, match=r"reduced to \d+ rows .*--clip"):
        convert_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_reduced_table_of_a_given_clip_is_found_in_it(write, tmp_path):
    model = make_model()
    state = to_original(model, copies=False)
    del state["clip.original_text_emb_weight"]
    model.clip.save_pretrained(tmp_path / "clip")
    convert_checkpoint(write(state, model.config), tmp_path / "out", clip=tmp_path / "clip")
    assert_same_model(tmp_path / "out", model)


@pytest.mark.parametrize("as_namespace", [True, False])
def test_a_configuration_that_was_saved_by_itself_is_found(as_namespace, write, tmp_path, original_modules):
    model = make_model()
    settings = {**hyperparameters(model.config), "config": "config/model.yaml"}
    if as_namespace:
        namespace = original_modules.Namespace()
        namespace.__dict__.update(settings)
    path = write(to_original(model), hyper_parameters=namespace if as_namespace else settings)
    convert_checkpoint(path, tmp_path / "out")
    assert_same_model(tmp_path / "out", model)


def test_half_precision_weights_become_the_same_numbers_in_single(write, tmp_path):
    model = make_model()
    state = to_original(model)
    halves = OrderedDict((name, value.half() if value.is_floating_point() else value) for name, value in state.items())
    convert_checkpoint(write(halves, model.config), tmp_path / "out")
    assert_same_model(tmp_path / "out", model.half().float())


def test_openais_tokenizer_and_a_card_come_with_a_full_size_vocabulary(write, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SUBWORDS", 49_408)
    model = make_model("parallel")
    name = "epoch_131-step_15443-val_recall_mean_1_36.0100.ckpt"
    convert_checkpoint(write(to_original(model), model.config, name=name), tmp_path / "out")
    processor = SpeechClipPlusProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer("a dog's café").input_ids == [49406, 320, 1929, 568, 15304, 49407]
    assert processor.feature_extractor.do_normalize and processor.image_processor.crop_size["height"] == 16
    card = (tmp_path / "out" / "README.md").read_text()
    assert "mean R@1 of 36.01 on the validation split" in card and "Nothing was measured" in card
    assert name in card and str(tmp_path) not in card


def test_the_original_models_numbers_come_out_of_a_new_process(write, tmp_path):
    with safe_open(GOLDEN / "model_hybrid_plus.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = OrderedDict()
    for prefix in ("init_state/", "trained_params_after3/"):
        state.update({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    reduced = state["clip.model.token_embedding.weight"]
    torch.manual_seed(0)
    ids = [0, 320, 49406, 49407, *(torch.randperm(49_000)[: len(reduced) - 4] + 330).tolist()]
    full = torch.randn(49_408, reduced.shape[1])
    full[ids] = reduced
    state["clip.original_text_emb_weight"] = full
    settings = hyperparameters(SpeechClipPlusConfig.from_preset("hybrid_plus-base-flickr8k"))
    settings["audio_encoder"]["normalize_hiddenstates"] = False
    path = write(state, settings)
    command = [sys.executable, "-m", "speechclip_plus_cli", "convert", str(path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "hybrid_plus" in done.stdout and "tensors used" in done.stdout
    torch.save(
        {name: tensors[f"inputs/{name}"] for name in ("wav", "wav_len", "image")} | {"folder": str(tmp_path / "out")},
        tmp_path / "inputs.pt",
    )
    script = """
import sys, torch
from transformers import AutoModel
import speechclip_plus
i = torch.load(sys.argv[1])
model = AutoModel.from_pretrained(i["folder"])
mask = (torch.arange(i["wav"].shape[1]) < i["wav_len"][:, None]).long()
with torch.no_grad():
    o = model(i["wav"], mask, pixel_values=i["image"])
    single = model(i["wav"][1:2, : i["wav_len"][1]])
torch.save({k: o[k] for k in ("parallel_embeds", "cascaded_embeds", "image_embeds", "keyword_ids")}
           | {"single": single.cascaded_embeds}, sys.argv[2])
"""
    arguments = [str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    found = torch.load(tmp_path / "outputs.pt")
    for ours, theirs in (
        ("parallel_embeds", "parallel_audio_feat"),
        ("cascaded_embeds", "cascaded_audio_feat"),
        ("image_embeds", "image_feat"),
        ("single", "single.1.cascaded_audio_feat"),
    ):
        torch.testing.assert_close(found[ours], tensors[f"outputs/{theirs}"], rtol=0, atol=1e-4)
    targets = tensors["outputs/vq_results.targets"].squeeze(-1)
    real = found["keyword_ids"] >= 0
    assert found["keyword_ids"][real].tolist() == torch.tensor(ids)[targets[real]].tolist()


# Presets and vocabularies


def test_a_preset_fills_in_what_the_checkpoint_does_not_tell(write, tmp_path, monkeypatch):
    model = make_model()
    path = write(to_original(model))
    with pytest.raises(ValueError, match=r"attention heads leaves no trace .* hyper-parameters .* missing.*--preset"):
        convert_checkpoint(path, tmp_path / "out")
    settings = {"branch_config": {"num_attention_heads": 2}, "normalize_hidden_states": True}
    preset = {"config": settings, "processor": {}}
    published = original_config.load_preset
    monkeypatch.setattr(original_config, "load_preset", lambda name: preset if name == "ours" else published(name))
    convert_checkpoint(path, tmp_path / "out", preset="ours")
    assert_same_model(tmp_path / "out", model)


def test_hyperparameters_that_contradict_the_weights_are_an_error_that_names_both(write, tmp_path):
    model = make_model("cascaded")
    settings = hyperparameters(model.config)
    settings["model_settings"]["cascaded_branch"]["keyword"]["number"] = 5
    with pytest.raises(ValueError, match=r"num_keywords is 8 by the weights, but 5 by the checkpoint's hyper-param"):
        convert_checkpoint(write(to_original(model), settings), tmp_path / "out")


def test_a_preset_that_contradicts_the_checkpoint_is_an_error_that_names_both(write, tmp_path):
    model = make_model()
    with pytest.raises(
        ValueError, match=r"model_variant is 'hybrid_plus' by the checkpoint, but 'parallel' by the preset"
    ):
        convert_checkpoint(write(to_original(model), model.config), tmp_path / "out", preset="parallel-base-flickr8k")
    with pytest.raises(ValueError, match="no preset 'parallel'"):
        convert_checkpoint(write(to_original(model), model.config), tmp_path / "out", preset="parallel")


def test_every_published_configuration_is_recognised_by_what_its_checkpoint_tells():
    for name in original_config.preset_names():
        if not name.endswith("-tiny"):
            settings = original_config.settings_of_preset(name)
            assert name in original_config.matching_presets(settings)


def test_a_vocabulary_file_is_checked_and_decides_between_equal_rows(write, tmp_path):
    model = make_model()
    with torch.no_grad():
        table = model.clip.text_model.get_input_embeddings().weight
        table[7] = table[8]
    path = write(to_original(model), model.config)
    with pytest.raises(ValueError, match=r"Row \d+ .* stands 2 times .* ids 7, 8"):
        convert_checkpoint(path, tmp_path / "out")
    np.save(tmp_path / "ids.npy", np.stack([REDUCED, np.arange(len(REDUCED))], axis=1))
    convert_checkpoint(path, tmp_path / "out", vocabulary=tmp_path / "ids.npy")
    assert_same_model(tmp_path / "out", model)
    np.save(tmp_path / "wrong.npy", np.array([*REDUCED[:-1], 500]))
    with pytest.raises(ValueError, match=rf"row {len(REDUCED) - 1} .* id 500, but they differ"):
        convert_checkpoint(path, tmp_path / "other", vocabulary=tmp_path / "wrong.npy")
    np.save(tmp_path / "short.npy", np.array([0, 1]))
    with pytest.raises(ValueError, match="2 ids from 0 to 1, but .* 23 rows"):
        convert_checkpoint(path, tmp_path / "other", vocabulary=tmp_path / "short.npy")
    (tmp_path / "no.npy").write_text("0 1 2")
    with pytest.raises(ValueError, match="no .npy file"):
        convert_checkpoint(path, tmp_path / "other", vocabulary=tmp_path / "no.npy")


def test_a_reduced_row_that_is_not_in_the_full_table_is_an_error():
    full = torch.randn(20, 4)
    assert recover_vocabulary(full[[3, 0]].half(), full) == [3, 0]
    reduced = full[[3, 0, 5]].clone()
    reduced[2] += 1
    with pytest.raises(ValueError, match="1 of the 3 rows .* first at 2"):
        recover_vocabulary(reduced, full)


# What is refused


def test_tensors_that_nothing_uses_are_missing_or_have_another_size_are_errors(write, tmp_path):
    model = make_model()
    complete = to_original(model)
    for change, message in (
        (lambda s: s.update({"mystery.weight": torch.zeros(1)}), "no part of a SpeechCLIP model: mystery.weight"),
        (lambda s: s.pop("cascaded_branch.linear_proj.bias"), 'Missing key.*"keyword_projection.bias"'),
        (
            lambda s: s.update({"audio_encoder.encoder.layer_norm.bias": torch.zeros(3)}),
            r"size mismatch for speech_encoder.feature_projection.layer_norm.bias",
        ),
        (lambda s: s["audio_encoder.encoder.layer_norm.bias"].fill_(torch.nan), "infinite or none"),
        (lambda s: s.update({"cascaded_branch.clip.model.ln_final.bias": torch.ones(64)}), "should be a copy"),
        (lambda s: s.update({"parallel_branch.linear_proj.weight": torch.ones(3, 3)}), "both belong to"),
        (lambda s: s.update({"cascaded_branch.bn_layer.bn_layers.0.bias": torch.ones(64)}), "of each place as well"),
        (lambda s: s.update({"clip.model.visual.layer1.0.weight": torch.ones(3)}), "ResNet"),
        (lambda s: s.update({"clip.model.ln_final.bias": "text"}), "a str and no dense tensor"),
    ):
        state = OrderedDict((name, value.clone()) for name, value in complete.items())
        change(state)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(write(state, model.config), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="neither a parallel nor a cascaded branch"):
        kept = {name: value for name, value in complete.items() if not name.startswith("cascaded_branch")}
        convert_checkpoint(write(kept, model.config), tmp_path / "out")


class Evil:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["top", "in the logger"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {}",), r"(posix|nt|os)\.system"),
        (eval, ("open({!r}, 'w')",), "builtins.eval"),
        (exec, ("open({!r}, 'w')",), "builtins.exec"),
        (subprocess.check_output, (["touch", "{}"],), r"(subprocess|commands)\.check_output"),
        (torch.UntypedStorage.from_file, ("{}", True, 8), r"builtins\.getattr|torch\._C\.StorageBase"),
        (torch.from_file, ("{}", True, 8), r"builtins\.getattr|torch\._C\._VariableFunctionsClass"),
        (torch.load, ("{}",), "torch.serialization.load"),
        (pickle.loads, (b"",), r"pickle\.loads|builtins\.bytes"),
        (getattr, (dict, "fromkeys"), r"builtins\.getattr"),
        (np.load, ("{}",), r"numpy\.load|numpy.*load"),
        (pytest.main, (["{}"],), r"asks for .*main"),
    ],
)
def test_a_checkpoint_that_asks_for_more_than_data_is_refused_by_name_and_nothing_runs(
    function, arguments, named, protocol, where, tmp_path, original_modules
):
    victim = tmp_path / "victim"
    filled = tuple(
        a.format(str(victim)) if isinstance(a, str) else [x.format(victim) for x in a] if isinstance(a, list) else a
        for a in arguments
    )
    evil = Evil(function, *filled)
    logger = original_modules.Logger()
    logger.run = evil
    content = {"state_dict": {}, "hyper_parameters": evil if where == "top" else {"logger": logger}}
    torch.save(content, tmp_path / "evil.ckpt", pickle_protocol=max(protocol, 2))
    if protocol == 4:  # torch reads no opcodes but those of protocol 2
        named = "Unsupported operand"
    with pytest.raises(UnsafeCheckpointError, match=named):
        read_checkpoint(tmp_path / "evil.ckpt")
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match="no checkpoint of torch.save"):
        read_checkpoint(tmp_path / "bare.ckpt")
    with pytest.raises(UnsafeCheckpointError, match=named):
        convert_checkpoint(tmp_path / "evil.ckpt", tmp_path / "out")
    assert not victim.exists() and not (tmp_path / "out").exists()


def archive(path, pickled, **entries):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        for name, content in entries.items():
            file.writestr(f"archive/{name}", content)
    return path


def test_what_stands_for_real_functions_cannot_be_changed_or_used_to_reach_others(tmp_path):
    # GLOBAL _rebuild_tensor_v2, a state that replaces its defaults, BUILD: pickle would change the real function.
    change = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__N\x85s\x86b."
    before = torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(UnsafeCheckpointError, match="Can only build"):
        read_checkpoint(archive(tmp_path / "change.ckpt", change))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before
    dotted = b"\x80\x04\x8c\x0bcollections\x8c\x1dOrderedDict.__init_subclass__\x93."
    with pytest.raises(UnsafeCheckpointError, match="Unsupported operand"):
        read_checkpoint(archive(tmp_path / "dotted.ckpt", dotted))
    with pytest.raises(ValueError, match="torchscript"):
        read_checkpoint(archive(tmp_path / "script.ckpt", b"\x80\x02}.", **{"constants.pkl": b""}))


def test_a_program_that_only_some_readers_find_in_an_archive_is_refused(tmp_path):
    # The end record gives the directory's place (here that of a TorchScript program, which torch.load can run) and
    # its size; zipfile looks for it right in front of the record, other readers at the place.
    def parts(comment=b"", **entries):
        path = archive(tmp_path / "part", b"\x80\x02}.", **entries)
        with zipfile.ZipFile(path, "a") as file:
            file.infolist()[0].comment = comment
            file._didModify = True
        content = path.read_bytes()
        end = content.rfind(b"PK\5\6")
        count, size, start = struct.unpack("<HII", content[end + 10 : end + 20])
        return content[:end], count, size, start

    shown, count, size, start = parts(**{"constants.pkl": b"", "code/program.py": b""})
    hidden, _, needed, _ = parts()
    hidden, _, same, hidden_start = parts(comment=b"x" * (size - needed))
    assert same == size
    directory = bytearray(hidden[hidden_start:])
    at, moved = 0, start - hidden_start  # zipfile adds where the directory is to where it was said to be
    while at < len(directory):
        (offset,) = struct.unpack("<I", directory[at + 42 : at + 46])
        directory[at + 42 : at + 46] = struct.pack("<I", offset + moved)
        at += 46 + sum(struct.unpack("<HHH", directory[at + 28 : at + 34]))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, start, 0)
    (tmp_path / "both.ckpt").write_bytes(shown + hidden[:hidden_start] + bytes(directory) + end)
    assert "constants.pkl" in torch._C.PyTorchFileReader(str(tmp_path / "both.ckpt")).get_all_records()
    with pytest.raises(ValueError, match="torchscript"):
        read_checkpoint(tmp_path / "both.ckpt")


def integer(value):
    return b"\x8a\x08" + struct.pack("<q", value)


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"c__builtin__\nbytearray\n" + integer(10**12) + b"\x85R.", "MemoryError"),
        (b"]" + (b"c__builtin__\nbytearray\n" + integer(3 * 10**8) + b"\x85Ra") * 9 + b".", "MemoryError|takes more"),
        (b"c__builtin__\nbytes\n" + integer(10**12) + b"\x85R.", r"asks for builtins\.bytes"),
        (b"}r" + struct.pack("<I", 2**31 - 1) + b".", "no state_dict"),
        (b"c__builtin__\nstr\n(t\x85R.", r"asks for builtins\.str"),
        (b"".join(b"cm\na%d\n" % n for n in range(10_001)) + b"}.", r"asks for m\.a"),
        (b"c" + b"a\x1b[31m" * 500_000 + b"\nb\n.", "asks for a"),
        # Keys whose hash is nested too deeply for C's stack, takes for ever, or is that of all others.
        (b"}" + b")" + b"\x85" * 1_000_000 + b"Ns.", "crashes, or takes more"),
        (b"})" + b"q\0h\0\x86" * 100 + b"Ns.", "crashes, or takes more"),
        (b"}(" + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little", signed=True) + b"N"
                         for n in range(1, 60_000)) + b"u.", "crashes, or takes more"),
    ],
)  # fmt: skip
def test_a_few_bytes_cannot_ask_for_any_amount_of_memory_or_time(pickled, message, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_MAX_SECONDS", 2)
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(archive(tmp_path / "evil.ckpt", b"\x80\x02" + pickled))
    assert len(str(error.value)) < 500


def test_settings_that_never_end_are_an_error(write, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_MAX_SECONDS", 2)
    laughs, deep = [], []
    for _ in range(40):
        laughs = [laughs] * 10
    with pytest.raises(ValueError, match="crashes, or takes more"):
        read_checkpoint(write({"w": torch.ones(1)}, {"a": laughs}))
    deep = b"\x80\x02}X\x10\0\0\0hyper_parameters" + b"]" * 100_000 + b"a" * 99_999 + b"s."
    with pytest.raises(ValueError, match="recursion depth|no state_dict"):
        read_checkpoint(archive(tmp_path / "deep.ckpt", deep))


@pytest.mark.parametrize(
    ("size", "stride", "numbers", "message"),
    [
        (4, 1, 4, None),
        (100, 0, 4, None),  # an expanded tensor
        (10**11, 0, 4, r"shape \(100000000000,\), but 16 bytes"),
        (5, 1, 4, "resize storage"),
        (40, 1, 40, "shape .*, but 160 bytes"),
        (4, 1, -4, "resize storage"),
        (4, 1, 10**12, "shape .*, but .* bytes"),
    ],
)
def test_tensors_are_what_the_file_holds_of_them(size, stride, numbers, message, tmp_path):
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + integer(numbers) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(0) + integer(size) + b"\x85"
    pickled = b"\x80\x02}X\x0a\0\0\0state_dict}X\x01\0\0\0w" + tensor + integer(stride) + b"\x85\x89}tRss."
    path = archive(tmp_path / "file.ckpt", pickled, **{"data/0": bytes(16)})
    if message is None:
        assert read_checkpoint(path).state_dict["w"].tolist() == [0] * size
    else:
        with pytest.raises(ValueError, match=message):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "bare", [b"(S'touch'\nios\nsystem\n.", b"cos\nsystem\n(S'touch'\ntR.", b"(cos\nsystem\nS'touch'\no."]
)
def test_bare_pickles_are_not_read_whatever_their_protocol(bare, tmp_path):
    for name, content in (("bare", bare), ("legacy", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + bare)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="no checkpoint of torch.save"):
            read_checkpoint(tmp_path / name)


def test_archives_that_torch_save_does_not_write_are_refused(tmp_path):
    archive(tmp_path / "two", b"\x80\x02}.")
    with zipfile.ZipFile(tmp_path / "two", "a") as file:
        file.writestr("other/data.pkl", b"\x80\x02}.")
    with pytest.raises(ValueError, match="other/data.pkl"):
        read_checkpoint(tmp_path / "two")
    torch.save({"state_dict": {"w": torch.ones(9)}}, tmp_path / "stored")
    with zipfile.ZipFile(tmp_path / "stored") as stored, zipfile.ZipFile(tmp_path / "packed", "w") as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        read_checkpoint(tmp_path / "packed")


def test_damaged_files_and_files_of_other_kinds_are_one_clear_error(write, tmp_path):
    model = make_model("parallel")
    path = write(to_original(model), model.config)
    content = path.read_bytes()
    cases = {
        "empty": (b"", "no checkpoint of torch.save"),
        "text": (b"version https://git-lfs.github.com/spec/v1\n", "no checkpoint"),
        "pickle": (pickle.dumps([1, 2]), "no checkpoint"),
    }
    cases |= {f"cut {n}": (content[: len(content) * n // 10], "only the beginning|damaged") for n in (1, 5, 9)}
    for name, (damaged, message) in cases.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(tmp_path / name, tmp_path / "out")
    middle = len(content) // 2
    (tmp_path / "flipped").write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(ValueError, match="damaged .* Bad CRC-32"):
        convert_checkpoint(tmp_path / "flipped", tmp_path / "out")
    torch.save({"state_dict": {}}, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"since PyTorch 1\.6"):
        convert_checkpoint(tmp_path / "legacy", tmp_path / "out")
    torch.save({"model": {}}, tmp_path / "other")
    with pytest.raises(ValueError, match="no state_dict.* it holds 'model'"):
        convert_checkpoint(tmp_path / "other", tmp_path / "out")
    torch.save([1], tmp_path / "list")
    with pytest.raises(ValueError, match="holds a list"):
        convert_checkpoint(tmp_path / "list", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("a.txt", "a")
    with pytest.raises(ValueError, match="not in a subdirectory: a.txt"):
        convert_checkpoint(tmp_path / "zip", tmp_path / "out")
    with pytest.raises(ValueError, match="is a folder"):
        convert_checkpoint(tmp_path, tmp_path / "out")
    with pytest.raises(OSError, match="nowhere"):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_objects_become_dictionaries_of_their_attributes_and_items(write):
    found = read_checkpoint(write({"w": torch.ones(2)}, {"a": {"b": [1, {"c": 2}]}})).hyper_parameters
    assert found["config"] == {"a": {"b": [1, {"c": 2}]}}
    assert found["logger"]["self"] is None and found["logger"]["_save_dir"] == {}
    items, attributes = OrderedDict(best=81.03), {"seen": {1, 2}}
    items.__dict__.update(attributes)
    assert plain(items) == {"best": 81.03, "seen": [1, 2]}


def test_hostile_names_and_misplaced_settings_are_one_short_line_without_control_codes(write, tmp_path, capsys):
    model = make_model("parallel")
    settings = hyperparameters(model.config)
    cases = {
        "name": ({"\x1b[31m" + "a" * 4_000_000: torch.ones(1)}, settings, "a tensor called"),
        "list": (to_original(model), {**settings, "model_settings": [1]}, "hold no dictionary above"),
        "long": (to_original(model), {**settings, "retrieval": "\x1b" * 4_000_000}, "hold no dictionary above"),
    }
    for name, (state, config, message) in cases.items():
        path = write(state, config, name=name)
        assert cli.main(["convert", str(path), str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error
        assert len(error) < 1_200 and error.isprintable()


# The output


def test_an_earlier_output_is_replaced_when_told_and_kept_after_an_error(write, tmp_path):
    model = make_model("parallel")
    path, out = write(to_original(model), model.config), tmp_path / "out"
    convert_checkpoint(path, out)
    with pytest.raises(ValueError, match="exists; .*--force"):
        convert_checkpoint(path, out)
    (tmp_path / "bad").write_text("bad")
    with pytest.raises(ValueError, match="no checkpoint"):
        convert_checkpoint(tmp_path / "bad", out, force=True)
    assert_same_model(out, model)
    convert_checkpoint(path, out, force=True)
    assert_same_model(out, model)
    (out / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="mine.txt was not written by an earlier run"):
        convert_checkpoint(path, out, force=True)
    assert (out / "mine.txt").read_text() == "kept"
    with pytest.raises(ValueError, match="is a file"):
        convert_checkpoint(path, path)
    with pytest.raises(ValueError, match="cannot be made: .* is a file"):
        convert_checkpoint(path, path / "out")
    inside = path.rename(out / path.name)
    with pytest.raises(ValueError, match=r"out is or holds .*model\.ckpt, which is in use"):
        convert_checkpoint(inside, out, force=True)
    assert inside.exists()


def test_force_replaces_an_earlier_conversion_and_nothing_else(write, tmp_path, assert_replaces_only_its_own_output):
    (tmp_path / "checkpoints").mkdir()
    model = make_model()
    path = write(to_original(model), model.config, name="checkpoints/model.ckpt")
    assert_replaces_only_its_own_output(
        lambda folder: cli.main(["convert", str(path), str(folder), "--force"]), [path]
    )


def test_an_interrupted_conversion_leaves_nothing(write, tmp_path, monkeypatch):
    model = make_model("parallel")
    path = write(to_original(model), model.config)
    saved = SpeechClipPlusModel.save_pretrained

    def interrupt(model, folder, **options):
        saved(model, folder, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(SpeechClipPlusModel, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.ckpt"]


def test_large_models_are_sharded_and_every_file_is_readable_by_others(write, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_MAX_SHARD_SIZE", "200KB")
    model = make_model()
    convert_checkpoint(write(to_original(model), model.config), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert_same_model(tmp_path / "out", model)
    umask = os.umask(0)
    os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o666 & ~umask}


def test_the_command_says_what_it_did_and_fails_in_one_line(write, tmp_path, capsys):
    model = make_model()
    path = write(to_original(model), model.config)
    assert cli.main(["convert", str(path), str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "copy" in captured.out and "note: no processor was written" in captured.out and "reading" in captured.out
    assert cli.main(["convert", str(path), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "--force" in error
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert report["ignored"]["criterion.eye_mat"] == "mask of the original's loss"
