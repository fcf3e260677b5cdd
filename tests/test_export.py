"""Export of the audio side by `torch.export`, with dynamic batch and length."""

import pytest
import torch
from torch.export import Dim

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel

MODELS = [
    ("parallel", {}),
    ("cascaded", {}),
    ("cascaded_plus", {}),
    ("cascaded_plus", {"padding": "original"}),
    ("hybrid", {}),
    ("hybrid_plus", {"cif_config": {"segmentation": "feature_change"}, "keyword_config": {"merge_repeats": True}}),
]


class AudioModel(torch.nn.Module):
    def __init__(self, model: SpeechClipPlusModel):
        super().__init__()
        self.model = model

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
        output = self.model.score(self.model.encode_audio(input_values, attention_mask))
        embeds = (output.parallel_embeds, output.cascaded_embeds)
        return [value for value in embeds if value is not None]


def make_inputs(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(mask.shape, generator=torch.Generator().manual_seed(len(lengths))) * mask, mask.long()


@pytest.mark.parametrize(("variant", "changes"), MODELS)
def test_an_exported_model_embeds_batches_of_other_sizes_and_lengths_as_the_model_does(variant, changes):
    torch.manual_seed(0)
    model = AudioModel(SpeechClipPlusModel(SpeechClipPlusConfig.from_preset(f"{variant}-tiny", **changes))).eval()
    sizes = {0: Dim("batch", max=64), 1: Dim("samples", min=4_000, max=480_000)}
    with torch.no_grad():
        exported = torch.export.export(model, make_inputs([16_000, 9_000]), dynamic_shapes=(sizes, sizes)).module()
        for lengths in ([20_123, 12_000, 5_000], [9_000, 7_777, 8_100, 4_000, 9_000]):
            inputs = make_inputs(lengths)
            torch.testing.assert_close(exported(*inputs), model(*inputs), rtol=0, atol=1e-5)
