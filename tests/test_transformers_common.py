"""transformers' own common tests of models and configurations, from the source distribution of its installed version.

The distribution is downloaded once, into a folder that git ignores; where it cannot be had, the tests are skipped.
"""

import importlib
import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from pathlib import Path

import pytest
import torch

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel

VERSION = importlib.metadata.version("transformers")
SOURCES = Path(__file__).resolve().parents[1] / ".transformers-tests" / VERSION
FILES = ("test_modeling_common.py", "test_configuration_common.py")
PACKAGE = "transformers_common_tests"
# What those files import of others that the distribution leaves out, with stand-ins.
ABSENT = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}


def download() -> None:
    """Fetch the distribution by pip, which verifies its checksum, and keep the files that are used."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--no-binary=:all:",
            "--no-deps",
            "--retries=1",
            "--timeout=10",
            "--disable-pip-version-check",
            "-q",
        ]
        command = [sys.executable, "-m", "pip", "download", *options, "-d", folder, f"transformers=={VERSION}"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"transformers' tests cannot be downloaded: {result.stderr[-300:]}", allow_module_level=True)
        SOURCES.mkdir(parents=True, exist_ok=True)
        with tarfile.open(f"{folder}/transformers-{VERSION}.tar.gz") as archive:
            for name in FILES:
                (SOURCES / name).write_bytes(archive.extractfile(f"transformers-{VERSION}/tests/{name}").read())
    (SOURCES / "__init__.py").touch()  # last: now it is whole


def load(name: str) -> types.ModuleType:
    """Import one of the files as a module of a package that holds the stand-ins too."""
    if not (SOURCES / "__init__.py").is_file():
        download()
    for path, contents in {"": {}, **ABSENT}.items():
        parts = [PACKAGE, *filter(None, path.split("."))]
        for depth in range(1, len(parts) + 1):
            module = types.ModuleType(".".join(parts[:depth]))
            module.__path__ = [str(SOURCES)] if depth == 1 else []
            sys.modules.setdefault(module.__name__, module)
        vars(sys.modules[".".join(parts)]).update(contents)
    return importlib.import_module(f"{PACKAGE}.{name}")


modeling = load("test_modeling_common")
configuration = load("test_configuration_common")


WIDTH = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPEECH = {
    "model_type": "hubert",
    **WIDTH,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


class ModelTester:
    """Tiny models and inputs, in the form that transformers' tests ask for."""

    is_training = True
    batch_size = 2
    num_hidden_layers = 2
    hidden_size = 32
    num_attention_heads = 2
    seq_length = 12  # frames of 4,000 samples

    def __init__(self, variant: str, train_backbones: bool):
        self.variant = variant
        self.train_backbones = train_backbones
        self.text_model_tester = TextModelTester()

    def get_config(self) -> SpeechClipPlusConfig:
        return SpeechClipPlusConfig(
            model_variant=self.variant,
            # The length-aware first convolution of models with a group norm is the one layer without checkpointing.
            speech_config={"feat_extract_norm": "layer" if self.train_backbones else "group", **SPEECH},
            clip_config={
                "projection_dim": 32,
                "text_config": {**WIDTH, "vocab_size": 99, "bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 4},
                "vision_config": {**WIDTH, "image_size": 30, "patch_size": 15},
            },
            branch_config={"num_attention_heads": 2, "intermediate_size": 32},
            train_speech_encoder=self.train_backbones,
            train_clip=self.train_backbones,
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {
            "input_values": modeling.floats_tensor([self.batch_size, 4000]),
            "attention_mask": torch.ones(self.batch_size, 4000, dtype=torch.long),
            "pixel_values": modeling.floats_tensor([self.batch_size, 3, 30, 30]),
            "input_ids": modeling.ids_tensor([self.batch_size, 7], 99),
        }


class TextModelTester:
    num_hidden_layers = 2

    def prepare_config_and_inputs_for_common(self):
        return None, {"input_ids": modeling.ids_tensor([2, 7], 99)}


class HybridPlusTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (SpeechClipPlusModel,)
    _is_composite = True
    variant = "hybrid_plus"

    def setUp(self):
        # A frozen backbone has no gradients, and stays in evaluation mode.
        trained = any(word in self._testMethodName for word in ("training", "retain_grad"))
        self.model_tester = ModelTester(self.variant, trained)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        inputs.pop("input_ids", None)  # of the tests of vocabularies: forward takes no texts
        return {**inputs, "return_loss": True} if return_labels else inputs

    def test_config(self):
        tester = configuration.ConfigTester(self, config_class=SpeechClipPlusConfig, has_text_modality=False)
        tester.run_common_tests()

    def test_can_init_all_missing_weights(self):
        """The library leaves out models of before 2023, as the backbones are; this is of the other parts."""
        config = self.model_tester.get_config()
        with modeling.seeded_weight_init():
            made = SpeechClipPlusModel(config)
            loaded = SpeechClipPlusModel.from_pretrained(None, config=config, state_dict={})
        values = loaded.state_dict()
        other = [name for name, value in made.state_dict().items() if not torch.equal(value, values[name])]
        assert [name for name in other if not name.startswith(("clip.", "speech_encoder."))] == []

    @unittest.skip("all hidden states enter the weighted sum, so that none can be left out")
    def test_can_capture_specific_layers_hidden_states(self):
        pass


class ParallelTest(HybridPlusTest):
    variant = "parallel"
    test_all_params_have_gradient = False  # CLIP's text encoder has no part in its loss


class CascadedTest(HybridPlusTest):
    variant = "cascaded"


class CascadedPlusTest(HybridPlusTest):
    variant = "cascaded_plus"


class HybridTest(HybridPlusTest):
    variant = "hybrid"


# The variants differ in their parameters, buffers and outputs; what concerns the backbones is the same in all.
PER_VARIANT = (
    "test_config",
    "test_save_load",
    "test_keep_in_fp32_modules",
    "test_can_init_all_missing_weights",
    "test_init_weights_can_init_buffers",
    "test_all_tensors_are_parameter_or_buffer",
    "test_model_outputs_equivalence",
    "test_batching_equivalence",
    "test_training_gradient_checkpointing",
    "test_resize_tokens_embeddings",
)
for case in (ParallelTest, CascadedTest, CascadedPlusTest, HybridTest):
    for name in dir(case):
        if name.startswith("test_") and callable(getattr(case, name)) and name not in PER_VARIANT:
            setattr(case, name, None)
del case, name
