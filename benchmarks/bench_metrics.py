"""Retrieval metrics against the original's way, which sorts the full score matrix: ratios in one process, with memory.

Run as `python benchmarks/bench_metrics.py [--utterances 25000] [--images 5000] [--width 768]`.
"""

import argparse
import time

import torch
from bench_core import PeakMemory

from speechclip_plus.trainer.evaluation.retrieval_metrics import retrieval_recall, retrieval_statistics


def sorted_recalls(speech, images, speech_ids, image_ids, ks=(1, 5, 10)):
    """All scores, sorted in both directions, and a look at the ids of the first k."""
    scores = speech @ images.T  # (S, I)
    right = image_ids[scores.argsort(dim=1, descending=True)] == speech_ids[:, None]
    found = {f"speech_to_image_R@{k}": 100 * right[:, :k].any(1).double().mean().item() for k in ks}
    right = speech_ids[scores.T.argsort(dim=1, descending=True)] == image_ids[:, None]
    return found | {f"image_to_speech_R@{k}": 100 * right[:, :k].any(1).double().mean().item() for k in ks}


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def peak(function, *arguments):
    with PeakMemory() as memory:
        function(*arguments)
    return memory.mb


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=25_000)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--width", type=int, default=768)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(args.images, args.width, generator=generator), dim=-1)
    image_ids = torch.arange(args.images)
    speech_ids = image_ids.repeat(-(-args.utterances // args.images))[: args.utterances]
    noise = torch.randn(args.utterances, args.width, generator=generator) * 0.25
    speech = torch.nn.functional.normalize(images[speech_ids] + noise, dim=-1)
    data = (speech, images, speech_ids, image_ids)

    print(
        f"{args.utterances:,} utterances, {args.images:,} images, {args.width} wide, {torch.get_num_threads()} threads"
    )
    plain_seconds, expected = timed(sorted_recalls, *data)
    for name, function in (("recalls", retrieval_recall), ("everything, with intervals", retrieval_statistics)):
        seconds, result = timed(function, *data)
        values = result if isinstance(result, dict) else result.values
        worst = max(abs(values[key] - value) for key, value in expected.items())
        print(
            f"{name}: {seconds:.1f} s against {plain_seconds:.1f} s ({plain_seconds / seconds:.1f} x), "
            f"peak {peak(function, *data):,.0f} MB; recalls differ by at most {worst:.4f} points"
        )
    print(f"the full sort: peak {peak(sorted_recalls, *data):,.0f} MB")


if __name__ == "__main__":
    main()
