"""Train the tiny HuBERT on synthesised speech: `python scripts/tiny_backbones/train_hubert.py OUT`.

The model is a plain `transformers.HubertModel`. Its targets are HuBERT-like frame labels under span masking, but known
instead of clustered, since the speech is synthesised: the phoneme of each frame (from the middle layer), the word of
each frame and the content words around it (from the last layer). So that the last layers also carry how the words of a
sentence belong together, two captions of one scene are drawn together, against look-alike scenes, by their mean frame.
No picture is used.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from speech_pool import FUNCTION_WORDS, Utterance, build_pool, load_shard, word_vocabulary
from torch import Tensor, nn
from torch.nn import functional
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor
from transformers.masking_utils import create_bidirectional_mask

from speechclip_plus.trainer.spoken_scenes.espeak import SAMPLING_RATE

OFFSETS = (-3, -2, -1, 0, 1, 2, 3)
"""Places of the content words that each frame predicts, relative to the frame's own content word."""
FRAME = 320  # samples
MAX_SAMPLES = 4 * SAMPLING_RATE


def hubert_config() -> HubertConfig:
    """Configuration of the tiny HuBERT: 320 samples a frame, each frame sees 380 samples, no dropout anywhere."""
    return HubertConfig(
        hidden_size=160,
        num_hidden_layers=4,
        num_attention_heads=5,
        intermediate_size=320,
        conv_dim=(64, 128, 160),
        conv_kernel=(80, 8, 2),
        conv_stride=(20, 8, 2),
        conv_bias=False,
        feat_extract_norm="group",
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=10,
        vocab_size=32,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
    )


def frame_lengths(config: HubertConfig, samples: Tensor) -> Tensor:
    """Frames that the convolutions make of `samples` (B,) samples."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


class MaskedGroupNorm(nn.Module):
    """The first layer's per-channel norm over the valid places only, so that padding changes nothing."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.valid: Tensor | None = None  # (B, 1, places), 1 at valid ones

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise (B, C, places)."""
        assert self.valid is not None
        count = self.valid.sum(-1, keepdim=True)
        hidden = hidden * self.valid
        mean = hidden.sum(-1, keepdim=True) / count
        variance = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True) ** 2 / count - mean**2
        scale = torch.rsqrt(variance.clamp(min=0) + self.eps) * self.weight[:, None]
        return hidden * scale + (self.bias[:, None] - mean * scale)


def gabor_filters(channels: int, width: int) -> Tensor:
    """A start for the first convolution: cosine and sine pairs (channels, 1, width) on a mel scale."""
    mels = np.linspace(2595 * math.log10(1 + 80 / 700), 2595 * math.log10(1 + 7400 / 700), channels // 2)
    hertz = 700 * (10 ** (mels / 2595) - 1)
    time_axis = (np.arange(width) - (width - 1) / 2) / SAMPLING_RATE
    phase = 2 * math.pi * hertz[:, None] * time_axis
    filters = np.stack([np.cos(phase), np.sin(phase)], 1).reshape(channels, width) * np.hanning(width + 2)[1:-1]
    filters -= filters.mean(1, keepdims=True)
    return torch.tensor(filters / np.linalg.norm(filters, axis=1, keepdims=True), dtype=torch.float32)[:, None]


class PretrainingModel(nn.Module):
    """The tiny HuBERT with the heads of its pre-training, which are thrown away afterwards."""

    def __init__(self, phonemes: int, words: int) -> None:
        super().__init__()
        self.config = hubert_config()
        hubert = HubertModel(self.config)
        hubert.feature_extractor.conv_layers[0].conv.weight.data = gabor_filters(
            self.config.conv_dim[0], self.config.conv_kernel[0]
        )
        # The first layer stays as it is set here, a filterbank with a norm: its backward pass over 800 places a
        # second would cost as much as two transformer layers.
        hubert.feature_extractor.conv_layers[0].requires_grad_(False)
        self.norm = MaskedGroupNorm(hubert.feature_extractor.conv_layers[0].layer_norm)
        self.hubert = hubert
        width = self.config.hidden_size
        self.mask_vector = nn.Parameter(0.1 * torch.randn(width))
        self.phoneme_head = nn.Linear(width, phonemes)
        self.word_head = nn.Linear(width, words)
        self.context_head = nn.Linear(width, len(OFFSETS) * 96)
        self.context_words = nn.Linear(96, words)
        self.sentence_head = nn.Linear(width, 128)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def encode(self, waveforms: Tensor, lengths: Tensor, masked: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return hidden states, L+1 of (B, T, D), and the frames' mask (B, T).

        Args:
            waveforms: (B, samples), zero-padded.
            lengths: (B,) valid samples.
            masked: (B, T) bool, frames to replace by the mask vector.
        """
        hubert = self.hubert
        filterbank, *convolutions = hubert.feature_extractor.conv_layers
        with torch.no_grad():
            hidden = filterbank.conv(waveforms[:, None])
            places = (lengths - self.config.conv_kernel[0]) // self.config.conv_stride[0] + 1
            self.norm.valid = (torch.arange(hidden.shape[-1]) < places[:, None])[:, None].float()
            hidden = filterbank.activation(self.norm(hidden))
        for layer in convolutions:
            hidden = layer.activation(layer.conv(hidden))
        hidden = hubert.feature_projection(hidden.transpose(1, 2))
        frames = frame_lengths(self.config, lengths)
        valid = torch.arange(hidden.shape[1]) < frames[:, None]
        if masked is not None:
            hidden = torch.where(masked[..., None], self.mask_vector, hidden)
        hidden = hidden * valid[..., None]
        encoder = hubert.encoder
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=valid)
        states = [encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))]
        for layer in encoder.layers:
            states.append(layer(states[-1], attention_mask=mask))
        return states, valid

    def hubert_as_shipped(self) -> HubertModel:
        """The encoder with transformers' own norm, which is the same for an utterance without padding."""
        shipped = HubertModel(self.config)
        shipped.load_state_dict(self.hubert.state_dict())
        return shipped.eval()


