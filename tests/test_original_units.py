"""Each module computes what the original research code's module computed on the same input.

The arrays under `golden/` hold inputs, weights, outputs and gradients of the original modules.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from speechclip_plus.modeling_speechclip_plus.cif import (
    ContinuousIntegrateAndFire,
    integrate_and_fire,
    keyword_times,
    scale_alphas,
)
from speechclip_plus.modeling_speechclip_plus.keywords import (
    KeywordBatchNorm,
    code_perplexity,
    cosine_similarities,
    quantize_keywords,
)
from speechclip_plus.modeling_speechclip_plus.losses import contrastive_loss
from speechclip_plus.modeling_speechclip_plus.speech_encoder import LayerWeightedSum

GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """The tensors of one file by `case/name`, and its facts by case."""

    def __init__(self, name: str):
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.facts = json.loads(file.metadata()["meta"])
        self.cases = sorted({key.split("/")[0] for key in self.tensors if "/" in key})

    def case(self, name: str) -> dict[str, torch.Tensor]:
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def assert_near(actual, expected, relative=1e-5):
    """Equal within `relative` of the largest expected value."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * max(expected.abs().max().item(), 1e-6))


INTEGRATE = Golden("cif_integrate")


@pytest.mark.parametrize("name", INTEGRATE.cases)
def test_integrate_and_fire_matches_the_original(name):
    case, facts = INTEGRATE.case(name), INTEGRATE.facts[name]
    frames, alphas = case["in.feats"].requires_grad_(), case["in.alpha"].requires_grad_()
    # The original handles the tail only where it has no target, and leaves the residue in the padding elsewhere.
    tail = facts["tail"] and "in.target_lengths" not in case
    keywords, lengths = integrate_and_fire(
        frames,
        alphas,
        threshold=facts["threshold"],
        tail_threshold=0.5 if tail else None,
        keep_residue=not tail,
    )
    assert lengths.tolist() == case["out.dsample_feats_length"].tolist()
    assert_near(keywords, case["out.dsample_feats"])
    if "grad.alpha" in case:
        (keywords * case["cotangent"]).sum().backward()
        assert_near(alphas.grad, case["grad.alpha"], 2e-5)
        assert_near(frames.grad, case["grad.feats"])


MODULE = Golden("cif_module")


@pytest.mark.parametrize("name", ["m0", "m1", "m2", "m3"])
@pytest.mark.parametrize("mode", ["free", "target_noscale", "scaled"])
def test_the_cif_module_matches_the_original(name, mode):
    case, facts = MODULE.case(name), MODULE.facts[f"{name}/free"]
    expected = {key.removeprefix(f"{mode}/"): value for key, value in case.items() if key.startswith(f"{mode}/")}
    cif = ContinuousIntegrateAndFire(
        facts["C"], conv_layers=facts["num_layer"], conv_width=facts["conv_cif_width"], dropout=0, mask_padding=False
    )
    for index, convolution in enumerate(cif.convolutions):
        convolution.load_state_dict({k: case[f"w.conv.{3 * index}.{k}"] for k in ("weight", "bias")})
    cif.weight_projection.load_state_dict({k: case[f"w.weight_proj.1.{k}"] for k in ("weight", "bias")})
    frames = case["in.audio_feat"].clone().requires_grad_()
    mask = torch.arange(facts["S"]) < case["in.lens"][:, None]
    output = cif(frames, mask, expected.get("out.target_len"), scale=mode == "scaled")
    assert_near(output.keywords, expected["out.dsample_feats"])
    assert output.lengths.tolist() == expected["out.dsample_feats_length"].tolist()
    assert_near(output.alphas, expected["out.alpha"])
    assert_near(output.alpha_sums, expected["out.quantity_out"])
    if "grad.audio_feat" in expected:
        ((output.keywords * expected["cotangent"]).sum() + output.alpha_sums.mean()).backward()
        assert_near(frames.grad, expected["grad.audio_feat"], 2e-5)
        assert_near(cif.convolutions[0].weight.grad, expected["grad.conv.0.weight"], 2e-5)
        assert_near(cif.weight_projection.weight.grad, expected["grad.weight_proj.1.weight"], 2e-5)


