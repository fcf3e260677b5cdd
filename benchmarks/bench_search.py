"""Searching an index against sorting all scores: ratios in one process, with memory.

Run as `python benchmarks/bench_search.py [--rows 1000000] [--width 128] [--queries 1 32]`.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from bench_metrics import peak, timed
from safetensors.torch import save_file

from speechclip_plus.atomic_files import write_json
from speechclip_plus.modeling_speechclip_plus.embedding_index import FACTS, FORMAT, VERSION, EmbeddingIndex, shard_file
from speechclip_plus.trainer.index_building import SHARD_SIZE

TOP = 5


def write_index(folder, rows, width):
    """An index of random embeddings of unit length, whose items are never looked at."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    counts = [min(SHARD_SIZE, rows - start) for start in range(0, rows, SHARD_SIZE)]
    for number, count in enumerate(counts):
        embeds = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=-1)
        save_file({"embeddings": embeds}, shard_file(folder, number))
        shard_file(folder, number).with_suffix(".parquet").touch()
    model = {"name": "random", "weights": {}}
    facts = {"format": FORMAT, "version": VERSION, "complete": True, "kind": "images", "branch": None, "model": model}
    write_json(folder / FACTS, {**facts, "shards": len(counts), "shape": [rows, width]})
    return EmbeddingIndex.load(folder)


def sorted_search(queries, embeds):
    """All scores, sorted, and the first of each query."""
    scores = queries @ embeds.T  # (Q, N)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :TOP]
    return scores.gather(1, best), best


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 32])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        index = write_index(Path(root) / "index", args.rows, args.width)
        embeds = index.embeddings  # the plain way holds them in memory
        print(f"{len(index):,} rows, {args.width} wide, {torch.get_num_threads()} threads, the best {TOP}")
        for count in args.queries:
            generator = torch.Generator().manual_seed(count)
            queries = torch.nn.functional.normalize(torch.randn(count, args.width, generator=generator), dim=-1)
            index.search(queries, TOP)  # the file is in the system's cache from here on
            times = [(timed(sorted_search, queries, embeds), timed(index.search, queries, TOP)) for _ in range(3)]
            plain_seconds, seconds = (min(run[0] for run in runs) for runs in zip(*times, strict=True))
            expected, rows = times[0][0][1][1], times[0][1][1][1]
            print(
                f"{count} queries: {seconds:.2f} s against {plain_seconds:.2f} s ({plain_seconds / seconds:.1f} x), "
                f"peak {peak(index.search, queries, TOP):,.0f} MB against "
                f"{peak(sorted_search, queries, embeds):,.0f} MB and the {embeds.nbytes / 1e6:,.0f} MB of embeddings; "
                f"the same rows: {(rows == expected).float().mean().item():.2%}"
            )


if __name__ == "__main__":
    main()