@dataclass
class Batch:
    """Waveforms (B, samples), their lengths, and labels; -100 where there is none."""

    waveforms: Tensor
    lengths: Tensor
    phonemes: Tensor  # (B, T)
    words: Tensor  # (B, T)
    context: Tensor  # (B, T, len(OFFSETS))
    classes: Tensor  # (B,) scene number, -1 for other speech


class BatchMaker:
    """Cuts the pool into batches of similar length and augments them."""

    def __init__(self, phonemes: list[str], words: list[str], seed: int) -> None:
        self.phoneme_ids = {name: index for index, name in enumerate(phonemes)}
        self.word_ids = {name: index for index, name in enumerate(words)}
        self.content = {index for name, index in self.word_ids.items() if name not in FUNCTION_WORDS}
        self.end = len(words)  # the class of "before the first or after the last content word"
        self.rng = np.random.default_rng(seed)

    def plan(self, pool: list[Utterance], size: int) -> list[list[int]]:
        """One pass over the pool: indices of batches, groups kept whole, shuffled."""
        groups: dict[int, list[int]] = {}
        for index, utterance in enumerate(pool):
            groups.setdefault(utterance.group if utterance.group >= 0 else -index - 1, []).append(index)
        scenes = [members for key, members in groups.items() if key >= 0]
        others = [members for key, members in groups.items() if key < 0]
        batches: list[list[int]] = []

        def length(members: list[int]) -> float:
            return max(len(pool[i].samples) for i in members) * self.rng.uniform(0.93, 1.07)

        scenes.sort(key=length)
        others.sort(key=length)
        others_taken = 0
        start = 0
        while start < len(scenes):
            batch: list[int] = []
            while start < len(scenes) and len(batch) < 0.8 * size:
                batch += scenes[start]
                start += 1
            wanted = round(len(others) * start / len(scenes))
            batch += [i for members in others[others_taken:wanted] for i in members]
            others_taken = wanted
            batches.append(batch)
        self.rng.shuffle(batches)
        return batches

    def make(self, utterances: list[Utterance], augment: bool = True) -> Batch:
        """Build a batch."""
        rng = self.rng
        waves, rates = [], []
        for utterance in utterances:
            wave = utterance.samples.astype(np.float32) / 32768
            rate = float(np.exp(rng.uniform(-0.15, 0.15))) if augment else 1.0
            if augment:
                places = np.arange(0, len(wave) - 1, rate)
                wave = np.interp(places, np.arange(len(wave)), wave).astype(np.float32)
            lead = int(rng.integers(0, 1600)) if augment and rng.random() < 0.3 else 0
            wave = np.pad(wave, (lead, int(rng.integers(0, 1600)) if augment and rng.random() < 0.3 else 0))
            waves.append(wave[:MAX_SAMPLES])
            rates.append((rate, lead))
        lengths = np.array([len(wave) for wave in waves])
        padded = np.zeros((len(waves), lengths.max()), np.float32)
        for row, wave in zip(padded, waves, strict=True):
            row[: len(wave)] = wave
        if augment:
            padded = distort(padded, rng)
        mask = np.arange(padded.shape[1]) < lengths[:, None]
        mean = (padded * mask).sum(1, keepdims=True) / lengths[:, None]
        padded = (padded - mean) * mask
        padded /= np.sqrt((padded**2).sum(1, keepdims=True) / lengths[:, None] + 1e-7)
        if augment:  # the norm over the utterance is the processor's; a caller may leave it out
            padded *= np.exp(rng.uniform(-2.5, 0.5, (len(waves), 1))) ** (rng.random((len(waves), 1)) < 0.3)
        lengths_tensor = torch.tensor(lengths)
        frames = frame_lengths(hubert_config(), lengths_tensor)
        total = int(frames.max())
        phonemes = np.full((len(waves), total), -100)
        words = np.full((len(waves), total), -100)
        context = np.full((len(waves), total, len(OFFSETS)), -100)
        centres = (np.arange(total) * FRAME + 190) / SAMPLING_RATE
        for row, (utterance, (rate, lead)) in enumerate(zip(utterances, rates, strict=True)):
            seconds = (centres[: frames[row]] - lead / SAMPLING_RATE) * rate
            phonemes[row, : len(seconds)] = self._labels(
                seconds, utterance.phoneme_starts, [self.phoneme_ids.get(p, 0) for p in utterance.phonemes]
            )
            ids = [self.word_ids.get(word, -100) for word in utterance.words]
            words[row, : len(seconds)] = self._labels(seconds, utterance.word_starts, ids)
            content = [i for i, word in enumerate(ids) if word in self.content]
            if content:
                order = np.searchsorted(utterance.word_starts[content], seconds, side="right") - 1
                padded_ids = np.array([self.end] * 4 + [ids[i] for i in content] + [self.end] * 4)
                for column, offset in enumerate(OFFSETS):
                    context[row, : len(seconds), column] = padded_ids[
                        np.clip(order + offset + 4, 0, len(padded_ids) - 1)
                    ]
        classes = [u.group * 8 + u.scene if u.group >= 0 else -1 for u in utterances]
        return Batch(
            torch.from_numpy(padded.astype(np.float32)), lengths_tensor, torch.tensor(phonemes), torch.tensor(words),
            torch.tensor(context), torch.tensor(classes),
        )  # fmt: skip

    @staticmethod
    def _labels(seconds: np.ndarray, starts: np.ndarray, ids: list[int]) -> np.ndarray:
        index = np.searchsorted(starts, seconds, side="right") - 1
        return np.where(index < 0, -100, np.array(ids)[np.clip(index, 0, None)])


