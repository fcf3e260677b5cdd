"""Pipelines for `transformers.pipeline`: retrieval, keywords, localization, zero-shot classification, features.

May import the configuration and the model.
"""

from .base import SpeechClipPlusPipeline
from .features import SpeechFeatureExtractionPipeline, ZeroShotSpeechClassificationPipeline
from .image_retrieval import SpeechImageRetrievalPipeline
from .keyword_extraction import SpeechKeywordExtractionPipeline
from .localization import SpeechLocalizationPipeline

# The one list of tasks: their registration and the "custom_pipelines" of published models follow it.
PIPELINES: dict[str, type[SpeechClipPlusPipeline]] = {
    "speech-image-retrieval": SpeechImageRetrievalPipeline,
    "speech-keyword-extraction": SpeechKeywordExtractionPipeline,
    "speech-localization": SpeechLocalizationPipeline,
    "zero-shot-speech-classification": ZeroShotSpeechClassificationPipeline,
    "speech-feature-extraction": SpeechFeatureExtractionPipeline,
}