def test_scaling_gives_exactly_the_target_even_where_float32_sums_would_lose_one():
    torch.manual_seed(0)
    alphas = torch.rand(64, 1500) * 0.3
    targets = torch.randint(1, 76, (64,))
    scaled, lengths = scale_alphas(alphas, targets)
    _, fired = integrate_and_fire(torch.ones(64, 1500, 1), scaled)
    assert lengths.tolist() == targets.tolist() == fired.tolist()


def test_weights_of_zero_give_one_empty_keyword_and_no_nan_where_the_original_divides_by_zero():
    frames, alphas = torch.randn(2, 9, 4), torch.zeros(2, 9, requires_grad=True)
    scaled, lengths = scale_alphas(alphas, torch.tensor([3, 2]))
    keywords, lengths = integrate_and_fire(frames, scaled, lengths=lengths)
    keywords.sum().backward()
    assert lengths.tolist() == [1, 1]
    assert keywords.abs().max() == 0
    assert alphas.grad.isfinite().all()


def test_gradients_flow_through_an_extended_tail_where_the_original_raises():
    alphas = torch.tensor([[0.9, 0.8]], requires_grad=True)  # 1.7: one keyword and a tail of 0.7
    keywords, lengths = integrate_and_fire(torch.tensor([[[1.0], [3.0]]]), alphas, tail_threshold=0.5)
    assert lengths.tolist() == [2]
    keywords[0, 1].sum().backward()
    # The tail collects 0.7 of the second frame, scaled up by 1 / 0.7 without a gradient of its own.
    assert_near(keywords[0, 1], torch.tensor([3.0]))
    assert_near(alphas.grad, torch.tensor([[3 / 0.7, 3 / 0.7]]))


def test_keyword_times_are_where_the_running_sum_crosses_the_threshold():
    alphas = torch.tensor([[0.5, 1.0, 0.5, 0.0], [2.5, 0.2, 0.0, 0.0]])
    times = keyword_times(alphas, torch.tensor([4, 2]), torch.tensor([2, 3]))
    # First row: 1.0 is reached half-way through frame 1, 2.0 at the end of frame 2.
    torch.testing.assert_close(times[0, :2], torch.tensor([[0.0, 1.5], [1.5, 3.0]]))
    assert times[0, 2].tolist() == [0, 0]
    # Second row: a burst fires twice within frame 0; the tail ends with the utterance.
    torch.testing.assert_close(times[1], torch.tensor([[0.0, 0.4], [0.4, 0.8], [0.8, 2.0]]))


QUANTIZER = Golden("quantizer")


@pytest.mark.parametrize("name", [case for case in QUANTIZER.cases if case.startswith("kw")])
def test_quantised_keywords_match_the_original(name):
    case = QUANTIZER.case(name)
    table = case["in.emb"]
    # The original excludes rows 0, 2 and 3 of its vocabulary: padding, start and end.
    allowed = torch.ones(len(table), dtype=torch.bool)
    allowed[[0, 2, 3]] = False
    features = case["in.x"].requires_grad_()
    similarities = cosine_similarities(features, table)
    assert_near(similarities[..., allowed], case["out.cos"][..., allowed])
    keywords = quantize_keywords(features, table, allowed, temperature=0.1, straight_through=name.endswith("train"))
    assert keywords.indices.tolist() == case["out.targets"].squeeze(-1).tolist()
    assert_near(keywords.embeds, case["out.keywords"])
    if "grad.x" in case:
        (keywords.embeds * case["cotangent"]).sum().backward()
        assert_near(features.grad, case["grad.x"])