def distort(waveforms: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random equaliser, now and then some reverberation, and coloured noise at 5 to 40 dB, on (B, samples)."""
    count, length = waveforms.shape
    size = 1 << (length - 1).bit_length() if length & (length - 1) else length
    size = min(size, -(-length // 8000) * 8000 + 2000) if size > length else size + 2000
    spectrum = np.fft.rfft(waveforms, size).astype(np.complex64)
    octaves = np.log2(np.linspace(0, SAMPLING_RATE / 2, spectrum.shape[1]) / 100 + 1)
    knots = np.linspace(0, octaves[-1], 7)
    for row in range(count):
        spectrum[row] *= 10 ** (np.interp(octaves, knots, rng.normal(0, 4, 7)) / 20).astype(np.float32)
        if rng.random() < 0.15:
            tail = int(rng.uniform(0.03, 0.15) * SAMPLING_RATE)
            echo = rng.standard_normal(tail) * np.exp(-6 * np.arange(tail) / tail) * rng.uniform(0.02, 0.12)
            echo[0] = 1
            spectrum[row] *= np.fft.rfft(echo, size).astype(np.complex64)
        if rng.random() < 0.6:
            power = np.abs(spectrum[row]) ** 2
            noise = (rng.standard_normal(len(octaves)) + 1j * rng.standard_normal(len(octaves))).astype(np.complex64)
            noise *= 10 ** (-octaves * rng.uniform(0, 6) / 20)
            level = 10 ** (-rng.uniform(5, 40) / 20) * math.sqrt(power.sum() / (np.abs(noise) ** 2).sum())
            spectrum[row] += noise * level
    return np.fft.irfft(spectrum, size)[:, :length].astype(np.float32)


def span_mask(valid: Tensor, rng: np.random.Generator, share: float, span: int = 8) -> Tensor:
    """Choose spans of frames to mask: (B, T) bool, about `share` of the valid frames."""
    starts = torch.from_numpy(rng.random(valid.shape) < share / span)
    masked = starts.clone()
    for shift in range(1, span):
        masked[:, shift:] |= starts[:, :-shift]
    return masked & valid


def losses(model: PretrainingModel, batch: Batch, rng: np.random.Generator, mask_share: float) -> dict[str, Tensor]:
    """The parts of the loss and the accuracies of one batch."""
    frames = frame_lengths(model.config, batch.lengths)
    valid = torch.arange(batch.words.shape[1]) < frames[:, None]
    masked = span_mask(valid, rng, mask_share) if mask_share else None
    states, _ = model.encode(batch.waveforms, batch.lengths, masked)
    middle, last = states[len(states) // 2], states[-1]
    phoneme_logits = model.phoneme_head(middle[valid])
    phoneme_labels = batch.phonemes[valid]
    labelled = batch.words[valid] >= 0
    word_logits = model.word_head(last[valid][labelled])
    word_labels = batch.words[valid][labelled]
    context_labels = batch.context[valid]
    # Context is asked of every seventh frame: the neighbours are the same all over a word.
    chosen = torch.from_numpy(rng.random(len(context_labels)) < 0.15) & (context_labels[:, 0] >= 0)
    around = model.context_head(last[valid][chosen]).unflatten(-1, (len(OFFSETS), -1))
    context_logits = model.context_words(functional.gelu(around))
    parts = {
        "phoneme": functional.cross_entropy(phoneme_logits, phoneme_labels, ignore_index=-100),
        "word": functional.cross_entropy(word_logits, word_labels),
        "context": functional.cross_entropy(context_logits.flatten(0, 1), context_labels[chosen].flatten()),
    }
    scenes = batch.classes >= 0
    weights = valid[scenes].float()[..., None]
    pooled = (last[scenes] * weights).sum(1) / weights.sum(1)
    sentence = functional.normalize(model.sentence_head(pooled), dim=-1)
    similarity = sentence @ sentence.T * model.log_scale.exp().clamp(max=50)
    own = torch.eye(len(sentence), dtype=torch.bool)
    same = (batch.classes[scenes][:, None] == batch.classes[scenes]) & ~own
    log_share = similarity.masked_fill(own, -1e4).log_softmax(-1)
    parts["sentence"] = -(log_share * same).sum(-1).div(same.sum(-1).clamp(min=1)).mean()
    with torch.no_grad():
        parts["phoneme_accuracy"] = (phoneme_logits.argmax(-1) == phoneme_labels)[phoneme_labels >= 0].float().mean()
        parts["word_accuracy"] = (word_logits.argmax(-1) == word_labels).float().mean()
        parts["context_accuracy"] = (context_logits.argmax(-1) == context_labels[chosen]).float().mean()
        nearest = similarity.masked_fill(own, -1e4).argmax(-1)
        parts["sentence_accuracy"] = same[torch.arange(len(same)), nearest].float().mean()
    return parts


def learning_rate(step: int, steps: int, decay_steps: int, peak: float, warmup: int = 60) -> float:
    """Warm-up, a constant stretch, and a linear decay to 2 % over the last `decay_steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * max(0.02, min(1.0, (steps - step) / max(1, decay_steps)))


def train(arguments: argparse.Namespace) -> None:
    """Train, with checkpoints to continue from, and write the folder of the model."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    work = Path(arguments.work)
    if not arguments.pool_is_complete:
        build_pool(work / "pool", arguments.groups, arguments.others, arguments.seed, arguments.threads)
    shards = sorted((work / "pool").glob("*.pkl"))
    pool = [utterance for path in shards for utterance in load_shard(path)]
    phonemes_path = work / "phonemes.json"
    if not phonemes_path.exists():
        phonemes_path.write_text(json.dumps(sorted({p for utterance in pool for p in utterance.phonemes})))
    phonemes, words = json.loads(phonemes_path.read_text()), word_vocabulary()
    model = PretrainingModel(len(phonemes), len(words) + 1)
    decayed = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    others = [p for p in model.parameters() if p.ndim <= 1 and p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
        lr=arguments.learning_rate, betas=(0.9, 0.98),
    )  # fmt: skip
    step = 0
    if arguments.resume:
        state = torch.load(arguments.resume, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    maker = BatchMaker(phonemes, words, arguments.seed + step)
    size = sum(p.numel() for p in model.hubert.parameters())
    print(f"{len(pool)} utterances, {size:,} parameters, steps {step} to {arguments.steps}", flush=True)
    batches: list[list[int]] = []
    shown: dict[str, float] = {}
    begun, begun_step = time.monotonic(), step
    seen = 0
    while step < arguments.steps:
        if not batches:
            new = sorted((work / "pool").glob("*.pkl"))  # the pool may still grow
            pool += [utterance for path in new[len(shards) :] for utterance in load_shard(path)]
            shards = new
            batches = maker.plan(pool, arguments.batch)
        batch = maker.make([pool[index] for index in batches.pop()])
        seen += len(batch.lengths)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.decay_steps, arguments.learning_rate)
        parts = losses(model, batch, maker.rng, arguments.mask_share if step % 2 else 0.0)
        sentence_weight = arguments.sentence_weight * min(1.0, max(0.0, (step - 100) / 200))
        loss = parts["phoneme"] + parts["word"] + 2.0 * parts["context"] + sentence_weight * parts["sentence"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        step += 1
        for name, value in parts.items():
            shown[name] = 0.95 * shown.get(name, value.item()) + 0.05 * value.item()
        if step % 10 == 0:
            rate = seen / (time.monotonic() - begun)
            left = (time.monotonic() - begun) / (step - begun_step) * (arguments.steps - step) / 60
            numbers = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
            print(f"step {step} ({rate:.1f} utterances/s, {left:.0f} min left): {numbers}", flush=True)
        if step % arguments.save_every == 0 or step == arguments.steps:
            temporary = work / "checkpoint.tmp"
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)
            os.replace(temporary, work / f"checkpoint-{'final' if step == arguments.steps else 'stable'}.pt")
    write_model(model, Path(arguments.output))


def write_model(model: PretrainingModel, output: Path) -> None:
    """Write config, fp16 weights and the feature extractor's settings, keeping a README.md that is there."""
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.hubert_as_shipped().half().save_pretrained(temporary)
    Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=SAMPLING_RATE, padding_value=0.0, do_normalize=True, return_attention_mask=True
    ).save_pretrained(temporary)
    (temporary / "model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner alone
    if (output / "README.md").exists():
        shutil.copy(output / "README.md", temporary / "README.md")
    shutil.rmtree(output, ignore_errors=True)
    os.replace(temporary, output)
    print(f"wrote {output}: {sum(f.stat().st_size for f in output.iterdir()) / 1e6:.2f} MB", flush=True)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="folder to write the model to")
    parser.add_argument("--work", default="tiny_hubert_work", help="folder for speech and checkpoints (about 3 GB)")
    parser.add_argument("--groups", type=int, default=3000, help="groups of up to 8 captions in the speech pool")
    parser.add_argument("--others", type=int, default=6000, help="word sequences in the speech pool")
    parser.add_argument("--pool-is-complete", action="store_true", help="use the speech that is there")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--decay-steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32, help="utterances")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--sentence-weight", type=float, default=0.5)
    parser.add_argument("--mask-share", type=float, default=0.2)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--resume", help="checkpoint to continue from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
