"""GPU benchmark: numerics, training steps, kernels, embedding throughput, attention and a short training.

    python benchmarks/gpu.py --output OUT [--wheels .wheels] [--parts steps kernels] [--device cpu]

Each part is a process of its own with a time limit, so that a fault in one leaves the others alone; `OUT/gpu.json`
and `OUT/gpu.md` hold what has been measured so far. Weights are random, made from the presets' configurations, except
in the short training, whose tiny encoders ship with the package. TF32 is off. Without a GPU the same code runs on the
CPU with tiny models: the table says so, and shows nothing about speed.

A bare machine needs Python 3.12 with torch, accelerate, pandas, pyarrow, pillow, pytest and their like. `--wheels`
names a folder of wheels to put first on the path, in place of what is missing or too old there; `--collect-wheels`
fills it, on a machine where the package is installed.
"""

import argparse
import copy
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# Each part's limit in seconds on a GPU, in the order in which they run.
PARTS = {"numerics": 70, "steps": 120, "kernels": 30, "throughput": 35, "attention": 50, "scenes": 165}
CPU_SECONDS = 470  # toy sizes take a minute or two in all, but a CPU may be a busy one
# What a bare machine lacks, or has in a version that may be too old.
WHEELS = (
    "transformers huggingface_hub httpx2 httpcore2 truststore idna h11 anyio click regex datasets dill multiprocess "
    "soundfile cffi pycparser soxr espeakng_loader"
).split()
SAMPLING_RATE = 16_000
BASE, LARGE, TINY = "hybrid_plus-base-flickr8k", "hybrid_plus-large-flickr8k", "hybrid_plus-tiny"
# The tests that compare with the original implementation's arrays.
GOLDEN_TESTS = ("tests/test_original_units.py", "tests/test_original_models.py")


# Processes and results


def collect_wheels(folder):
    """Download `WHEELS` for Linux in the versions installed here, and unpack them."""
    platforms = [f"--platform=manylinux{n}_x86_64" for n in ("1", "2014", "_2_17", "_2_24", "_2_27", "_2_28", "_2_34")]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:", *platforms]
    command += ["--python-version=3.12", "--implementation=cp", "--upgrade", "--target", str(folder)]
    subprocess.run([*command, *(f"{name}=={version(name)}" for name in WHEELS)], check=True)


