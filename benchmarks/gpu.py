"""GPU benchmark: numerics, training steps, attention, embedding throughput, kernels and a short training.

    python benchmarks/gpu.py --output OUT [--wheels .wheels] [--parts steps kernels] [--device cpu]

Each part runs in a process of its own and under a time limit, so that a fault in one leaves the others alone; after
each of them `OUT/gpu.json` and `OUT/gpu.md` hold what has been measured so far. Weights are random, made from the
presets' configurations, except in the short training: nothing is downloaded. Without a GPU the same code runs on the
CPU with tiny models, and the table says so: it then shows that the script works, and nothing about speed.

A bare machine needs Python 3.12 with torch and an older transformers. `--wheels` names a folder of wheels that are
unpacked and put first on its path; `--collect-wheels` fills it, on a machine that has the package installed.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STARTED = time.monotonic()
SAMPLING_RATE = 16_000
# What a machine with PyTorch's usual companions lacks, or has in too old a version.
WHEELS = (
    "transformers huggingface_hub httpx2 httpcore2 truststore idna h11 anyio click regex datasets dill multiprocess "
    "soundfile cffi pycparser soxr espeakng_loader"
).split()
MAX_WHEELS_MB = 60
# The tests that compare with the original implementation's arrays.
GOLDEN_TESTS = ("tests/test_original_units.py", "tests/test_original_models.py")


# Measuring


class Report:
    """Rows of one part, written one by one, and the time left for it."""

    def __init__(self, path, seconds):
        self.path, self.end = Path(path), time.monotonic() + seconds

    def seconds_left(self):
        return self.end - time.monotonic()

    @contextmanager
    def case(self, name, seconds=3.0):
        """Collect a row's values; an error becomes the row's result. `seconds` is what the case takes at least."""
        row = {"case": name}
        if self.seconds_left() < seconds:
            row["result"] = "left out: no time"
        try:
            yield row
        except Exception as error:
            traceback.print_exc()
            row["result"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        values = ", ".join(f"{key} {_shown(value)}" for key, value in row.items() if key != "case")
        print(f"    [{time.monotonic() - STARTED:5.1f} s] {name}: {values}", flush=True)


def is_gpu(device):
    return device.type == "cuda"


def synchronize(device):
    import torch

    if is_gpu(device):
        torch.cuda.synchronize()


def mark(device):
    """A point in the device's time."""
    import torch

    if not is_gpu(device):
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(start, end):
    return 1e3 * (end - start) if isinstance(start, float) else start.elapsed_time(end)


def median_ms(function, device, inputs, repeats):
    """Median time of `function(*input)`, going round the inputs so that none of them is still in the cache."""
    for values in inputs:
        function(*values)
    spans = []
    for number in range(repeats):
        start = mark(device)
        function(*inputs[number % len(inputs)])
        spans.append((start, mark(device)))
    synchronize(device)
    return statistics.median(milliseconds(*span) for span in spans)


def peak_gb(device):
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if is_gpu(device) else None


def free_memory(device):
    import gc

    import torch

    gc.collect()
    if is_gpu(device):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def autocast(precision, device):
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def synchronisations(function):
    """Where Python waits for the GPU while `function` runs: a count by place, `file:line`."""
    import torch

    places = Counter()

    def note(message, *ignored, **also_ignored):
        if "called a synchronizing CUDA operation" in str(message):
            frames = [f for f in traceback.extract_stack()[:-1] if "/torch/" not in f.filename]
            places[f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return places


# Models and batches


def build_model(preset, device, **config):
    import torch

    from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel

    torch.manual_seed(0)
    with torch.device(device):
        return SpeechClipPlusModel(SpeechClipPlusConfig.from_preset(preset, **config))


def make_batch(model, size, device, seconds=(2.0, 6.4)):
    """Noise as utterances whose lengths are uniform between two numbers of seconds, each with an image of its own."""
    import torch

    lengths = torch.linspace(seconds[0], seconds[1], size, device=device)[torch.randperm(size, device=device)]
    lengths = (lengths * SAMPLING_RATE).long()
    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]  # (B, S)
    return {
        "input_values": torch.randn(mask.shape, device=device) * mask,
        "attention_mask": mask.long(),
        "image_embeds": torch.randn(size, model.config.clip_config.projection_dim, device=device),
        "image_ids": torch.arange(size, device=device),
    }


