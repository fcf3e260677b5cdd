"""Converting a checkpoint of full size: time, peak memory, size.

Writes a file in the original's format with random weights (hybrid_plus, large: HuBERT-large and CLIP ViT-L/14), then
runs `speechclip-plus convert` on it in a process of its own.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import torch

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel


def main() -> None:
    """Write, convert, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="hybrid_plus-large-flickr8k", help="published configuration to imitate")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, output = Path(folder, "model.ckpt"), Path(folder, "out")
        # Written by another process, whose memory does not count.
        subprocess.run([sys.executable, __file__, "--preset", args.preset, "--write", str(checkpoint)], check=True)
        size = checkpoint.stat().st_size
        started = time.perf_counter()
        command = [sys.executable, "-m", "speechclip_plus_cli", "convert", str(checkpoint), str(output)]
        process = subprocess.Popen([*command, "--preset", args.preset])
        peak, peak_own = watch_memory(process)
        if process.returncode:
            raise SystemExit(f"the conversion failed: exit code {process.returncode}")
        seconds = time.perf_counter() - started
        written = sum(file.stat().st_size for file in output.iterdir())
    print(
        f"{args.preset}: checkpoint {size / 1e9:.2f} GB, converted in {seconds:.0f} s, peak memory "
        f"{peak / 1e9:.2f} GB, without mapped files {peak_own / 1e9:.2f} GB ({peak_own / size:.2f} x the checkpoint), "
        f"output {written / 1e9:.2f} GB"
    )


def watch_memory(process: subprocess.Popen) -> tuple[int, int]:
    """Wait for a process; its peak resident memory in bytes, in all and without mapped files (Linux)."""
    peaks = {"VmRSS": 0, "RssAnon": 0}
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        for name in peaks.keys() & fields.keys():
            peaks[name] = max(peaks[name], 1024 * int(fields[name].split()[0]))
        time.sleep(0.05)
    return peaks["VmRSS"], peaks["RssAnon"]


def write(preset: str, path: Path) -> None:
    """Write a checkpoint of full size in the original's format, CLIP standing twice in it as in theirs."""
    config = SpeechClipPlusConfig.from_preset(preset, padding="original")
    model = SpeechClipPlusModel(config)
    file = Path(__file__).parents[1] / "tests" / "test_conversion.py"
    spec = importlib.util.spec_from_file_location("test_conversion", file)
    helpers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helpers)
    helpers.REDUCED = config.keyword_config.vocabulary_ids
    state = helpers.to_original(model)
    torch.save(OrderedDict(state_dict=state, hyper_parameters={}), path)


if __name__ == "__main__":
    if "--write" in sys.argv:
        write(sys.argv[sys.argv.index("--preset") + 1], Path(sys.argv[sys.argv.index("--write") + 1]))
    else:
        main()
