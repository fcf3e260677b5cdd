"""GPU measurements: numerics, training steps, kernels, embedding throughput, attention and a short training.

gpu.py runs each of them in a process of its own: `python benchmarks/gpu_parts.py PART DEVICE SECONDS ROWS_FILE`.
Weights are random, made from the presets' configurations, except in the short training, whose tiny encoders ship with
the package: nothing is downloaded. TF32 is off.
"""

import copy
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

import speechclip_plus as package

SAMPLING_RATE = 16_000
BASE, LARGE, TINY = "hybrid_plus-base-flickr8k", "hybrid_plus-large-flickr8k", "hybrid_plus-tiny"
# The tests that compare with the original implementation's arrays.
GOLDEN_TESTS = ("tests/test_original_units.py", "tests/test_original_models.py")


class Report:
    """A part's rows, written as they come, the device, and the time left."""

    def __init__(self, device: str, seconds: float, path: str):
        self.started = time.monotonic()
        self.device, self.seconds, self.path = torch.device(device), seconds, Path(path)
        self.gpu = self.device.type == "cuda"

    def seconds_left(self):
        return self.seconds - (time.monotonic() - self.started)

    def case(self, name, measure, seconds=2.0):
        """Measure a row unless less than `seconds` are left; an error becomes the row's result."""
        row = {"case": name}
        try:
            row |= measure() if self.seconds_left() > seconds else {"result": "left out: no time"}
        except Exception as error:
            traceback.print_exc()
            row["result"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
        free_memory()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"    [{time.monotonic() - self.started:5.1f} s] {row}", flush=True)
        return row


# Measuring


def mark(device):
    """A point in the device's time."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(start, end):
    return 1e3 * (end - start) if isinstance(start, float) else start.elapsed_time(end)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def median_ms(function, device, inputs, repeats):
    """Median time of `function(*values)`, going round the inputs so that none of them is still in the cache."""
    for values in inputs:
        function(*values)
    spans = []
    for number in range(repeats):
        start = mark(device)
        function(*inputs[number % len(inputs)])
        spans.append((start, mark(device)))
    synchronize(device)
    return statistics.median(milliseconds(*span) for span in spans)


def free_memory():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb():
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def autocast(precision, device):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def synchronisations(function):
    """How often Python waits for the GPU while `function` runs, and where."""
    places = Counter()

    def note(message, *ignored):
        if "called a synchronizing CUDA operation" in str(message):
            frames = traceback.extract_stack()[:-1]  # without this function
            skipped = ("site-packages/torch/", "warnings.py")
            place = [frame for frame in frames if not any(name in frame.filename for name in skipped)][-1]
            places[f"{Path(place.filename).name}:{place.lineno}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return f"{places.total()} ({', '.join(f'{place} x{count}' for place, count in places.items())})"


# Models and batches


def build_model(preset, device):
    torch.manual_seed(0)
    with device:
        model = package.SpeechClipPlusModel(package.SpeechClipPlusConfig.from_preset(preset))
    return model.to(device)


def make_batch(model, size, device, seconds=(2.0, 6.4)):
    """Noise as utterances whose lengths are uniform between two numbers of seconds, each with an image of its own."""
    lengths = torch.linspace(*seconds, size, device=device)[torch.randperm(size, device=device)] * SAMPLING_RATE
    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]  # (B, S)
    return {
        "input_values": torch.randn(mask.shape, device=device) * mask,
        "attention_mask": mask.long(),
        "image_embeds": torch.randn(size, model.config.clip_config.projection_dim, device=device),
        "image_ids": torch.arange(size, device=device),
    }


@contextmanager
def timed_encoder(model, device):
    """Spans of the speech encoder's forward passes."""
    spans = []
    before = model.speech_encoder.register_forward_pre_hook(lambda *_: spans.append([mark(device)]))
    after = model.speech_encoder.register_forward_hook(lambda *_: spans[-1].append(mark(device)))
    try:
        yield spans
    finally:
        before.remove()
        after.remove()


