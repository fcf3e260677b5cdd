"""A step of the trained part on kept features, plain and under torch.compile: CPU time of this process."""

import argparse
import statistics
import time

import torch

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="hybrid_plus-tiny")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=150)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = SpeechClipPlusConfig.from_preset(args.preset)
    model = SpeechClipPlusModel(config).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4)
    layers, width = config.speech_config.num_hidden_layers + 1, config.hidden_size
    batches = [
        {
            "speech_hidden_states": torch.randn(args.batch, layers, args.frames, width),
            "frame_lengths": torch.full((args.batch,), args.frames),
            "image_embeds": torch.randn(args.batch, config.clip_config.projection_dim),
            "image_ids": torch.arange(args.batch),
        }
        for _ in range(6)
    ]

    def steps(module):
        seconds = []
        for batch in batches:
            start = time.process_time()
            module(**batch, return_loss=True, global_step=10**6).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - start)
        return seconds

    steps(model)
    plain = steps(model)
    compiled = torch.compile(model)
    first = steps(compiled)
    warm = steps(compiled)
    plain += steps(model)
    print(f"plain {statistics.median(plain):.3f} s, compiled {statistics.median(warm):.3f} s")
    print("first compiled steps:", ", ".join(f"{value:.1f} s" for value in first))


if __name__ == "__main__":
    main()
