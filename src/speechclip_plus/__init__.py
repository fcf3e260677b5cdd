"""Visually grounded speech: SpeechCLIP+ models for the Hugging Face ecosystem.

Importing this package registers its model with `AutoConfig`, `AutoModel` and `AutoProcessor`, and its pipelines
with `transformers.pipeline`. What trains and evaluates is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from .configuration.presets import load_preset, preset_names
from .modeling_speechclip_plus.embedding_index import EmbeddingIndex
from .modeling_speechclip_plus.modeling_speechclip_plus import (
    SpeechClipPlusModel,
    SpeechClipPlusPreTrainedModel,
)
from .modeling_speechclip_plus.outputs import Keyword, Neighbour, SpeechClipPlusOutput
from .modeling_speechclip_plus.pipelines import PIPELINES
from .modeling_speechclip_plus.pipelines.features import (
    SpeechFeatureExtractionPipeline,
    ZeroShotSpeechClassificationPipeline,
)
from .modeling_speechclip_plus.pipelines.image_retrieval import SpeechImageRetrievalPipeline
from .modeling_speechclip_plus.pipelines.keyword_extraction import SpeechKeywordExtractionPipeline
from .modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor

if TYPE_CHECKING:
    from .conversion.convert import convert_checkpoint
    from .conversion.open_clip import import_open_clip
    from .hub_cards.push import push_folder
    from .trainer.collator import SpeechImageCollator
    from .trainer.data.load import load_speech_image_dataset
    from .trainer.index_building import build_index
    from .trainer.trainer_speechclip_plus import SpeechClipPlusTrainer
    from .trainer.training_arguments import SpeechClipPlusTrainingArguments

__version__ = "0.1.0"

_LAZY = {
    "convert_checkpoint": ".conversion.convert",
    "import_open_clip": ".conversion.open_clip",
    "SpeechClipPlusTrainer": ".trainer.trainer_speechclip_plus",
    "SpeechClipPlusTrainingArguments": ".trainer.training_arguments",
    "SpeechImageCollator": ".trainer.collator",
    "build_index": ".trainer.index_building",
    "load_speech_image_dataset": ".trainer.data.load",
    "push_folder": ".hub_cards.push",
}

AutoConfig.register(SpeechClipPlusConfig.model_type, SpeechClipPlusConfig, exist_ok=True)
AutoModel.register(SpeechClipPlusConfig, SpeechClipPlusModel, exist_ok=True)
AutoProcessor.register(SpeechClipPlusConfig, SpeechClipPlusProcessor, exist_ok=True)
for task, pipeline_class in PIPELINES.items():
    PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=AutoModel, type="multimodal")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


__all__ = [
    "SpeechImageRetrievalPipeline",
    "SpeechKeywordExtractionPipeline",
    "SpeechFeatureExtractionPipeline",
    "ZeroShotSpeechClassificationPipeline",
    "EmbeddingIndex",
    "Keyword",
    "Neighbour",
    "SpeechClipPlusConfig",
    "SpeechClipPlusModel",
    "SpeechClipPlusOutput",
    "SpeechClipPlusPreTrainedModel",
    "SpeechClipPlusProcessor",
    "SpeechClipPlusTrainer",
    "SpeechClipPlusTrainingArguments",
    "SpeechImageCollator",
    "build_index",
    "convert_checkpoint",
    "import_open_clip",
    "load_preset",
    "load_speech_image_dataset",
    "preset_names",
    "push_folder",
]
