"""Visually grounded speech: SpeechCLIP+ models for the Hugging Face ecosystem."""
from .configuration.configuration_speechclip_plus import SpeechClipPlusConfig
