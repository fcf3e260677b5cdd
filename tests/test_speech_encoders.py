"""Speech encoders that read log-mel features, through the ordinary calls: training, batching, keywords, saving."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel, SpeechClipPlusProcessor
from speechclip_plus.modeling_speechclip_plus.embedding import embed_audio
from speechclip_plus.trainer.gradient_cache import backward_in_chunks
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus.trainer.trainer_speechclip_plus import SpeechClipPlusTrainer
from speechclip_plus.trainer.training_arguments import SpeechClipPlusTrainingArguments

WHISPER = WhisperConfig(
    vocab_size=60,
    num_mel_bins=8,
    d_model=16,
    encoder_layers=2,
    encoder_attention_heads=2,
    encoder_ffn_dim=32,
    dropout=0.1,
    encoder_layerdrop=0.1,
    decoder_layers=1,
    decoder_attention_heads=2,
    decoder_ffn_dim=16,
    max_source_positions=100,  # 2 s; the published ones read 30 s
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
)
W2V_BERT = Wav2Vec2BertConfig(
    vocab_size=None,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    feature_projection_input_dim=16,
    conv_depthwise_kernel_size=5,
    left_max_position_embeddings=8,
    right_max_position_embeddings=4,
    layerdrop=0.1,
)
SPEECH = {
    "whisper": (WHISPER, WhisperModel, WhisperFeatureExtractor(feature_size=8, chunk_length=2)),
    "w2v-bert": (W2V_BERT, Wav2Vec2BertModel, SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8)),
}


@pytest.fixture(params=SPEECH, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(kind, tmp_path_factory):
    """A folder as the Hub has it: an encoder, whole, with its feature extractor."""
    config, model_class, feature_extractor = SPEECH[kind]
    folder = tmp_path_factory.mktemp(kind)
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    feature_extractor.save_pretrained(folder)
    return folder


def make_model(backbone, **values):
    config = SpeechClipPlusConfig(
        model_variant="hybrid_plus",
        branch_config={"num_attention_heads": 2, "dropout": 0.0},
        cif_config={"dropout": 0.0, "frames_per_keyword": 10},
        **values,
    )
    torch.manual_seed(0)
    return SpeechClipPlusModel.from_backbones(backbone, tiny_backbone("clip"), config=config)


@pytest.fixture
def model(backbone):
    return make_model(backbone)


@pytest.fixture(scope="module")
def processor(backbone):
    return SpeechClipPlusProcessor.from_backbones(backbone, tiny_backbone("clip"), do_normalize=True)


def make_audio(*lengths):
    generator = np.random.default_rng(0)
    return [generator.uniform(-0.5, 0.5, length).astype(np.float32) for length in lengths]


def make_pairs(processor):
    inputs = processor(audio=make_audio(20_000, 9_000, 14_321), sampling_rate=16_000)
    torch.manual_seed(1)
    return {**inputs, "pixel_values": torch.randn(3, 3, 64, 64), "image_ids": torch.tensor([1, 2, 3])}


def test_an_utterance_embeds_the_same_alone_and_beside_a_longer_one(model, processor):
    long, short = make_audio(24_000, 9_000)
    with torch.no_grad():
        together = model(**processor(audio=[long, short], sampling_rate=16_000))
        alone = model(**processor(audio=short, sampling_rate=16_000))
    assert together.frame_lengths.tolist()[1] == alone.frame_lengths.tolist()[0]
    assert together.keyword_lengths[1] == alone.keyword_lengths[0]
    torch.testing.assert_close(together.parallel_embeds[1:], alone.parallel_embeds, atol=2e-5, rtol=0)
    torch.testing.assert_close(together.cascaded_embeds[1:], alone.cascaded_embeds, atol=2e-5, rtol=0)


def test_frames_are_20_ms_long(model, processor):
    output = model(**processor(audio=make_audio(16_000, 24_000), sampling_rate=16_000), output_hidden_states=True)
    assert all(abs(n - m) <= 1 for n, m in zip(output.frame_lengths.tolist(), (50, 75), strict=True))
    assert output.alphas.shape[1] == output.hidden_states[0].shape[1] == output.frame_lengths.max()
    assert len(output.hidden_states) == 3


def test_the_branch_trains_and_the_encoder_stays(model, processor):
    before = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("speech_encoder.")}
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**make_pairs(processor), return_loss=True).loss
        loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == name.startswith(("speech_encoder.", "clip.")), name
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("chunk", [None, 2])
def test_the_trainer_trains_and_evaluates(model, processor, chunk, tmp_path):
    generator = np.random.default_rng(0)
    rows = [
        {
            "audio": {"array": generator.uniform(-0.5, 0.5, 9_000 + 2_000 * number), "sampling_rate": 16_000},
            "image": Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)),
            "image_id": number,
            "text": "a red circle",
            "caption_id": str(number),
        }
        for number in range(4)
    ]
    dataset = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False))
    arguments = SpeechClipPlusTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        warmup_steps=1,
        per_device_train_batch_size=4,
        max_audio_samples=12_000,
        gradient_cache_chunk=chunk,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SpeechClipPlusTrainer(
        model=model, args=arguments, train_dataset=dataset, eval_dataset=dataset, processing_class=processor
    )
    trainer.train()
    assert trainer.evaluate()["eval_utterances"] == 4


def test_an_unfrozen_encoder_trains(model, processor):
    model.set_trainable(speech_encoder=True)
    model.train()
    model(**make_pairs(processor), return_loss=True).loss.backward()
    names = {name for name, parameter in model.speech_encoder.named_parameters() if parameter.grad is not None}
    assert any("layers.0." in name for name in names)


def test_dropout_of_a_frozen_encoder_can_be_switched_on(backbone, processor):
    model = make_model(backbone, speech_encoder_dropout=True).train()
    inputs = processor(audio=make_audio(9_000), sampling_rate=16_000)
    torch.manual_seed(0)
    first, second = (model.encode_speech_frames(**inputs)[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_gradients_in_chunks_are_those_of_the_whole_batch(model, processor):
    pairs = make_pairs(processor)
    gradients = []
    model.train()
    for chunk_size in (None, 2):
        model.zero_grad()
        if chunk_size is None:
            model(**pairs, return_loss=True).loss.backward()
        else:
            backward_in_chunks(model, pairs, chunk_size)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_keywords_have_texts_and_times(model, processor):
    inputs = processor(audio=make_audio(24_000, 9_000), sampling_rate=16_000)
    rows = model.extract_keywords(**inputs, tokenizer=processor)
    for row, seconds in zip(rows, (1.5, 0.5625), strict=True):
        assert row[0].start == 0 and row[0].text
        assert [keyword.start for keyword in row[1:]] == [keyword.end for keyword in row[:-1]]
        assert seconds / 2 < row[-1].end <= seconds + 0.02


def test_a_model_and_its_processor_are_saved_and_loaded_by_the_auto_classes(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = AutoModel.from_pretrained(tmp_path).eval(), AutoProcessor.from_pretrained(tmp_path)
    audio = make_audio(20_000, 9_000)
    expected = embed_audio(model, processor, audio, sampling_rate=16_000)
    torch.testing.assert_close(embed_audio(loaded, loaded_processor, audio, sampling_rate=16_000), expected)


def test_the_trained_part_alone_loads_with_its_backbone(model, processor, tmp_path):
    model.save_pretrained(tmp_path, save_backbones=False)
    loaded = SpeechClipPlusModel.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, msg=name)


def test_kept_hidden_states_stand_for_their_audio(model, processor):
    inputs = processor(audio=make_audio(20_000, 9_000), sampling_rate=16_000)
    states, lengths = model.encode_speech_frames(**inputs)
    torch.testing.assert_close(
        model(speech_hidden_states=states, frame_lengths=lengths).speech_embeds, model(**inputs).speech_embeds
    )


def test_audio_that_the_encoder_cannot_read_is_named(kind, processor):
    refused = {"whisper": (40_000, "2.5 s are more than the 2 s"), "w2v-bert": (500, "500 samples at 16 kHz give no")}
    length, message = refused[kind]
    with pytest.raises(ValueError, match=rf"audio\[1\]: {message}"):
        processor(audio=make_audio(9_000, length), sampling_rate=16_000)


def test_waveforms_in_place_of_features_are_refused(model):
    with pytest.raises(ValueError, match=r"of shape \(B, (T, F|F, T)\), but are torch.float32 of \(2, 8000\)"):
        model(torch.randn(2, 8000))
