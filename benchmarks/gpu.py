"""GPU benchmark: runs the parts of gpu_parts.py under time limits and writes their results as JSON and Markdown.

    python benchmarks/gpu.py --output OUT [--wheels .wheels] [--parts steps kernels] [--device cpu]

Each part is a process of its own, so that a fault in one leaves the others alone; after each, `OUT/gpu.json` and
`OUT/gpu.md` hold what has been measured so far. Without a GPU the same code runs on the CPU with tiny models, and the
table says so: it then shows that the script works, and nothing about speed.

A bare machine needs Python 3.12 with torch, accelerate, pandas, pyarrow, pillow, pytest and their like. `--wheels`
names a folder of wheels to unpack and put first on the path, in place of what is missing or too old there;
`--collect-wheels` fills it, on a machine where the package is installed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Each part's limit in seconds on a GPU, in the order in which they run.
PARTS = {"numerics": 70, "steps": 120, "kernels": 30, "throughput": 35, "attention": 50, "scenes": 225}
TOTAL_SECONDS = 470
# What a bare machine lacks, or has in a version that may be too old.
WHEELS = (
    "transformers huggingface_hub httpx2 httpcore2 truststore idna h11 anyio click regex datasets dill multiprocess "
    "soundfile cffi pycparser soxr espeakng_loader"
).split()
MAX_WHEELS_MB = 60
MACHINE = """
import json, platform, torch, transformers
gpu = torch.cuda.is_available()
print(json.dumps({
    "device": torch.cuda.get_device_name() if gpu else "CPU", "gpu": gpu, "torch": torch.__version__,
    "transformers": transformers.__version__, "python": platform.python_version(),
}))
"""


def collect_wheels(folder):
    """Download `WHEELS` for Linux in the versions installed here."""
    for old in folder.glob("*.whl"):
        old.unlink()
    platforms = [f"--platform=manylinux{n}_x86_64" for n in ("1", "2014", "_2_17", "_2_24", "_2_27", "_2_28", "_2_34")]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms]
    command += ["--python-version=3.12", "--implementation=cp", "-d", str(folder)]
    subprocess.run([*command, *(f"{name}=={version(name)}" for name in WHEELS)], check=True)
    megabytes = sum(wheel.stat().st_size for wheel in folder.glob("*.whl")) / 1e6
    print(f"{len(WHEELS)} wheels, {megabytes:.1f} MB in {folder}")
    if megabytes > MAX_WHEELS_MB:
        raise SystemExit(f"error: more than {MAX_WHEELS_MB} MB")


def make_environment(wheels, folder):
    """Variables of the processes: the wheels first on the path, then this repository's sources; no network."""
    path = []
    if wheels:
        found = sorted(wheels.glob("*.whl"))
        if not found:
            raise SystemExit(f"error: no wheels in {wheels}; `make gpu-wheels` collects them")
        for wheel in found:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        path.append(str(folder))
    path += [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(path)}


def describe_machine(environment, device):
    """Name of the device, versions and date."""
    command = [sys.executable, "-c", MACHINE]
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    facts = json.loads(found.stdout.strip().splitlines()[-1])
    if device == "cpu":
        facts |= {"device": "CPU", "gpu": False}
    if facts["gpu"]:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.strip()
    return facts | {"date": f"{datetime.now():%Y-%m-%d}"}


def run_part(part, device, seconds, environment):
    """Run a part in a process group of its own; returns how it ended and its rows."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu_parts.py"), part, device, str(seconds), str(rows)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code = process.wait(timeout=seconds + 2)
            end = "finished" if code == 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            end = f"stopped after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
            process.wait()
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    return end, [json.loads(line) for line in lines]


def write(output, facts, results):
    """Write what there is so far as `gpu.json` and `gpu.md`."""
    (output / "gpu.json").write_text(json.dumps({"machine": facts, "parts": results}, indent=1), encoding="utf-8")
    versions = [f"{name} {facts[name]}" for name in ("driver", "torch", "transformers", "python") if name in facts]
    lines = [f"**{facts['device']}**, {', '.join(versions)}; {facts['date']}."]
    if not facts["gpu"]:
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
    parser.add_argument("--wheels", type=Path, help="folder of wheels to put first on the path")
    parser.add_argument("--collect-wheels", type=Path, metavar="FOLDER", help="fill that folder, and nothing else")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    options = parser.parse_args()
    if options.collect_wheels:
        return collect_wheels(options.collect_wheels)
    started = time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheels-") as folder:
        environment = make_environment(options.wheels, folder)
        facts, results = describe_machine(environment, options.device), {}
        print(facts, flush=True)
        for part in (part for part in PARTS if part in options.parts):
            begun = time.monotonic()
            print(f"[{begun - started:5.1f} s] {part}", flush=True)
            seconds = min(PARTS[part], TOTAL_SECONDS - (begun - started))
            if not facts["gpu"]:
                seconds = TOTAL_SECONDS  # toy sizes take a minute or two in all, but a CPU may be a busy one
            end, rows = "left out: no time", []
            if seconds > 10:
                end, rows = run_part(part, "cuda" if facts["gpu"] else "cpu", seconds, environment)
            results[part] = {"end": end, "seconds": time.monotonic() - begun, "rows": rows}
            print(f"[{time.monotonic() - started:5.1f} s] {part} {end}", flush=True)
            write(options.output, facts, results)
    print((options.output / "gpu.md").read_text(encoding="utf-8"), flush=True)


if __name__ == "__main__":
    main()
