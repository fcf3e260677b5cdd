"""Training from frozen backbones: what a step costs, and what it is made of.

Run as `python benchmarks/bench_training.py` (base size, random weights, 16 utterances of 1 to 6 s a step), with
`--small` for the tiny models, or with `--costs` for the computed cost of every preset. What grouping by length gains
depends on how lengths are spread: they are log-uniform (half of them below 2.4 s), or uniform with `--uniform`.

Two Trainers run in turn in one process: one as a user can have it (image embeddings kept, batches grouped by length),
one without either. Times of a step are from the end of the one before it, so that loading is counted; the speech
encoder's own forward pass is timed inside of the step.
"""

import argparse
import gc
import io
import os
import statistics
import tempfile
import time

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which measures memory, talks otherwise

import datasets
import numpy as np
import soundfile
import torch
from bench_core import PeakMemory
from PIL import Image
from transformers import CLIPImageProcessor, TrainerCallback, Wav2Vec2FeatureExtractor

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel, SpeechClipPlusProcessor, preset_names
from speechclip_plus.configuration.presets import load_preset
from speechclip_plus.trainer.feature_cache import cache_image_embeddings
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus.trainer.trainer_speechclip_plus import SpeechClipPlusTrainer
from speechclip_plus.trainer.training_arguments import SpeechClipPlusTrainingArguments

SAMPLING_RATE = 16_000
CAPTIONS = 5


class Stopwatch(TrainerCallback):
    """Seconds of every step, and of the modules' forward passes in it."""

    def __init__(self, modules):
        self.steps, self.running, self.current, self.last = [], {}, {}, None
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda module, args, name=name: self._start(name))
            module.register_forward_hook(lambda module, args, output, name=name: self._stop(name))

    def _start(self, name):
        self.running[name] = time.perf_counter()

    def _stop(self, name):
        self.current[name] = self.current.get(name, 0) + time.perf_counter() - self.running.pop(name)

    def on_train_begin(self, args, state, control, **kwargs):
        self.current, self.last = {}, None

    def on_step_begin(self, args, state, control, **kwargs):
        if self.last is not None:
            self.current["loading and collating"] = time.perf_counter() - self.last
        self._start("forward and backward")

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._stop("forward and backward")

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        if self.last is not None:  # the first step of a run also starts the loader
            self.steps.append({"step": now - self.last, **self.current})
        self.current, self.last = {}, time.perf_counter()

    def median(self, name):
        return statistics.median(step.get(name, 0.0) for step in self.steps)