def test_code_perplexity_matches_the_original():
    case = QUANTIZER.case("vq0_hard1_eval")
    perplexity = code_perplexity(case["out.targets"].squeeze(-1), case["in.x"].shape[-1])
    assert_near(perplexity, case["out.code_perplexity"])


BATCH_NORM = Golden("batch_norm")


@pytest.mark.parametrize("name", ["dynamic", "eachKw_parallel"])
def test_keyword_batch_norm_matches_the_original(name):
    case = BATCH_NORM.case(name)
    batch, places, size = case["in.x"].shape
    norm = KeywordBatchNorm(size, None if name == "dynamic" else places)
    norm.load_state_dict({k.removeprefix("w_init.bn_layer."): v for k, v in case.items() if k.startswith("w_init.")})
    features = case["in.x"].requires_grad_()
    norm.train()
    output = norm(features)
    assert_near(output, case["train.out"])
    (output * case["cotangent"]).sum().backward()
    assert_near(features.grad, case["train.grad.x"], 2e-5)
    assert_near(norm.weight.grad, case["train.grad.bn_layer.weight"])
    for key, value in norm.state_dict().items():
        assert_near(value.float(), case[f"w_after.bn_layer.{key}"].float())
    assert_near(norm.eval()(case["in.x"]), case["eval.out"])


def test_padding_stays_out_of_the_batch_norms_statistics():
    features = torch.randn(3, 4, 5)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    ours, plain = KeywordBatchNorm(5), torch.nn.BatchNorm1d(5)
    padded = features.masked_fill(~mask[:, :, None], 1e3)
    assert_near(ours(padded, mask)[mask], plain(features[mask]))
    assert_near(ours.running_var, plain.running_var)


def test_places_start_from_their_own_dimensions_statistics_where_the_original_scrambles_them():
    table = torch.randn(50, 3) * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([0.0, 5.0, 9.0])
    norm = KeywordBatchNorm(3, num_places=2)
    weight, bias = norm.initial_values(table, scale=1.0)
    norm.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    output = norm.train()(torch.randn(400, 2, 3))  # standardised, then scaled and shifted place by place
    assert_near(output.mean(dim=0), table.mean(dim=0).expand(2, 3), 1e-4)
    assert_near(output.std(dim=0), table.std(dim=0).expand(2, 3), 1e-2)


CONTRASTIVE = Golden("contrastive")


@pytest.mark.parametrize("name", CONTRASTIVE.cases)
def test_the_contrastive_loss_matches_the_original(name):
    case, scale = CONTRASTIVE.case(name), CONTRASTIVE.facts[name]
    speech, images = case["in.a"].requires_grad_(), case["in.b"].requires_grad_()
    loss = contrastive_loss(scale * speech @ images.T, case["in.id"])
    loss.backward()
    assert_near(loss, case["out.loss"])
    assert_near(speech.grad, case["grad.a"], 2e-5)
    assert_near(images.grad, case["grad.b"], 2e-5)


def test_the_contrastive_loss_is_finite_at_scales_where_the_original_overflows():
    embeds = F.normalize(torch.randn(300, 8), dim=-1)
    assert contrastive_loss(1000 * embeds @ embeds.T).isfinite()


WEIGHTED_SUM = Golden("weighted_sum")


@pytest.mark.parametrize("name", WEIGHTED_SUM.cases)
def test_the_weighted_sum_of_layers_matches_the_original(name):
    case = WEIGHTED_SUM.case(name)
    module = LayerWeightedSum(4, normalize=name.endswith("norm1"))
    module.load_state_dict({"weight": case["w.weights"]})
    states = case["in.x"].requires_grad_()
    output = module(list(states))
    (output * case["cotangent"]).sum().backward()
    assert_near(output, case["out"])
    assert_near(states.grad, case["grad.x"], 2e-5)
    assert_near(module.weight.grad, case["grad.weights"], 2e-5)
