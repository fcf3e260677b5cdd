"""What is known of backbones and data sets that models of this package are made of: licences, languages, origins."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A backbone or a data set.

    Attributes:
        name: what to call it.
        licence: its terms in words; they are repeated here, not granted.
        url: where to read them.
        languages: BCP 47 codes of its speech.
        description: sentences about it.
        licence_id: the Hub's name of the licence, where it has one for all parts.
    """

    name: str
    licence: str
    url: str = ""
    languages: tuple[str, ...] = ()
    description: str = ""
    licence_id: str | None = None


_HUBERT = "https://github.com/facebookresearch/fairseq/tree/main/examples/hubert"

BACKBONES = {
    "facebook/hubert-base-ls960": Source("HuBERT base", "Apache 2.0", _HUBERT),
    "facebook/hubert-large-ll60k": Source("HuBERT large", "Apache 2.0", _HUBERT),
    "openai/clip-vit-base-patch32": Source("OpenAI's CLIP ViT-B/32", "MIT", "https://github.com/openai/CLIP"),
    "openai/clip-vit-large-patch14": Source("OpenAI's CLIP ViT-L/14", "MIT", "https://github.com/openai/CLIP"),
}
TINY_BACKBONES = {
    "speech": Source("the tiny HuBERT that ships with speechclip-plus", "MIT"),
    "clip": Source("the tiny CLIP that ships with speechclip-plus", "MIT"),
}
DATASETS = {
    "flickr8k": Source(
        "Flickr 8k Audio Caption Corpus",
        "recordings CC BY-SA; for pictures and captions see Flickr8k's own terms",
        "https://groups.csail.mit.edu/sls/downloads/flickraudio/",
        languages=("en",),
        description="Photographs, each with five captions read aloud by crowd workers.",
    ),
    "spokencoco": Source(
        "SpokenCOCO",
        "see there, and COCO's terms of use for captions and pictures",
        "https://data.csail.mit.edu/placesaudio/SpokenCOCO.tar.gz",
        languages=("en",),
        description="Photographs of COCO 2014, each with five captions read aloud by crowd workers.",
    ),
    "stamps": Source(
        "Tux Paint's stamps",
        "GPL 2",
        "https://tuxpaint.org/stamps/",
        description="Small pictures of things, named or described by recorded voices.",
        licence_id="gpl-2.0",
    ),
    "spoken_scenes": Source(
        "spoken_scenes, made by speechclip-plus",
        "MIT",
        languages=("en",),
        description=(
            "Drawn scenes of two coloured shapes, with captions spoken by espeak-ng; scenes and voices of a split are "
            "in no other."
        ),
        licence_id="mit",
    ),
}