def audio_features(model, batch):
    """Embeddings `(B, P)` of a batch's utterances."""
    embed = getattr(model, "get_audio_features", None) or model.get_speech_features
    output = embed(batch["input_values"], batch["attention_mask"])
    return getattr(output, "pooler_output", output)


@contextmanager
def timed_encoder(model, device):
    """Spans of the frozen speech encoder's forward passes."""
    spans = []
    hooks = [
        model.speech_encoder.register_forward_pre_hook(lambda *_: spans.append([mark(device)])),
        model.speech_encoder.register_forward_hook(lambda *_: spans[-1].append(mark(device))),
    ]
    yield spans
    for hook in hooks:
        hook.remove()


def train_steps(model, batches, precision, device, steps, backward=None):
    """Train for some steps; returns times of the later half, peak memory, and whether losses stayed finite."""
    import torch

    free_memory(device)
    trained = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-5)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    losses, spans, scales = [], [], []

    def gradients(number):
        batch = batches[number % len(batches)]
        if backward is not None:
            return backward(model, batch, autocast(precision, device), lambda loss: scaler.scale(loss).backward())
        with autocast(precision, device):
            loss = model(**batch, return_loss=True, global_step=number).loss
        scaler.scale(loss).backward()
        return loss.detach()

    with timed_encoder(model, device) as encoder:
        started = time.perf_counter()
        for number in range(steps):
            encoder_calls = len(encoder)
            start = mark(device)
            losses.append(gradients(number))
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(trained, 4.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            spans.append((start, mark(device)))
            scales.append(scaler.get_scale() if scaler.is_enabled() else 1.0)
            if number == 0:
                synchronize(device)
                first_seconds = time.perf_counter() - started
        synchronize(device)
    counted = range(steps // 2, steps)
    calls = len(encoder) - encoder_calls  # of one step
    step_ms = statistics.median(milliseconds(*spans[n]) for n in counted)
    encoder_ms = statistics.median(
        sum(milliseconds(*span) for span in encoder[n * calls : (n + 1) * calls]) for n in counted
    )
    row = {"step ms": step_ms, "encoder ms": encoder_ms, "step / encoder": step_ms / encoder_ms}
    row |= {"first step s": first_seconds, "peak GB": peak_gb(device)}
    row |= {"finite losses": f"{int(torch.stack(losses).isfinite().sum())} of {steps}"}
    if scaler.is_enabled():
        row |= {
            "last scale": scales[-1],
            "skipped steps": sum(b < a for a, b in zip(scales, scales[1:], strict=False)),
        }
    if is_gpu(device):
        places = synchronisations(lambda: gradients(0))
        row["synchronisations"] = f"{places.total()} ({', '.join(f'{k} x{n}' for k, n in places.items())})"
    return row


# The parts


def numerics(report, device):
    """The golden tests on the device, TF32 off; then each utterance alone against the same one in a padded batch."""
    with report.case(f"golden tests, fp32, on {device.type}") as row:
        row.update(run_golden_tests(device))
    model = build_model("hybrid_plus-base-flickr8k" if is_gpu(device) else "hybrid_plus-tiny", device).eval()
    batch = make_batch(model, 8, device)
    expected = None
    for name in ("fp32", "bf16", "fp16", "bf16 weights", "fp16 weights"):
        with report.case(f"padding invariance, {name}") as row:
            if name.endswith("weights"):
                model.to(getattr(__import__("torch"), {"bf16": "bfloat16", "fp16": "float16"}[name[:4]]))
                model.float_statistics()
            outputs = padded_and_alone(model, batch, name, device)
            expected = outputs[0] if expected is None else expected
            row.update(differences(*outputs, expected))
            if name.endswith("weights"):
                model.float()


def run_golden_tests(device):
    import pytest
    import safetensors
    import torch

    class OnDevice:
        passed, failed = 0, []

        def pytest_runtest_logreport(self, report):
            if report.failed:
                self.failed.append(report.nodeid.rpartition("::")[2])
            self.passed += report.when == "call" and report.passed

    # Whatever the tests make or read is then on the device; their code is the one that runs on CPUs.
    torch.set_default_device(device)
    safe_open = safetensors.safe_open
    safetensors.safe_open = lambda file, framework: safe_open(file, framework, str(device))
    plugin = OnDevice()
    try:
        pytest.main(["-q", "--no-header", "--tb=line", *GOLDEN_TESTS], plugins=[plugin])
    finally:
        torch.set_default_device(None)
        safetensors.safe_open = safe_open
    return {"passed": plugin.passed, "failed": len(plugin.failed), "failures": ", ".join(plugin.failed[:20]) or "none"}


def padded_and_alone(model, batch, precision, device):
    """Outputs of a batch, and of its utterances one by one."""
    import torch

    lengths = batch["attention_mask"].sum(dim=1).tolist()
    with torch.no_grad(), autocast(precision, device):
        padded = model(batch["input_values"], batch["attention_mask"])
        alone = [model(batch["input_values"][n : n + 1, :length]) for n, length in enumerate(lengths)]
    return padded, alone


def differences(padded, alone, expected):
    import torch

    row = {}
    for branch in ("parallel", "cascaded"):
        ours = padded[f"{branch}_embeds"].float()
        single = torch.cat([output[f"{branch}_embeds"] for output in alone]).float()
        row[f"{branch}: largest difference"] = (ours - single).abs().max().item()
        row[f"{branch}: least cosine to fp32"] = (ours * expected[f"{branch}_embeds"]).sum(dim=-1).min().item()
    same, total, counts = 0, 0, 0
    for n, output in enumerate(alone):
        length = int(output["keyword_lengths"])
        counts += int(padded["keyword_lengths"][n]) == length
        ids = padded["keyword_ids"][n, :length]
        same, total = same + int((ids == output["keyword_ids"][0, : len(ids)]).sum()), total + length
    return row | {"same number of keywords": f"{counts} of {len(alone)}", "same keywords": f"{same} of {total}"}


def steps(report, device):
    """Training steps from raw audio with frozen backbones: time, memory, finite losses, waits for the device."""
    from speechclip_plus.trainer.gradient_cache import backward_in_chunks

    def in_chunks(model, batch, context, backward, size):
        output = backward_in_chunks(model, batch, size, autocast=lambda: context, backward=backward)
        return output.loss

    presets = {"base": "hybrid_plus-base-flickr8k", "large": "hybrid_plus-large-flickr8k"}
    sizes, cached, chunk = (64, 256), 1024, 64
    if not is_gpu(device):
        presets, sizes, cached, chunk = {"tiny": "hybrid_plus-tiny"}, (4, 8), 8, 2
    for name, preset in presets.items():
        model = build_model(preset, device)
        for size in sizes:
            batches = [make_batch(model, size, device) for _ in range(2)]
            for precision in ("bf16", "fp16", "fp32"):
                with report.case(f"{name}, {precision}, batch {size}") as row:
                    if "result" not in row:
                        count = 6 if not is_gpu(device) else 50 if (name, size) == ("base", sizes[0]) else 8
                        row.update(train_steps(model, batches, precision, device, count))
        with report.case(f"{name}, bf16, batch {cached} in chunks of {chunk}", seconds=8) as row:
            if "result" not in row:
                batches = [make_batch(model, cached, device)]
                row.update(train_steps(model, batches, "bf16", device, 4, partial(in_chunks, size=chunk)))


def attention(report, device):
    """Training steps in bf16 under each attention implementation, and with a compiled branch."""
    import torch

    preset, size = ("hybrid_plus-base-flickr8k", 64) if is_gpu(device) else ("hybrid_plus-tiny", 4)
    model = build_model(preset, device)
    batches = [make_batch(model, size, device) for _ in range(4)]
    count = 16 if is_gpu(device) else 4
    for name in ("eager", "sdpa", "flash_attention_2", "flex_attention"):
        with report.case(name) as row:
            model.set_attn_implementation(name)
            row.update(train_steps(model, batches, "bf16", device, count))
    model.set_attn_implementation("sdpa")
    equal = [make_batch(model, size, device, seconds=(4.2, 4.2)) for _ in range(2)]
    with report.case("sdpa, equal lengths, with a mask") as row:
        row.update(train_steps(model, equal, "bf16", device, count))
    with report.case("sdpa, equal lengths, no mask (torch's flash kernel)") as row:
        unmasked = [{k: v for k, v in batch.items() if k != "attention_mask"} for batch in equal]
        row.update(train_steps(model, unmasked, "bf16", device, count))
    with report.case("sdpa, compiled branch", seconds=10) as row:
        if "result" not in row:
            model.branch.compile(dynamic=True)
            row.update(train_steps(model, batches, "bf16", device, count))
            row["graphs"] = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)


def throughput(report, device):
    """Utterances and images a second in bf16, from pinned host memory, in batches of 64."""
    import torch

    gpu = is_gpu(device)
    model = build_model("hybrid_plus-base-flickr8k" if gpu else "hybrid_plus-tiny", device).eval()
    count, size = (2048, 64) if gpu else (16, 4)
    cut = [int(s * SAMPLING_RATE) for s in torch.empty(count).uniform_(2.0, 6.4)]
    waveforms = [torch.randn(length) for length in cut]

    def batch_of(rows):
        values = torch.nn.utils.rnn.pad_sequence([waveforms[row] for row in rows], batch_first=True)
        mask = torch.arange(values.shape[1]) < torch.tensor([cut[row] for row in rows])[:, None]
        values, mask = (value.pin_memory() if gpu else value for value in (values, mask.long()))
        return {
            "input_values": values.to(device, non_blocking=True),
            "attention_mask": mask.to(device, non_blocking=True),
        }

    for name, order in (("unsorted", range(count)), ("sorted by length", sorted(range(count), key=cut.__getitem__))):
        with report.case(f"utterances of 2 to 6.4 s, {name}") as row, torch.no_grad(), autocast("bf16", device):
            groups = [order[start : start + size] for start in range(0, count, size)]
            audio_features(model, batch_of(groups[-1]))  # warm-up
            synchronize(device)
            started = time.perf_counter()
            for group in groups:
                audio_features(model, batch_of(group))
            synchronize(device)
            seconds = time.perf_counter() - started
            row |= {"per second": count / seconds, "hours of audio per hour": sum(cut) / SAMPLING_RATE / seconds}
    with report.case("images") as row, torch.no_grad(), autocast("bf16", device):
        edge = model.config.clip_config.vision_config.image_size
        images = torch.randn(size, 3, edge, edge)
        images = images.pin_memory() if gpu else images
        ms = median_ms(lambda: model.get_image_features(images.to(device, non_blocking=True)), device, [()] * 2, 20)
        row["per second"] = 1e3 * size / ms


def kernels(report, device):
    """Integrate-and-fire and quantisation against the plain formulas; bytes are the fewest that must be moved."""
    import torch
    from bench_core import integrate_and_fire, plain_integrate_and_fire, plain_quantize, quantize_keywords

    gpu = is_gpu(device)
    with report.case("copy within device memory") as row:
        source = torch.randn(2**29 if gpu else 2**22, device=device)
        target = torch.empty_like(source)
        ms = median_ms(target.copy_, device, [(source,)], 20)
        copy_rate = row["GB/s"] = 2 * source.nbytes / ms / 1e6
        del source, target

    def compare(name, plain, ours, inputs, moved, share=1, repeats=20):
        with report.case(name) as row:
            for title, function in (("plain", plain), ("ours", ours)):
                free_memory(device)
                ms = median_ms(function, device, inputs if function is ours else inputs[:2], repeats)
                row[f"{title} ms"] = ms * (share if function is plain else 1)
                row[f"{title} peak GB"] = peak_gb(device)
            row |= {"ratio": row["plain ms"] / row["ours ms"], "GB/s": moved / row["ours ms"] / 1e6}
            row["of the copy rate"] = row["GB/s"] / copy_rate

    def backward(function, *inputs):
        leaves = [value.detach().requires_grad_() for value in inputs]
        function(*leaves).sum().backward()

    fire = lambda frames, alphas: integrate_and_fire(frames, alphas)[0]  # noqa: E731
    for shape in ((64, 320, 768), (1024, 320, 768)) if gpu else ((4, 64, 32),):
        inputs = [(torch.randn(shape, device=device), torch.rand(shape[:2], device=device) * 0.1) for _ in range(4)]
        moved = 4 * inputs[0][0].numel() * (1 + 1 / 20)  # frames in, a keyword for every 20 of them out
        compare(f"integrate-and-fire {shape}", plain_integrate_and_fire, fire, inputs, moved)
        both = [partial(backward, function) for function in (plain_integrate_and_fire, fire)]
        compare(f"integrate-and-fire {shape}, with backward", *both, inputs, 2 * moved)

    batch, places, size, vocabulary = (64, 16, 512, 49_408) if gpu else (2, 4, 32, 600)
    table = torch.randn(vocabulary, size, device=device)
    allowed = torch.ones(vocabulary, dtype=torch.bool, device=device).index_fill_(0, torch.arange(3).to(device), False)
    inputs = [(torch.randn(batch, places, size, device=device),) for _ in range(4)]
    moved = 4 * (table.numel() + 2 * batch * places * (vocabulary + size))
    quantize = lambda features: quantize_keywords(features, table, allowed).embeds  # noqa: E731
    # The plain formula goes keyword by keyword: one is timed and counted for all of them.
    plain = lambda features: plain_quantize(features[:, :1], table)  # noqa: E731
    name = f"quantisation ({batch}, {places}, {size}), V = {vocabulary:,}"
    compare(name, plain, quantize, inputs, moved, share=places, repeats=6)
    compare(f"{name}, with backward", *(partial(backward, f) for f in (plain, quantize)), inputs, 2 * moved, places, 6)


def scenes(report, device):
    """Train on spoken scenes from raw audio for three minutes, speech encoder included, and test on unseen scenes."""
    import datasets
    import transformers

    import speechclip_plus as package
    from speechclip_plus.trainer.tiny_backbones import tiny_backbone

    gpu = is_gpu(device)
    datasets.disable_progress_bars()
    folder, workers = tempfile.mkdtemp(), min(12, os.cpu_count() or 1)
    pictures = {"train": 8000, "test": 500} if gpu else {"train": 32, "test": 16}
    started = time.monotonic()
    data = {
        split: package.load_speech_image_dataset(
            "spoken_scenes", split=split, num_scenes=count, captions_per_scene=1, cache_dir=folder, num_proc=workers
        )
        for split, count in pictures.items()
    }
    made = time.monotonic() - started
    preset, backbones = "hybrid_plus-tiny", (tiny_backbone("hubert"), tiny_backbone("clip"))

    def train(steps):
        model = package.SpeechClipPlusModel.from_backbones(*backbones, config=preset)
        model.set_trainable(speech_encoder=True)
        model.config.cif_config.scale_until_step = round(0.3 * steps)
        arguments = package.SpeechClipPlusTrainingArguments.from_preset(
            preset,
            output_dir=folder,
            max_steps=steps,
            warmup_steps=max(1, round(0.06 * steps)),
            learning_rate=5e-4,
            per_device_train_batch_size=128 if gpu else 8,
            bf16=gpu,
            dataloader_num_workers=workers if gpu else 0,
            dataloader_persistent_workers=gpu,
            image_cache_dir=folder,
            save_strategy="no",
            logging_steps=100,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = package.SpeechClipPlusTrainer(
            model=model,
            args=arguments,
            train_dataset=data["train"],
            processing_class=package.SpeechClipPlusProcessor.from_backbones(*backbones),
        )
        started = time.monotonic()
        trainer.train()
        return trainer, time.monotonic() - started

    transformers.utils.logging.set_verbosity_error()
    with report.case("spoken scenes, hybrid_plus-tiny, speech encoder trained") as row:
        row |= {"pictures": pictures["train"], "making the data s": made}
        train(2)  # warm-up, and the image embeddings
        few = 40 if gpu else 2
        seconds_per_step = train(few)[1] / few
        budget = min(180 if gpu else 8, report.seconds_left() - (20 if gpu else 4))
        trainer, seconds = train(max(2, int(0.95 * budget / seconds_per_step)))
        row |= {"steps": trainer.state.global_step, "training s": seconds, "step ms": 1e3 * seconds_per_step}
        metrics = trainer.evaluate(data["test"], metric_key_prefix="test")
        row |= {key.removeprefix("test_"): value for key, value in metrics.items() if key.endswith("R@1")}
        row["chance"] = 100 / pictures["test"]


# Part by name, and its limit in seconds on a GPU
PARTS = {numerics: 70, steps: 110, kernels: 25, throughput: 30, attention: 55, scenes: 225}
TOTAL_SECONDS = 470


# Running, and writing down


def unpack(wheels):
    """Put the wheels of a folder first on the path, and then this repository's sources."""
    target = tempfile.mkdtemp(prefix="wheels-")
    for wheel in sorted(Path(wheels).glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return target


def collect_wheels(folder):
    """Download what a bare machine lacks, in the versions installed here."""
    from importlib.metadata import version

    platforms = [f"--platform=manylinux{n}_x86_64" for n in ("1", "2014", "_2_17", "_2_24", "_2_27", "_2_28", "_2_34")]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms]
    command += ["--python-version=3.12", "--implementation=cp", "-d", str(folder)]
    for old in Path(folder).glob("*.whl"):
        old.unlink()
    subprocess.run([*command, *(f"{name}=={version(name)}" for name in WHEELS)], check=True)
    megabytes = sum(wheel.stat().st_size for wheel in Path(folder).glob("*.whl")) / 1e6
    print(f"{len(WHEELS)} wheels, {megabytes:.1f} MB in {folder}")
    if megabytes > MAX_WHEELS_MB:
        raise SystemExit(f"error: more than the {MAX_WHEELS_MB} MB that may be carried")


def run_in_process(part, device, limit, rows_file, environment):
    """Run a part in a process group of its own; returns what became of it."""
    command = [sys.executable, __file__, "--part", part, "--device", device, "--rows", str(rows_file)]
    process = subprocess.Popen([*command, "--seconds", str(limit)], cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(timeout=limit + 5)
        return "finished" if code == 0 else f"ended with exit code {code}"
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
        except ProcessLookupError:
            pass
        process.wait()


def run_part(options):
    """The child's side."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    function = {part.__name__: part for part in PARTS}[options.part]
    function(Report(options.rows, options.seconds), torch.device(options.device))


def describe_machine(environment):
    """Device and versions, asked in a process of its own so that this one never holds the GPU."""
    code = (
        "import json, platform, torch, transformers\n"
        "gpu = torch.cuda.is_available()\n"
        "print(json.dumps({'device': torch.cuda.get_device_name() if gpu else 'CPU', 'torch': torch.__version__,"
        " 'transformers': transformers.__version__, 'python': platform.python_version(), 'gpu': gpu}))"
    )
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    facts = json.loads(found.stdout.strip().splitlines()[-1])
    if facts["gpu"]:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip() or "unknown"
    return facts | {"date": f"{datetime.now():%Y-%m-%d}"}


def write(output, facts, results):
    (output / "gpu.json").write_text(json.dumps({"machine": facts, "parts": results}, indent=1), encoding="utf-8")
    versions = ", ".join(
        f"{name} {facts[name]}" for name in ("driver", "torch", "transformers", "python") if name in facts
    )
    lines = [f"**{facts['device']}**, {versions}; {facts['date']}."]
    if not facts["gpu"]:
        lines += ["", "**Measured on a CPU with toy models: these numbers show that the script runs, not its speed.**"]
    for part, result in results.items():
        columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
        lines += ["", f"### {part}", "", f"{result['about']} Part {result['end']}, {result['seconds']:.0f} s."]
        if columns:
            lines += ["", f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
            lines += [f"| {' | '.join(_shown(row.get(key)) for key in columns)} |" for row in result["rows"]]
    (output / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _shown(value):
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value).replace("|", "/")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and gpu.md")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to put first on the path")
    parser.add_argument("--collect-wheels", type=Path, metavar="FOLDER", help="fill that folder, and nothing else")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one")
    parser.add_argument("--parts", nargs="+", choices=[part.__name__ for part in PARTS], help="default: all")
    for internal in ("--part", "--rows"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return run_part(options)
    if options.collect_wheels:
        return collect_wheels(options.collect_wheels)
    path = [unpack(options.wheels)] if options.wheels else []
    path += [str(ROOT / "src"), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    environment = {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(path)}
    options.output.mkdir(parents=True, exist_ok=True)
    facts, results = describe_machine(environment), {}
    device = options.device or ("cuda" if facts["gpu"] else "cpu")
    if device == "cpu":
        facts |= {"device": "CPU", "gpu": False}
    print(f"{facts}", flush=True)
    for part, limit in PARTS.items():
        if options.parts and part.__name__ not in options.parts:
            continue
        started = time.monotonic()
        left = TOTAL_SECONDS - (started - STARTED)
        print(f"[{started - STARTED:5.1f} s] {part.__name__}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.jsonl"
            end = (
                run_in_process(part.__name__, device, min(limit, left), rows, environment)
                if left > 10
                else "left out: no time"
            )
            found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
        result = {"about": part.__doc__, "end": end, "seconds": time.monotonic() - started, "rows": found}
        results[part.__name__] = result
        write(options.output, facts, results)
    print((options.output / "gpu.md").read_text(), flush=True)


if __name__ == "__main__":
    main()
