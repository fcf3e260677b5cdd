"""Each variant, branch and whole, computes what the original research code computed on the same input and weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel
from speechclip_plus.conversion.state_dict_names import rename_original_weights

GOLDEN = Path(__file__).parent / "golden"
CLIP = {
    "projection_dim": 128,
    "text_config": {
        "vocab_size": 400,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 128,
        # Places of start and end in the original's reduced vocabulary.
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 128,
    },
}


def read(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["meta"])  # noqa: SIM118


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def build(variant: str, padding: str, layers: int = 1, channels: int = 8, **blocks) -> SpeechClipPlusModel:
    speech = {
        "model_type": "hubert",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "conv_dim": [channels] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    if variant.endswith("_plus"):
        blocks["cif_config"] = {"dropout": 0.0}
    config = SpeechClipPlusConfig(
        model_variant=variant, padding=padding, speech_config=speech, clip_config=CLIP, **blocks
    )
    return SpeechClipPlusModel(config)


def assert_near(actual, expected, relative=1e-5, floor=1e-3):
    """Equal within `relative` of the largest expected value; below `floor`, what is left is cancellation."""
    assert actual.shape == expected.shape
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=floor)
    assert error <= relative


VARIANTS = ["parallel", "cascaded", "cascaded_plus", "hybrid", "hybrid_plus"]
SCENARIOS = ["train_gs0", "train_gs6000", "eval", "eval_grad"]
COMPARED = {
    "parallel_embeds": "norm.parallel_audio_feat",
    "cascaded_embeds": "norm.cascaded_audio_feat",
    "image_embeds": "norm.image_feat",
    "parallel_loss": "loss.p_cl_loss",
    "cascaded_loss": "loss.c_cl_loss",
    "quantity_loss": "loss.quantity_loss",
    "loss": "loss.loss",
    "alphas": "cif.alpha",
    "alpha_sums": "cif.quantity_out",
    "target_lengths": "cif.target_len",
    "keyword_lengths": "cif.dsample_feats_length",
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_branch_with_its_losses_and_gradients_matches_the_original(variant, scenario):
    tensors, facts = read(f"branch_{variant}")
    if scenario not in facts["scenarios"]:
        pytest.skip("scaling ends at a step only where there is CIF")
    weights = under("weights/", tensors)
    if variant == "hybrid_plus":  # both hybrids were computed with one CLIP
        weights |= under("weights/", {k: v for k, v in read("branch_hybrid")[0].items() if "/clip." in k})
    model = build(
        variant,
        "original",
        branch_config={
            "layer_type": facts["layer_type"],
            "num_attention_heads": facts["heads"],
            "intermediate_size": 64,
            "dropout": 0.0,
        },
        loss_config={"train_temperature": facts["train_temperature"]},
    )
    converted = rename_original_weights(weights).weights
    del converted["layer_sum.weight"]  # for three layers; these arrays begin behind the sum
    report = model.load_state_dict(converted, strict=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not report.unexpected_keys
    assert set(report.missing_keys) & trained <= {"layer_sum.weight", *(["logit_scale"] * (variant == "parallel"))}

    model.train(scenario.startswith("train"))
    frames = tensors["inputs/audio_feat"].requires_grad_()
    images = tensors["inputs/image_feat"].requires_grad_()
    output = model(
        speech_hidden_states=torch.stack([frames, frames], dim=1),  # whatever their weights, the sum is `frames`
        frame_lengths=tensors["inputs/audio_feat_len"],
        image_embeds=images,
        image_ids=tensors["inputs/id"],
        return_loss=True,
        global_step=6000 if scenario.endswith("6000") else 0,
    )
    expected = under(f"outputs/{scenario}/", tensors)
    compared = {ours: theirs for ours, theirs in COMPARED.items() if theirs in expected}
    assert {"loss", "image_embeds"} < set(compared)
    for ours, theirs in compared.items():
        assert_near(output[ours], expected[theirs])
    if "vq.targets" in expected:
        real = output.keyword_ids >= 0
        assert output.keyword_ids[real].tolist() == expected["vq.targets"].squeeze(-1)[real].tolist()
        assert_near(output.keyword_embeds, expected["keywords"])
    for name, value in rename_original_weights(under("buffers_after.", expected)).weights.items():
        assert_near(model.state_dict()[name], value)

    gradients = under(f"grads/{scenario}/", tensors)
    if gradients:
        output.loss.backward()
        inputs = {"input.audio_feat": frames, "input.image_feat": images}
        for name in inputs.keys() & gradients.keys():
            assert_near(inputs[name].grad, gradients.pop(name))
        parameters = dict(model.named_parameters())
        # Some gradients are zero but for rounding: a bias in front of batch norm, the keys' bias in attention.
        floor = max((value.abs().max().item() for value in gradients.values()), default=0)
        for name, value in rename_original_weights(gradients).weights.items():
            assert_near(parameters[name].grad, value, floor=floor)


@pytest.fixture(scope="module")
def whole():
    tensors, facts = read("model_hybrid_plus")
    initial = rename_original_weights(under("init_state/", tensors)).weights
    trained = rename_original_weights(under("trained_params_after3/", tensors)).weights
    waveforms, lengths = tensors["inputs/wav"], tensors["inputs/wav_len"]
    inputs = {
        "input_values": waveforms,
        "attention_mask": (torch.arange(waveforms.shape[1]) < lengths[:, None]).long(),
        "pixel_values": tensors["inputs/image"],
        "image_ids": tensors["inputs/id"],
    }

    def model(padding, *states):
        built = build("hybrid_plus", padding, layers=3, channels=24, branch_config={"dropout": 0.0})
        for state in states:
            assert not built.load_state_dict(state, strict=False).unexpected_keys
        return built

    return {
        "tensors": tensors,
        "facts": facts,
        "initial": initial,
        "trained": trained,
        "inputs": inputs,
        "build": model,
    }


def test_three_training_steps_of_the_whole_model_match_the_original(whole):
    model = whole["build"]("original", whole["initial"]).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, weight_decay=1e-6)
    for step, (rate, loss) in enumerate(zip(whole["facts"]["lr"], whole["facts"]["loss"], strict=True)):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        output = model(**whole["inputs"], return_loss=True, global_step=step)
        output.loss.backward()
        if step == 0:
            expected = under("train_step0_outputs/step0.", whole["tensors"])
            for ours, theirs in (
                ("parallel_embeds", "parallel_audio_feat"),
                ("cascaded_embeds", "cascaded_audio_feat"),
            ):
                assert_near(output[ours], expected[theirs])
            for ours, theirs in (("parallel_loss", "p_cl_loss"), ("quantity_loss", "quantity_loss")):
                assert_near(output[ours], expected[f"loss.{theirs}"])
            parameters = dict(model.named_parameters())
            for name, value in rename_original_weights(under("train_grads/", whole["tensors"])).weights.items():
                assert_near(parameters[name].grad, value, 1e-4)
        torch.nn.utils.clip_grad_norm_(trained, 4)
        optimizer.step()
        assert output.loss.item() == pytest.approx(loss, rel=1e-5)
    state = model.state_dict()
    for name, value in whole["trained"].items():
        assert_near(state[name], value, 1e-4, floor=1e-1 if name.endswith("bias") else 1e-3)


def test_a_batch_of_the_whole_model_matches_the_original_in_the_original_mode(whole):
    model = whole["build"]("original", whole["initial"], whole["trained"]).eval()
    expected = under("outputs/", whole["tensors"])
    with torch.no_grad():
        output = model(**whole["inputs"], return_loss=True, output_hidden_states=True)
    assert output.frame_lengths.tolist() == expected["audio_feat_len"].tolist()
    assert output.keyword_lengths.tolist() == expected["dsample_results.dsample_feats_length"].tolist()
    assert_near(output.hidden_states[0], expected["hidden_states.0"], 1e-4)
    assert_near(output.hidden_states[3], expected["hidden_states.3"], 1e-4)
    assert_near(output.parallel_embeds, expected["parallel_audio_feat"], 1e-4)
    assert_near(output.cascaded_embeds, expected["cascaded_audio_feat"], 1e-4)
    assert_near(output.image_embeds, expected["image_feat"], 1e-4)
    assert_near(output.loss, expected["loss.loss"], 1e-4)


@pytest.mark.parametrize("padding", ["original", "invariant"])
def test_each_utterance_alone_matches_the_original_in_both_modes(whole, padding):
    model = whole["build"](padding, whole["initial"], whole["trained"]).eval()
    waveforms, lengths = whole["inputs"]["input_values"], whole["tensors"]["inputs/wav_len"].tolist()
    for row, length in enumerate(lengths):
        with torch.no_grad():
            output = model(waveforms[row : row + 1, :length])
        expected = under(f"outputs/single.{row}.", whole["tensors"])
        assert output.keyword_lengths.tolist() == expected["keywords_len"].tolist()
        assert_near(output.parallel_embeds, expected["parallel_audio_feat"], 1e-4)
        assert_near(output.cascaded_embeds, expected["cascaded_audio_feat"], 1e-4)


def test_a_batch_equals_each_utterance_alone_in_the_invariant_mode_where_the_original_differs(whole):
    model = whole["build"]("invariant", whole["initial"], whole["trained"]).eval()
    expected = whole["tensors"]
    with torch.no_grad():
        output = model(**whole["inputs"])
    for row in range(len(output.parallel_embeds)):
        assert_near(output.parallel_embeds[row], expected[f"outputs/single.{row}.parallel_audio_feat"][0], 1e-4)
        assert_near(output.cascaded_embeds[row], expected[f"outputs/single.{row}.cascaded_audio_feat"][0], 1e-4)
        assert output.keyword_lengths[row] == expected[f"outputs/single.{row}.keywords_len"].item()
