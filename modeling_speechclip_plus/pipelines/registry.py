"""Registry of the pipelines by task, and their registration with transformers."""

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .base import SpeechClipPlusPipeline
from .feature_extraction import SpeechFeatureExtractionPipeline
from .image_retrieval import SpeechImageRetrievalPipeline
from .keyword_extraction import SpeechKeywordExtractionPipeline
from .zero_shot_classification import ZeroShotSpeechClassificationPipeline

# The one list of tasks: both the registration below and the "custom_pipelines" of published models follow it.
PIPELINES: dict[str, type[SpeechClipPlusPipeline]] = {
    "speech-image-retrieval": SpeechImageRetrievalPipeline,
    "speech-keyword-extraction": SpeechKeywordExtractionPipeline,
    "zero-shot-speech-classification": ZeroShotSpeechClassificationPipeline,
    "speech-feature-extraction": SpeechFeatureExtractionPipeline,
}


def register_pipelines() -> None:
    """Make the tasks known to `transformers.pipeline`."""
    for task, pipeline_class in PIPELINES.items():
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=AutoModel, type="multimodal")