def run_part(part, device, seconds, wheels=None):
    """Run a part in a process of its own; returns how it ended and its rows."""
    path = [str(wheels)] if wheels else []
    path += [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        command = [sys.executable, __file__, "--part", part, "--device", device, "--output", str(rows)]
        environment = {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(path)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code = process.wait(timeout=seconds)
            end = "finished" if code == 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
            process.wait()
            end = f"stopped after {seconds:.0f} s"
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    return end, [json.loads(line) for line in lines]


def write(output, facts, results):
    """Write what there is so far as `gpu.json` and `gpu.md`."""
    (output / "gpu.json").write_text(json.dumps({"machine": facts, "parts": results}, indent=1), encoding="utf-8")
    lines = [", ".join(f"{name} {value}" for name, value in facts.items())]
    if facts["device"] == "CPU":
        lines += ["", "**A CPU with tiny models: these numbers show that the script runs, and nothing about speed.**"]
    for part, result in results.items():
        columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
        lines += ["", f"### {part}", "", f"{result['end']}, {result['seconds']:.0f} s"]
        if columns:
            lines += ["", f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
            lines += [f"| {' | '.join(shown(row.get(key)) for key in columns)} |" for row in result["rows"]]
    (output / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def shown(value):
    """A table's cell."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "/")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and gpu.md")
    parser.add_argument("--wheels", type=Path, help="folder of unpacked wheels to put first on the path")
    parser.add_argument("--collect-wheels", type=Path, metavar="FOLDER", help="fill that folder, and nothing else")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # in the part's own process, with a file as --output
    options = parser.parse_args()
    if options.collect_wheels:
        return collect_wheels(options.collect_wheels)
    if options.part:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return globals()[options.part](Report(options.device, options.output))
    options.output.mkdir(parents=True, exist_ok=True)
    gpu, results = options.device == "cuda", {}
    facts = {"device": torch.cuda.get_device_name() if gpu else "CPU", "torch": torch.__version__}
    facts |= {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}
    for part in (part for part in PARTS if part in options.parts):
        print(f"{part} ...", flush=True)
        begun = time.monotonic()
        end, rows = run_part(part, options.device, PARTS[part] if gpu else CPU_SECONDS, options.wheels)
        results[part] = {"end": end, "seconds": time.monotonic() - begun, "rows": rows}
        write(options.output, facts, results)
    print((options.output / "gpu.md").read_text(encoding="utf-8"), flush=True)


class Report:
    """A part's rows, written as they come, and the device."""

    def __init__(self, device, path):
        self.device, self.path, self.gpu = torch.device(device), path, device == "cuda"

    def case(self, name, measure, *arguments):
        """Measure a row; an error becomes the row's result."""
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        row = {"case": name}
        try:
            row |= measure(*arguments)
        except Exception as error:
            traceback.print_exc()
            row["result"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


# Measuring


def now(device):
    """Seconds, when all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def median_ms(function, device, inputs, repeats):
    """Median time of `function(*values)`, going round the inputs so that none of them is still in the cache."""
    times = []
    for number in range(-len(inputs), repeats):  # the first round warms up
        start = now(device)
        function(*inputs[number % len(inputs)])
        times.append(1e3 * (now(device) - start))
    return statistics.median(times[len(inputs) :])


def peak_gb():
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def autocast(precision, device):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


# Models and batches


def build_model(preset, device):
    import speechclip_plus as package

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


def train_steps(model, batches, precision, device, steps, chunk=None):
    """Train for some steps: median times of the later half, peak memory, losses."""
    from speechclip_plus.trainer.gradient_cache import backward_in_chunks

    model.zero_grad()
    trained = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-5)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    losses, times, encoder = [], [], []
    hooks = [
        model.speech_encoder.register_forward_pre_hook(lambda *_: encoder.append(-now(device))),
        model.speech_encoder.register_forward_hook(lambda *_: encoder.append(now(device))),
    ]
    for step in range(steps):
        batch, start = batches[step % len(batches)], now(device)
        if chunk is not None:
            losses.append(backward_in_chunks(model, batch, chunk, autocast=lambda: autocast(precision, device)).loss)
        else:
            with autocast(precision, device):
                loss = model(**batch, return_loss=True, global_step=step).loss
            scaler.scale(loss).backward()
            losses.append(loss.detach())
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, 4.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        times.append(now(device) - start)
    for hook in hooks:
        hook.remove()
    of_step = len(encoder) // steps
    encoder = [sum(encoder[step * of_step : (step + 1) * of_step]) for step in range(steps)]
    step_ms, encoder_ms = (1e3 * statistics.median(own[steps // 2 :]) for own in (times, encoder))
    row = {"step ms": step_ms, "encoder ms": encoder_ms, "step / encoder": step_ms / encoder_ms, "peak GB": peak_gb()}
    return row | {"finite losses": f"{int(torch.stack(losses).isfinite().sum())} of {steps}"}


# The parts


def numerics(report):
    """The golden tests on the device, then each utterance alone against itself in a padded batch."""
    device = report.device
    report.case(f"golden tests, fp32, {device.type}", run_golden_tests, device)
    model = build_model(BASE if report.gpu else TINY, device).eval()
    batch = make_batch(model, 8, device)
    with torch.no_grad():
        reference = model(batch["input_values"], batch["attention_mask"])
    for precision in ("fp32", "bf16", "fp16"):
        report.case(
            f"padding invariance, {precision}", padding_differences, model, batch, reference, precision, device
        )
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        half = copy.deepcopy(model).to(dtype).float_statistics()
        name = f"padding invariance, weights in {precision}"
        report.case(name, padding_differences, half, batch, reference, None, device)


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
                report.case(f"{name}, {precision}, batch {size}", train_steps, model, batches, precision, device, 8)
        batches = [make_batch(model, large_batch, device)]
        title = f"{name}, bf16, batch {large_batch} in chunks of {chunk}"
        report.case(title, train_steps, model, batches, "bf16", device, 4, chunk)


def kernels(report):
    """Integrate-and-fire and quantisation against the plain formulas."""
    from bench_core import integrate_and_fire, plain_integrate_and_fire, plain_quantize, quantize_keywords

    device = report.device

    def compare(plain, ours, inputs, share):
        plain_ms = share * median_ms(plain, device, inputs, 8)
        row = {"plain ms": plain_ms, "plain peak GB": peak_gb()}
        if report.gpu:
            torch.cuda.reset_peak_memory_stats()
        ms = median_ms(ours, device, inputs, 20)
        return row | {"ours ms": ms, "ours peak GB": peak_gb(), "times faster": plain_ms / ms}

    def backward(function, *inputs):
        function(*(value.detach().requires_grad_() for value in inputs)).square().sum().backward()

    def both(name, plain, ours, inputs, share=1):
        report.case(name, compare, plain, ours, inputs, share)
        report.case(
            f"{name}, with backward", compare, partial(backward, plain), partial(backward, ours), inputs, share
        )

    def fire(frames, alphas):
        return integrate_and_fire(frames, alphas)[0]

    for shape in ((64, 320, 768), (1024, 320, 768)) if report.gpu else ((4, 64, 32),):
        inputs = [(torch.randn(shape, device=device), torch.rand(shape[:2], device=device) * 0.1) for _ in range(4)]
        both(f"integrate-and-fire {shape}", plain_integrate_and_fire, fire, inputs)

    batch, places, size, vocabulary = (64, 16, 512, 49_408) if report.gpu else (2, 4, 32, 600)
    table = torch.randn(vocabulary, size, device=device)
    allowed = torch.ones(vocabulary, dtype=torch.bool, device=device)
    inputs = [(torch.randn(batch, places, size, device=device),) for _ in range(4)]
    # The plain formula goes keyword by keyword: one of them is timed and counted for all.
    both(
        f"quantisation ({batch}, {places}, {size}), V = {vocabulary}",
        lambda features: plain_quantize(features[:, :1], table),
        lambda features: quantize_keywords(features, table, allowed).embeds,
        inputs,
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

        batches = [tuple(value.pin_memory() if report.gpu else value for value in batch) for batch in batches]
        run(batches[:2])
        started = now(device)
        run(batches)
        return sum(len(batch[0]) for batch in batches) / (now(device) - started)

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

    report.case("utterances, unsorted", utterances, torch.arange(count))
    report.case("utterances, sorted by length", utterances, lengths.argsort())
    report.case("images", images)


def attention(report):
    """Training steps in bf16 under each attention implementation."""
    device = report.device
    model, size = build_model(BASE if report.gpu else TINY, device), 64 if report.gpu else 2
    batches = [make_batch(model, size, device) for _ in range(4)]
    equal = [make_batch(model, size, device, seconds=(4.2, 4.2)) for _ in range(4)]
    unmasked = [{name: value for name, value in batch.items() if name != "attention_mask"} for batch in equal]

    def measure(implementation, batches):
        model.set_attn_implementation(implementation)
        return train_steps(model, batches, "bf16", device, 16 if report.gpu else 4)

    for name in ("eager", "sdpa", "flash_attention_2", "flex_attention"):
        report.case(name, measure, name, batches)
    report.case("sdpa, equal lengths, with a mask", measure, "sdpa", equal)
    report.case("sdpa, equal lengths, no mask (torch's flash kernel)", measure, "sdpa", unmasked)


def scenes(report):
    """`speechclip-plus train` on spoken scenes, with frozen encoders; recall on unseen scenes."""
    report.case(TINY, train_scenes, report.gpu)


def train_scenes(gpu):
    from speechclip_plus_cli.main import main as speechclip_plus

    scenes, steps, size = (2000, 500, 128) if gpu else (32, 4, 8)
    training = {"max_steps": steps, "eval_steps": steps, "per_device_train_batch_size": size, "learning_rate": 1e-3}
    training |= {"bf16": True, "dataloader_num_workers": 8} if gpu else {"use_cpu": True}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = ["train", "--preset", TINY, "--data", "spoken_scenes", "--option", f"num_scenes={scenes}"]
        command += ["--output-dir", str(run), *(f"--set={name}={value}" for name, value in training.items())]
        started = time.monotonic()
        code = speechclip_plus(command)
        row = {"exit code": code, "s in all": time.monotonic() - started}
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    names = ("parallel_mean_R@10", "cascaded_mean_R@10")
    row |= {"images": scenes, "steps": steps, **{name: results["metrics"][name] for name in names}}
    return row | {"chance": results["chance"]["mean_R@10"]}


if __name__ == "__main__":
    main()