def train_steps(model, batches, precision, device, steps, chunk=None):
    """Train for some steps: median times of the later half, peak memory, losses, fp16's scaler, synchronisations."""
    model.zero_grad()
    trained = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-5)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    losses, spans, scales = [], [], [scaler.get_scale()]

    def gradients(batch, step):
        if chunk is not None:
            return chunked_gradients(model, batch, chunk, autocast(precision, device))
        with autocast(precision, device):
            loss = model(**batch, return_loss=True, global_step=step).loss
        scaler.scale(loss).backward()
        return loss.detach()

    started = time.perf_counter()
    with timed_encoder(model, device) as encoder:
        for step in range(steps):
            start = mark(device)
            losses.append(gradients(batches[step % len(batches)], step))
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(trained, 4.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            spans.append((start, mark(device)))
            if scaler.is_enabled():
                scales.append(scaler.get_scale())
            if step == 0:
                synchronize(device)
                first_seconds = time.perf_counter() - started
        synchronize(device)
    late, passes = range(steps // 2, steps), len(encoder) // steps
    encoder_ms = [milliseconds(*span) for span in encoder]
    row = {
        "step ms": statistics.median(milliseconds(*spans[n]) for n in late),
        "encoder ms": statistics.median(sum(encoder_ms[n * passes : (n + 1) * passes]) for n in late),
    }
    row["step / encoder"] = row["step ms"] / row["encoder ms"]
    row |= {"first step s": first_seconds, "peak GB": peak_gb()}
    row["finite losses"] = f"{int(torch.stack(losses).isfinite().sum())} of {steps}"
    if scaler.is_enabled():
        skipped = [step for step in range(steps) if scales[step + 1] < scales[step]]
        row["fp16 scale"] = f"{scales[0]:.0f} to {scales[-1]:.0f}, steps skipped: {skipped or 'none'}"
    if device.type == "cuda":
        row["synchronisations a step"] = synchronisations(lambda: gradients(batches[0], steps))
    return row


def chunked_gradients(model, batch, chunk, context):
    from speechclip_plus.trainer.gradient_cache import backward_in_chunks

    return backward_in_chunks(model, batch, chunk, autocast=lambda: context).loss


# The parts


def numerics(report):
    """The golden tests on the device, then each utterance alone against itself in a padded batch."""
    device = report.device
    report.case(f"golden tests, fp32, {device.type}", partial(run_golden_tests, device))
    model = build_model(BASE if report.gpu else TINY, device).eval()
    batch = make_batch(model, 8, device)
    with torch.no_grad():
        reference = model(batch["input_values"], batch["attention_mask"])
    for precision in ("fp32", "bf16", "fp16"):
        measure = partial(padding_differences, model, batch, reference, precision, device)
        report.case(f"padding invariance, {precision}", measure)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        half = copy.deepcopy(model).to(dtype).float_statistics()
        measure = partial(padding_differences, half, batch, reference, None, device)
        report.case(f"padding invariance, weights in {precision}", measure)


def run_golden_tests(device):
    import pytest
    import safetensors

    class Count:
        passed, failed = 0, []

        def pytest_runtest_logreport(self, report):
            if report.failed:
                self.failed.append(report.nodeid.rpartition("::")[2])
            self.passed += report.when == "call" and report.passed

    # What the tests create or read is on the device; otherwise they are the tests that run on CPUs.
    torch.set_default_device(device)
    safe_open = safetensors.safe_open
    safetensors.safe_open = partial(safe_open, device=str(device))
    count = Count()
    try:
        code = pytest.main(["-q", "--tb=line", "-p", "no:cacheprovider", *GOLDEN_TESTS], plugins=[count])
    finally:
        torch.set_default_device(None)
        safetensors.safe_open = safe_open
    result = {"passed": count.passed, "failed": len(count.failed), "failures": ", ".join(count.failed[:20])}
    return result if code in (0, 1) else result | {"result": f"pytest ended with exit code {int(code)}"}


@torch.no_grad()
def padding_differences(model, batch, reference, precision, device):
    values, mask = batch["input_values"], batch["attention_mask"]
    with autocast(precision, device):
        padded = model(values, mask)
        alone = [model(values[n : n + 1, :length]) for n, length in enumerate(mask.sum(dim=1).tolist())]
    row = {}
    for branch in ("parallel", "cascaded"):
        embeds = padded[f"{branch}_embeds"].float()
        single = torch.cat([output[f"{branch}_embeds"] for output in alone]).float()
        row[f"{branch}, largest difference"] = (embeds - single).abs().max().item()
        cosines = (embeds * reference[f"{branch}_embeds"]).sum(dim=-1)
        row[f"{branch}, least cosine to fp32"] = cosines.min().item()
    keywords = [[i for i in ids if i >= 0] for ids in padded["keyword_ids"].tolist()]
    same = sum(ids == output["keyword_ids"][0].tolist() for ids, output in zip(keywords, alone, strict=True))
    return row | {"utterances with the same keywords": f"{same} of {len(alone)}"}


def steps(report):
    """Training steps from raw audio with frozen backbones."""
    device = report.device
    presets, sizes, large_batch, chunk = {"base": BASE, "large": LARGE}, (64, 256), 1024, 64
    if not report.gpu:
        presets, sizes, large_batch, chunk = {"tiny": TINY}, (2, 4), 4, 2
    for name, preset in presets.items():
        model = build_model(preset, device)
        for size in sizes:
            batches = [make_batch(model, size, device) for _ in range(2)]
            for precision in ("bf16", "fp16", "fp32"):
                count = 50 if (name, size) == ("base", 64) else 8 if report.gpu else 4
                measure = partial(train_steps, model, batches, precision, device, count)
                report.case(f"{name}, {precision}, batch {size}", measure)
        batches = [make_batch(model, large_batch, device)]
        measure = partial(train_steps, model, batches, "bf16", device, 4, chunk)
        report.case(f"{name}, bf16, batch {large_batch} in chunks of {chunk}", measure, seconds=6)


def kernels(report):
    """Integrate-and-fire and quantisation against the plain formulas; GB/s counts the bytes that must be moved."""
    from bench_core import integrate_and_fire, plain_integrate_and_fire, plain_quantize, quantize_keywords

    device = report.device

    def copy_rate():
        source = torch.randn(2**29 if report.gpu else 2**22, device=device)
        ms = median_ms(torch.empty_like(source).copy_, device, [(source,)], 20)
        return {"GB/s": 2 * source.nbytes / ms / 1e6}

    rate = report.case("copy within the device's memory", copy_rate)["GB/s"]

    def compare(plain, ours, inputs, moved, share=1):
        plain_ms = share * median_ms(plain, device, inputs, 8)
        row = {"plain ms": plain_ms, "plain peak GB": peak_gb()}
        free_memory()
        ms = median_ms(ours, device, inputs, 20)
        row |= {"ours ms": ms, "ours peak GB": peak_gb(), "times faster": plain_ms / ms}
        return row | {"GB/s": moved / ms / 1e6, "of the copy's": moved / ms / 1e6 / rate}

    def backward(function, *inputs):
        function(*(value.detach().requires_grad_() for value in inputs)).square().sum().backward()

    def both(name, plain, ours, inputs, moved, **others):
        report.case(name, partial(compare, plain, ours, inputs, moved, **others))
        plain, ours = partial(backward, plain), partial(backward, ours)
        report.case(f"{name}, with backward", partial(compare, plain, ours, inputs, 2 * moved, **others))

    def fire(frames, alphas):
        return integrate_and_fire(frames, alphas)[0]

    for shape in ((64, 320, 768), (1024, 320, 768)) if report.gpu else ((4, 64, 32),):
        inputs = [(torch.randn(shape, device=device), torch.rand(shape[:2], device=device) * 0.1) for _ in range(4)]
        moved = 4 * inputs[0][0].numel() * (1 + 1 / 20)  # frames in, a keyword for every 20 of them out
        both(f"integrate-and-fire {shape}", plain_integrate_and_fire, fire, inputs, moved)

    batch, places, size, vocabulary = (64, 16, 512, 49_408) if report.gpu else (2, 4, 32, 600)
    table = torch.randn(vocabulary, size, device=device)
    allowed = torch.ones(vocabulary, dtype=torch.bool, device=device)
    inputs = [(torch.randn(batch, places, size, device=device),) for _ in range(4)]
    moved = 4 * (table.numel() + 2 * batch * places * (vocabulary + size))  # similarities are written and read
    # The plain formula goes keyword by keyword: one of them is timed and counted for all.
    both(
        f"quantisation ({batch}, {places}, {size}), V = {vocabulary}",
        lambda features: plain_quantize(features[:, :1], table),
        lambda features: quantize_keywords(features, table, allowed).embeds,
        inputs,
        moved,
        share=places,
    )


def throughput(report):
    """Utterances of 2 to 6.4 s, and images, a second: bf16, batches of 64 that lie in pinned host memory."""
    device = report.device
    model = build_model(BASE if report.gpu else TINY, device).eval()
    count, size = (2048, 64) if report.gpu else (16, 4)
    lengths = (torch.empty(count).uniform_(2.0, 6.4) * SAMPLING_RATE).long()

    @torch.no_grad()
    def rate(embed, batches):
        def run(batches):
            with autocast("bf16", device):
                for batch in batches:
                    embed(*(value.to(device, non_blocking=True) for value in batch))
            synchronize(device)

        batches = [tuple(value.pin_memory() if report.gpu else value for value in batch) for batch in batches]
        run(batches[:2])
        started = time.perf_counter()
        run(batches)
        return sum(len(batch[0]) for batch in batches) / (time.perf_counter() - started)

    def utterances(order):
        batches = []
        for rows in order.split(size):
            mask = torch.arange(int(lengths[rows].max())) < lengths[rows, None]
            batches.append((torch.randn(mask.shape) * mask, mask.long()))
        per_second, seconds = rate(model.get_audio_features, batches), lengths.float().mean().item() / SAMPLING_RATE
        return {"per second": per_second, "times real time": per_second * seconds}

    def images():
        edge = model.config.clip_config.vision_config.image_size
        batches = [(torch.randn(size, 3, edge, edge),) for _ in range(8)]
        return {"per second": rate(model.get_image_features, batches)}

    report.case("utterances, unsorted", partial(utterances, torch.arange(count)))
    report.case("utterances, sorted by length", partial(utterances, lengths.argsort()))
    report.case("images", images)


def attention(report):
    """Training steps in bf16 under each attention implementation, and with a compiled branch."""
    device = report.device
    model, size = build_model(BASE if report.gpu else TINY, device), 64 if report.gpu else 2
    batches = [make_batch(model, size, device) for _ in range(4)]
    equal = [make_batch(model, size, device, seconds=(4.2, 4.2)) for _ in range(4)]
    unmasked = [{name: value for name, value in batch.items() if name != "attention_mask"} for batch in equal]

    def measure(implementation, batches, compiled=False):
        model.set_attn_implementation(implementation)
        if compiled:
            model.branch.compile(dynamic=True)
        return train_steps(model, batches, "bf16", device, 16 if report.gpu else 4)

    for name in ("eager", "sdpa", "flash_attention_2", "flex_attention"):
        report.case(name, partial(measure, name, batches))
    report.case("sdpa, equal lengths, with a mask", partial(measure, "sdpa", equal))
    report.case("sdpa, equal lengths, no mask (torch's flash kernel)", partial(measure, "sdpa", unmasked))
    report.case("sdpa, compiled branch", partial(measure, "sdpa", batches, True), seconds=10)


def scenes(report):
    """Train on spoken scenes from raw audio for three minutes, speech encoder included; test on unseen scenes."""
    report.case("hybrid_plus-tiny, speech encoder trained", partial(train_scenes, report))


def train_scenes(report):
    from transformers import TrainerCallback

    class StopInTime(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= report.seconds_left() < reserve

    gpu, folder, workers = report.gpu, tempfile.mkdtemp(), min(12, os.cpu_count() or 1)
    reserve, few, more, most = (15, 20, 100, 180) if gpu else (4, 1, 3, 5)
    counts = {"train": 8000, "test": 500} if gpu else {"train": 32, "test": 16}
    data = {split: speak_scenes(split, count, workers) for split, count in counts.items()}
    row = {"images": counts["train"], "making the data s": time.monotonic() - report.started}

    def train(steps):
        trainer = make_trainer(data["train"], folder, steps, gpu, workers)
        trainer.add_callback(StopInTime())
        started = time.monotonic()
        trainer.train()
        return trainer, time.monotonic() - started

    train(few)  # warms up
    start, longer = train(few)[1], train(more)[1]
    step_seconds = max(1e-3, (longer - start) / (more - few))
    budget = min(most, report.seconds_left() - reserve) - (start - few * step_seconds)
    trainer, seconds = train(max(2, int(0.97 * budget / step_seconds)))
    done = trainer.state.global_step
    pairs = done * trainer.args.per_device_train_batch_size
    row |= {"steps": done, "training s": seconds, "pairs a second": pairs / seconds}
    metrics = trainer.evaluate(data["test"], metric_key_prefix="test")
    row |= {key.removeprefix("test_"): value for key, value in metrics.items() if key.endswith("mean_R@1")}
    return row | {"chance": 100 / counts["test"]}


def first_row(scene_rows, split, scene):
    return next(scene_rows(scene, split, 1, 0))


def speak_scenes(split, count, workers):
    """Rows of a spoken-scenes split, as a list: no version of pyarrow is asked for."""
    from speechclip_plus.trainer.spoken_scenes.dataset import scene_rows
    from speechclip_plus.trainer.spoken_scenes.scenes import sample_scenes

    with ProcessPoolExecutor(workers) as pool:
        speak = partial(first_row, scene_rows, split)
        return list(pool.map(speak, sample_scenes(split, count, 0), chunksize=16))


def make_trainer(dataset, folder, steps, gpu, workers):
    from speechclip_plus.trainer.tiny_backbones import tiny_backbone

    backbones = tiny_backbone("hubert"), tiny_backbone("clip")
    model = package.SpeechClipPlusModel.from_backbones(*backbones, config=TINY)
    model.set_trainable(speech_encoder=True)
    model.config.cif_config.scale_until_step = round(0.3 * steps)
    arguments = package.SpeechClipPlusTrainingArguments.from_preset(
        TINY,
        output_dir=folder,
        max_steps=steps,
        warmup_steps=max(1, round(0.06 * steps)),
        learning_rate=5e-4,
        per_device_train_batch_size=128 if gpu else 8,
        bf16=gpu,
        use_cpu=not gpu,
        dataloader_num_workers=workers if gpu else 0,
        save_strategy="no",
        logging_steps=200,
        report_to="none",
        disable_tqdm=True,
    )
    return package.SpeechClipPlusTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=package.SpeechClipPlusProcessor.from_backbones(*backbones),
    )


if __name__ == "__main__":
    part, *arguments = sys.argv[1:]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    {f.__name__: f for f in (numerics, steps, kernels, throughput, attention, scenes)}[part](
        Report(arguments[0], float(arguments[1]), arguments[2])
    )
