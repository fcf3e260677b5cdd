"""The core against the original's formulas, written plainly: ratios in one process, with peak memory.

Run as `python benchmarks/bench_core.py [cif] [quantizer] [reading] [branch]`; without a name all of them. Each line is
the median time of the plain formula over the median time of this package, both measured in turn, and the peak of the
memory that torch allocated in each.
"""

import argparse
import gc
import os
import statistics
import time
from functools import partial

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which measures memory, talks otherwise

import torch
import torch.nn.functional as F

from speechclip_plus.modeling_speechclip_plus.cif import integrate_and_fire
from speechclip_plus.modeling_speechclip_plus.keywords import quantize_keywords

# The original's formulas


def plain_integrate_and_fire(frames, alphas, threshold=1.0):
    """One scatter for each side of a firing and for each extra firing of a burst."""
    batch, _, size = frames.shape
    sums = alphas.cumsum(-1)
    lengths = (sums[:, -1] / threshold).floor().long().clip(1, 75)
    slots = int(lengths.max())
    right = (sums / threshold).floor().long().clip(max=slots)
    left = right.roll(1, dims=1)
    left[:, 0] = 0
    fires = right - left
    extra = (fires - 1).clip(min=0)
    right_weight = torch.where(fires > 0, sums - right * threshold, torch.zeros_like(sums))
    left_weight = alphas - right_weight - extra * threshold
    keywords = frames.new_zeros(batch, slots + 1, size)
    keywords = keywords.scatter_add(1, left[..., None].expand(-1, -1, size), left_weight[..., None] * frames)
    keywords = keywords.scatter_add(1, right[..., None].expand(-1, -1, size), right_weight[..., None] * frames)
    source = left
    for _ in range(int(extra.max())):
        source = (source + 1).clip(max=slots)
        share = threshold * (extra > 0)
        keywords = keywords.scatter_add(1, source[..., None].expand(-1, -1, size), share[..., None] * frames)
        extra = extra - 1
    return keywords[:, :slots]


def plain_quantize(features, table, temperature=0.1):
    """Cosine similarity by broadcasting one keyword at a time against the whole table, then one-hot products."""
    similarities = []
    for n in range(features.shape[1]):
        similarities.append(F.cosine_similarity(features[:, n, :, None], table.T[None], dim=1))  # (B, V)
    similarities = torch.stack(similarities, dim=1)
    similarities[..., [0, 2, 3]] = -torch.inf
    soft = torch.softmax(similarities / temperature, dim=-1)
    hard = torch.zeros_like(soft).scatter_(-1, similarities.argmax(-1, keepdim=True), 1.0)
    return (hard - soft.detach() + soft) @ table


def plain_place_keywords(keywords, lengths, start, end, places=77):
    """A Python loop over utterances that puts keywords between start and end, always at all 77 places."""
    embeds = torch.zeros(len(keywords), places, keywords.shape[-1])
    for row, length in enumerate(lengths.tolist()):
        embeds[row, 0] = start
        embeds[row, 1 : length + 1] = keywords[row, :length]
        embeds[row, length + 1] = end
    return embeds


# Measuring


class PeakMemory:
    """Peak of what torch allocates on the CPU while this is active, in MB, from the profiler's allocation events."""

    def __enter__(self):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self.profile.__enter__()
        return self

    def __exit__(self, *error):
        self.profile.__exit__(*error)
        used = peak = 0
        for event in self.profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                used += event.nbytes()
                peak = max(peak, used)
        self.mb = peak / 1e6