def make_dataset(rows, image_size, uniform):
    """Noise of 1 to 6 seconds as WAV, and JPEG images with five captions each, shuffled as in a real data set."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(-(-rows // CAPTIONS)):
        pixels = generator.integers(0, 255, (*image_size, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG")
        images.append(file.getvalue())
    columns = {"audio": [], "image": [], "image_id": [], "text": [], "caption_id": []}
    for row in range(rows):
        seconds = generator.uniform(1, 6) if uniform else 6 ** generator.uniform(0, 1)
        samples = generator.normal(0, 0.1, int(seconds * SAMPLING_RATE))
        file = io.BytesIO()
        soundfile.write(file, samples, SAMPLING_RATE, format="WAV")
        columns["audio"].append({"bytes": file.getvalue(), "path": None})
        columns["image"].append({"bytes": images[row // CAPTIONS], "path": None})
        columns["image_id"].append(row // CAPTIONS)
        columns["text"].append("a red circle above a blue square")
        columns["caption_id"].append(str(row))
    return datasets.Dataset.from_dict(columns)


def make_parts(small):
    torch.manual_seed(0)
    config = SpeechClipPlusConfig.from_preset("hybrid_plus-tiny" if small else "hybrid_plus-base-flickr8k")
    processor = SpeechClipPlusProcessor.from_backbones(tiny_backbone("hubert"), tiny_backbone("clip"))
    if not small:
        processor.feature_extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
        processor.image_processor = CLIPImageProcessor()
    return SpeechClipPlusModel(config), processor


def make_trainer(model, processor, dataset, folder, batch_size, steps, fast, modules):
    arguments = SpeechClipPlusTrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        train_sampling_strategy="group_by_length" if fast else "random",
        dataloader_drop_last=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    if fast:
        dataset = cache_image_embeddings(model, processor, dataset, f"{folder}/images")
    watch = Stopwatch(modules)
    trainer = SpeechClipPlusTrainer(
        model=model, args=arguments, train_dataset=dataset, processing_class=processor, callbacks=[watch]
    )
    return trainer, watch


def bench_step(small, steps, rounds, uniform):
    batch_size = 4 if small else 16
    dataset = make_dataset(batch_size * 16, (96, 96) if small else (375, 500), uniform)
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, fast in (("kept images, grouped", True), ("neither", False)):
            model, processor = make_parts(small)
            modules = {
                "speech encoder, forward": model.speech_encoder,
                "CLIP's image tower, forward": model.clip.vision_model,
                "branch, forward": model.branch,
                "CIF, forward": model.cif,
                "CLIP's text tower, forward": model.clip.text_model.encoder,
            }
            runs[name] = make_trainer(model, processor, dataset, f"{folder}/{fast}", batch_size, steps, fast, modules)
        for number in range(rounds):
            for trainer, _ in runs.values():
                trainer.args.data_seed = number  # other batches in every round
                trainer.train()
        fast, slow = (watch for _, watch in runs.values())
        encoder = "speech encoder, forward"
        ratio = statistics.median(step["step"] / step[encoder] for step in fast.steps)
        print(f"steps measured: {len(fast.steps)} and {len(slow.steps)}, {batch_size} utterances each")
        print(f"step / the frozen speech encoder's own forward on its batch: {ratio:.3f} (at most 1.2 wanted)")
        speedup = slow.median("step") / fast.median("step")
        means = [statistics.mean(step["step"] for step in watch.steps) for watch in (slow, fast)]
        print(
            f"faster than without kept images and grouping: {speedup:.2f} x by medians (at least 2 wanted), ", end=""
        )
        print(f"{means[0] / means[1]:.2f} x by means")
        print(f"\n{'median ms':<34} {'kept, grouped':>14} {'neither':>10}")
        for name in ("step", "loading and collating", "forward and backward", *modules):
            print(f"{name:<34} {fast.median(name) * 1e3:14.1f} {slow.median(name) * 1e3:10.1f}", flush=True)
        trainer, _ = runs["kept images, grouped"]
        bench_memory(trainer, runs["neither"][0])


def bench_memory(fast, slow):
    """Peaks of what torch allocates on one batch, and what stays."""
    model = fast.model.train()
    batch = next(iter(fast.get_train_dataloader()))
    speech = {name: batch[name] for name in ("input_values", "attention_mask")}
    pixels = next(iter(slow.get_train_dataloader()))["pixel_values"]
    states, lengths = model.encode_speech_frames(**speech)

    def rest():
        model.zero_grad()
        model(
            speech_hidden_states=states,
            frame_lengths=lengths,
            image_embeds=batch["image_embeds"],
            image_ids=batch["image_ids"],
            return_loss=True,
        ).loss.backward()

    def whole():
        fast.training_step(model, {name: value for name, value in batch.items()})
        model.zero_grad()

    print(f"\n{'MB':<60}")
    frozen, trained = (
        sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad == grad) / 1e6
        for grad in (False, True)
    )
    print(f"{'frozen weights':<60} {frozen:10.1f}")
    print(f"{'trained weights; their gradients and Adam: three times that':<60} {trained:10.1f}")
    for name, function in (
        ("speech encoder, forward, peak", lambda: model.encode_speech_frames(**speech)),
        ("CLIP's image tower, forward, peak", lambda: model.get_image_features(pixels).pooler_output),
        ("branch, keywords, text tower, losses, with backward, peak", rest),
        ("whole step without the optimiser, peak", whole),
    ):
        gc.collect()
        with PeakMemory() as memory:
            function()
        print(f"{name:<60} {memory.mb:10.1f}", flush=True)


# Computed, not measured

SECONDS = 6.4  # the longest training utterance; all are counted as that long
FLOPS = 0.4 * 312e12  # 40 % of an A100's bf16 peak


def speech_flops(config, seconds):
    """Of one utterance's forward pass: a multiplication with its addition counts two."""
    length, channels, total = seconds * SAMPLING_RATE, 1, 0.0
    for width, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        length /= stride
        total += 2 * length * channels * width * kernel
        channels = width
    size, inner, frames = config.hidden_size, config.intermediate_size, length
    total += 2 * frames * channels * size
    total += 2 * frames * size * (size // config.num_conv_pos_embedding_groups) * config.num_conv_pos_embeddings
    return total + config.num_hidden_layers * transformer_layer_flops(frames, size, inner)


def transformer_layer_flops(places, size, inner):
    return 8 * places * size**2 + 4 * places**2 * size + 4 * places * size * inner


def tower_flops(config, places):
    return config.num_hidden_layers * transformer_layer_flops(places, config.hidden_size, config.intermediate_size)


def preset_costs(name):
    """TFLOP and GB of one step of a preset."""
    config, training = SpeechClipPlusConfig.from_preset(name), load_preset(name)["training"]
    with torch.device("meta"):
        model = SpeechClipPlusModel(config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    batch, accumulated = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    speech, vision, text = config.speech_config, config.clip_config.vision_config, config.clip_config.text_config
    frames = SECONDS * 50
    encoder = speech_flops(speech, SECONDS)
    branch = transformer_layer_flops(frames, config.hidden_size, config.branch_config.intermediate_size)
    if config.branch_config.layer_type == "attention_and_norm":
        branch -= 4 * frames * config.hidden_size * config.branch_config.intermediate_size
    if config.has_cif:
        cif = config.cif_config
        branch += cif.conv_layers * 2 * frames * config.hidden_size**2 * cif.conv_width
    rest = 3 * branch  # forward, and backward for inputs and weights
    if config.has_cascaded:
        keywords = config.keyword_config.num_keywords or frames / config.cif_config.frames_per_keyword
        vocabulary = len(config.keyword_config.vocabulary_ids or range(text.vocab_size))
        rest += 3 * 2 * keywords * vocabulary * text.hidden_size
        rest += 2 * tower_flops(text, keywords + 2)  # frozen: backward for its inputs alone
    image = tower_flops(vision, (vision.image_size // vision.patch_size) ** 2 + 1)
    states = batch * frames * config.hidden_size * (speech.num_hidden_layers + 1) * 4
    first = batch * SECONDS * SAMPLING_RATE / speech.conv_stride[0] * speech.conv_dim[0]
    return {
        "trained": trained,
        "frozen": frozen,
        "pairs": batch * accumulated,
        "encoder": encoder * batch * accumulated,
        "rest": rest * batch * accumulated,
        "image": image * batch * accumulated,
        # fp32 weights with their half-precision copies; gradients and Adam's two moments of what is trained
        "weights": (frozen + trained) * 6 + trained * 12,
        "states": states,  # float32: they come out of layer norms
        "first": first * (2 + 4 + 4),  # the first convolution in half precision, its norm and activation in float32
        "steps": training["max_steps"],
    }


def print_costs():
    columns = (
        "pairs a step",
        "trained",
        "TFLOP a step",
        "not the encoder's",
        "hours",
        "GB",
        "GB, chunks of 32",
        "hours, chunks",
    )
    print("| preset |", " | ".join(columns), "|")
    print("|---|" + "---:|" * len(columns))
    for name in preset_names():
        if name.endswith("tiny"):
            continue
        cost = preset_costs(name)
        total = cost["encoder"] + cost["rest"]
        share = 32 / load_preset(name)["training"]["per_device_train_batch_size"]
        memory, chunked = ((cost["weights"] + max(cost["first"], cost["states"]) * part) / 1e9 for part in (1, share))
        hours = cost["steps"] * total / FLOPS / 3600
        chunked_hours = cost["steps"] * (total + cost["encoder"]) / FLOPS / 3600
        print(
            f"| {name} | {cost['pairs']} | {cost['trained'] / 1e6:.1f} M | {total / 1e12:.0f} | "
            f"{100 * cost['rest'] / total:.1f} % | {hours:.0f} | {memory:.0f} | {chunked:.0f} | {chunked_hours:.0f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny models, 4 utterances a step")
    parser.add_argument("--costs", action="store_true", help="print what every preset costs, computed")
    parser.add_argument("--uniform", action="store_true", help="lengths uniform between 1 and 6 s")
    parser.add_argument("--steps", type=int, default=9, help="steps a round; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.costs:
        print_costs()
    else:
        bench_step(options.small, options.steps, options.rounds, options.uniform)
