"""Segmentation by feature change, and the loss of the expected tokens."""

import pytest
import torch
from torch.testing import assert_close

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel
from speechclip_plus.modeling_speechclip_plus.cif import FeatureChangeSegmentation, keyword_times

CHANGED = {"cif_config": {"segmentation": "feature_change", "frames_per_keyword": 5}}


def make_model(**overrides):
    torch.manual_seed(0)
    return SpeechClipPlusModel(SpeechClipPlusConfig.from_preset("hybrid_plus-tiny", **(CHANGED | overrides)))


def make_pairs(model, lengths=(8000, 5000, 6400)):
    torch.manual_seed(1)
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveforms[row, :length] = torch.randn(length)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    images = torch.randn(len(lengths), model.config.projection_dim)
    return {"input_values": waveforms, "attention_mask": mask.long(), "image_embeds": images}


def test_keywords_begin_where_the_states_change_and_are_the_mean_of_their_frames():
    values = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))[[0, 1, 0]]  # two changes of one size
    durations = [12, 7, 21]
    states = torch.cat([value.expand(count, -1) for value, count in zip(values, durations, strict=True)])[None]
    states = states + 0.01 * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    lengths, targets = torch.tensor([40]), torch.tensor([3])
    output = FeatureChangeSegmentation()(states, states, lengths, targets)
    spans = keyword_times(output.alphas, lengths, output.lengths)
    assert_close(spans[0, :-1, 1], torch.tensor([12.0, 19.0]), atol=2, rtol=0)
    assert_close(spans[0, :, 0], torch.cat([torch.zeros(1), spans[0, :-1, 1]]))
    assert torch.nn.functional.cosine_similarity(output.keywords[0], values).min() > 0.95
    assert_close(output.alpha_sums, torch.tensor([3.0]), atol=1e-4, rtol=0)


def test_keywords_and_times_are_the_same_alone_and_beside_a_longer_utterance():
    model = make_model().eval()
    pairs = make_pairs(model)
    together = model.extract_keywords(pairs["input_values"], pairs["attention_mask"])
    for row, length in enumerate((8000, 5000, 6400)):
        alone = model.extract_keywords(pairs["input_values"][row : row + 1, :length])[0]
        assert [keyword.id for keyword in alone] == [keyword.id for keyword in together[row]]
        for one, other in zip(alone, together[row], strict=True):
            assert (one.start, one.end) == pytest.approx((other.start, other.end), abs=1e-3)


def test_there_are_as_many_keywords_as_wanted_in_training_and_evaluation():
    model = make_model()
    pairs = make_pairs(model)
    for mode in (True, False):
        output = model.train(mode)(**pairs)
        assert output.keyword_lengths.tolist() == output.target_lengths.tolist()


def test_runs_of_one_token_are_read_as_one_keyword_with_their_spans_joined():
    model = make_model().eval()
    pairs = make_pairs(model)
    fired = model(**pairs)
    # A bias that outweighs the features lets most keywords of the untrained model snap to one token.
    token = int(fired.keyword_ids[0, 0])
    row = model.vocabulary_ids.tolist().index(token)
    model.keyword_norm.bias.data.add_(2 * model.get_input_embeddings().weight[row].detach())
    fired = model(**pairs)
    model.config.keyword_config.merge_repeats = True
    merged = model(**pairs)
    for number, (length, merged_length) in enumerate(zip(fired.keyword_lengths, merged.keyword_lengths, strict=True)):
        runs = []
        for token, span in zip(fired.keyword_ids[number, :length].tolist(), fired.keyword_spans[number], strict=False):
            if runs and runs[-1][0] == token:
                runs[-1][2] = span[1].item()
            else:
                runs.append([token, *span.tolist()])
        assert merged.keyword_ids[number, :merged_length].tolist() == [run[0] for run in runs]
        assert_close(merged.keyword_spans[number, :merged_length], torch.tensor([run[1:] for run in runs]))
        assert merged.keyword_ids[number, merged_length:].eq(-1).all()
        assert merged.keyword_spans[number, merged_length:].eq(0).all()
    assert merged.keyword_lengths.sum() < fired.keyword_lengths.sum()
    assert model.train()(**pairs).keyword_lengths.tolist() == fired.keyword_lengths.tolist()


def test_every_trained_weight_gets_a_gradient_and_a_saved_model_computes_the_same(tmp_path):
    model = make_model(loss_config={"expected_weight": 1.0}).train()
    pairs = make_pairs(model)
    output = model(**pairs, return_loss=True)
    weights = model.config.loss_config
    total = output.parallel_loss + output.cascaded_loss + output.expected_loss
    assert_close(output.loss, total + weights.quantity_weight * output.quantity_loss)
    output.loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, grad in trained.items() if grad is None] == []
    assert not [name for name in trained if name.startswith("cif.")]
    model.eval().save_pretrained(tmp_path)
    loaded = SpeechClipPlusModel.from_pretrained(tmp_path).eval()
    assert_close(loaded(**pairs).cascaded_embeds, model(**pairs).cascaded_embeds)
    assert model(**pairs).expected_embeds is None


def test_expected_tokens_give_the_gradient_that_the_quantiser_passes_on():
    from speechclip_plus.modeling_speechclip_plus.keywords import expected_token_embeds, quantize_keywords

    torch.manual_seed(0)
    table, allowed, slope = torch.randn(9, 6), torch.ones(9, dtype=torch.bool), torch.randn(2, 3, 6)
    grads = []
    for embed in (
        lambda x: quantize_keywords(x, table, allowed).embeds,
        lambda x: expected_token_embeds(x, table, allowed),
    ):
        features = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(2), requires_grad=True)
        (embed(features) * slope).sum().backward()
        grads.append(features.grad)
    assert_close(*grads)


@pytest.mark.parametrize(
    "overrides", [{"model_variant": "cascaded_plus"}, {"cif_config": {"target_length": "caption"}}]
)
def test_what_feature_change_needs_is_said(overrides):
    cif = {**CHANGED["cif_config"], **overrides.pop("cif_config", {})}
    with pytest.raises(ValueError, match="feature_change' needs model_variant='hybrid_plus'"):
        SpeechClipPlusConfig.from_preset("hybrid_plus-tiny", cif_config=cif, **overrides)
