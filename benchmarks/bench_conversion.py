"""Converting a checkpoint of full size: time, peak memory, size.

Writes a file in the original's format with random weights (hybrid_plus, large: HuBERT-large and CLIP ViT-L/14), then
runs `speechclip-plus convert` on it in a process of its own.
"""

import argparse
import importlib.util
import resource
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
        _, status, usage = os_wait(process)
        if status:
            raise SystemExit(f"the conversion failed: exit code {status}")
        seconds = time.perf_counter() - started
        written = sum(file.stat().st_size for file in output.iterdir())
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        f"{args.preset}: checkpoint {size / 1e9:.2f} GB, converted in {seconds:.0f} s, peak memory "
        f"{peak / 1e9:.2f} GB ({peak / size:.2f} x the checkpoint), output {written / 1e9:.2f} GB"
    )


def os_wait(process: subprocess.Popen) -> tuple[int, int, resource.struct_rusage]:
    """Wait for a process; its id, exit status and resource usage."""
    import os

    return os.wait4(process.pid, 0)


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