def timed(function) -> float:
    gc.collect()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(name, plain, ours, repeats=7, share=1):
    """Print the ratio of medians and the peaks; both run in turn. `plain` may do only one of `share` equal parts."""
    ours()
    if repeats > 1:
        plain()
    times = [(share * timed(plain), timed(ours)) for _ in range(repeats)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    peaks = []
    for function in (plain, ours):
        with PeakMemory() as memory:
            function()
        peaks.append(memory.mb)
    print(
        f"{name:<48} {medians[0] / medians[1]:7.1f} x faster   {medians[0] * 1e3:9.1f} -> {medians[1] * 1e3:8.1f} ms"
        f"   peak {peaks[0]:9.1f} -> {peaks[1]:8.1f} MB ({peaks[0] / max(peaks[1], 1e-9):.1f} x less)",
        flush=True,
    )


def forward_and_backward(function, inputs, backward):
    def run():
        leaves = [value.detach().requires_grad_(backward) for value in inputs]
        output = function(*leaves)
        if backward:
            output.square().sum().backward()

    return run


def bench_cif():
    """Integrate-and-fire itself, at the sizes of a base and a large model."""
    for batch, frames, size in ((16, 250, 768), (8, 512, 1024)):
        features = torch.randn(batch, frames, size)
        alphas = torch.rand(batch, frames) * 0.1  # about one keyword per 20 frames
        difference = (
            plain_integrate_and_fire(features, alphas) - integrate_and_fire(features, alphas, keep_residue=True)[0]
        )
        assert difference.abs().max() < 1e-3
        for backward in (False, True):
            compare(
                f"integrate-and-fire {(batch, frames, size)} {'with backward' if backward else 'forward'}",
                forward_and_backward(plain_integrate_and_fire, (features, alphas), backward),
                forward_and_backward(lambda f, a: integrate_and_fire(f, a)[0], (features, alphas), backward),
                repeats=21,
            )


def bench_quantizer():
    """Similarity and quantisation of 16 x 16 keywords.

    The plain formula goes keyword by keyword, so that one of the sixteen is timed and counted sixteen times; its peak
    is that of one keyword too, which is too little wherever a backward pass keeps all of them.
    """
    features = torch.randn(16, 16, 512)
    for vocabulary in (8_112, 49_408):
        table = torch.randn(vocabulary, 512)
        allowed = torch.ones(vocabulary, dtype=torch.bool)
        allowed[[0, 2, 3]] = False
        plain = partial(plain_quantize, table=table)
        ours = partial(_quantized, table=table, allowed=allowed)
        for backward in (False, True):
            compare(
                f"quantisation V={vocabulary} {'with backward' if backward else 'forward'}",
                forward_and_backward(plain, (features[:, :1],), backward),
                forward_and_backward(ours, (features,), backward),
                repeats=3 if vocabulary < 10_000 else 1,
                share=16,
            )


def _quantized(features, table, allowed):
    return quantize_keywords(features, table, allowed).embeds


def base_model(variant="hybrid_plus"):
    """A base-size model with random weights, and a batch of 64 utterances of 4 seconds as HuBERT leaves it."""
    from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel

    torch.manual_seed(0)
    return SpeechClipPlusModel(SpeechClipPlusConfig.from_preset(f"{variant}-base-flickr8k"))


def bench_reading():
    """Reading 64 x 10 keywords with CLIP's text encoder: K + 2 places and no loop, against 77 places and a loop."""
    model = base_model().eval()
    clip = model.clip
    lengths = torch.randint(5, 11, (64,))
    keywords = torch.randn(64, 10, 512)
    table = clip.text_model.embeddings.token_embedding.weight

    def plain(keywords):
        embeds = plain_place_keywords(keywords, lengths, table[49406], table[49407])
        hidden = clip.text_model.embeddings(inputs_embeds=embeds)
        hidden = clip.text_model.encoder(inputs_embeds=hidden, attention_mask=None, is_causal=True).last_hidden_state
        hidden = clip.text_model.final_layer_norm(hidden)
        return clip.text_projection(hidden[torch.arange(64), lengths + 1])

    for backward in (False, True):
        compare(
            f"reading keywords {'with backward' if backward else 'forward'}",
            forward_and_backward(plain, (keywords,), backward),
            forward_and_backward(lambda k: model._embed_keywords(k, lengths), (keywords,), backward),
            repeats=3,
        )


def bench_branch():
    """All that is trained, with its losses, next to the frozen HuBERT-base forward on the same 64 x 4 seconds."""
    model = base_model().train()
    waveforms, mask = torch.randn(64, 64_000), torch.ones(64, 64_000, dtype=torch.long)
    image_embeds, image_ids = torch.randn(64, 512), torch.arange(64)
    states, lengths = model.encode_speech_frames(waveforms, mask)
    encoder = [timed(lambda: model.encode_speech_frames(waveforms, mask)) for _ in range(2)]

    def branch(backward):
        audio = model.encode_audio(speech_hidden_states=states, frame_lengths=lengths)
        loss = model.score(audio, image_embeds=image_embeds, image_ids=image_ids, return_loss=True).loss
        if backward:
            loss.backward()

    median = statistics.median(encoder)
    print(f"HuBERT-base forward, 64 x 4 s: {median:.2f} s (runs: {', '.join(f'{t:.2f}' for t in encoder)})")
    for backward in (False, True):
        branch(backward)
        seconds = statistics.median(timed(partial(branch, backward)) for _ in range(3))
        what = "forward and backward" if backward else "forward"
        print(f"branch with losses {what}: {seconds:.2f} s, {100 * seconds / median:.1f} % of the encoder", flush=True)


BENCHMARKS = {"cif": bench_cif, "quantizer": bench_quantizer, "reading": bench_reading, "branch": bench_branch}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all if none is given")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; choose of {', '.join(BENCHMARKS)}")
    torch.set_num_threads(arguments.threads)
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name]()
