"""Image loading: PIL images, files, bytes, arrays and values of `datasets` as 8-bit RGB, the right way up."""

from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from .audio_utils import opened

MAX_ASPECT_RATIO = 200  # beyond it, scaling the short side to CLIP's size would take gigabytes
_CHANNELS = (1, 2, 3, 4)  # grey, grey + alpha, RGB, RGB + alpha
_ACCEPTED_IMAGES = (
    "a PIL image, a path, the bytes of an image file, a binary file object, an array or tensor, "
    'or a dictionary with "bytes" or "path"'
)


def split_image_batch(images: Any) -> list[Any]:
    """Return the images in `images` as a list; a four-dimensional array or tensor is a batch, others are one image.

    A list of lists, which is how transformers' processors write "the images of each text", is flattened.
    """
    if isinstance(images, (list, tuple)) and images and all(isinstance(item, (list, tuple)) for item in images):
        images = [image for item in images for image in item]
    if not isinstance(images, (list, tuple)) and getattr(images, "ndim", 0) != 4:
        return [images]
    if len(images) == 0:
        raise ValueError("`images` is an empty batch: pass at least one image.")
    return list(images)


def load_image(item: Any, name: str = "images") -> Image.Image:
    """Load one image as 8-bit RGB.

    The EXIF orientation is applied. Transparent parts are composited on white (what a page would show; dropping the
    alpha channel instead uncovers arbitrary colours). Grey is repeated over the channels, palettes are looked up,
    16-bit grey is scaled down by 257. Of an animation the first frame is taken.

    Args:
        item: A PIL image of any mode; a path, the bytes of an image file or a binary file object; a dictionary of
            `datasets` ("bytes" or "path"); or an array or tensor of shape (H, W), (H, W, C) or (C, H, W) with 1 to 4
            channels, uint8, uint16, bool, or float in [0, 1]. Where both ends could be the channels, a tensor is read
            as (C, H, W) and an array as (H, W, C).
        name: What errors call the item, for instance "images[3]".

    Raises:
        TypeError, OSError, ValueError: If it cannot be read, has no pixels, values out of range, or is more than 200
            times as long as it is wide; the message says which.
    """
    if isinstance(item, Image.Image):
        return _to_rgb(item, name)
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return _to_rgb(_from_array(item, name), name)
    with opened(item, name, _ACCEPTED_IMAGES) as (file, name):
        return _to_rgb(_decoded_image(file, name), name)


def _decoded_image(file: BinaryIO, name: str) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: cannot be read as an image; expected png, jpeg, webp, bmp, gif or tiff.") from error
    except Exception as error:  # on damaged files PIL's decoders raise anything from OSError to struct.error
        raise ValueError(f"{name}: cannot be read as an image ({error}).") from error
    return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width == 0 or height == 0:
        raise ValueError(f"{name}: the image has no pixels ({width} x {height}).")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"{name}: {width} x {height} is more than {MAX_ASPECT_RATIO} to 1; crop the image first.")
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":  # PIL would clip these at 255 instead of scaling
        image = _from_deep_grey(image, name)
    if image.mode == "La":  # premultiplied grey; PIL knows one way out of it
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name}: {error}; convert the image to RGB first.") from error


def _from_deep_grey(image: Image.Image, name: str) -> Image.Image:
    """Scale grey of more than 8 bits down to 8, its transparent value to an alpha channel."""
    pixels = np.asarray(image)
    if image.mode == "F":
        return _from_array(pixels, name)
    if pixels.min() < 0 or pixels.max() > 65_535:
        raise ValueError(f"{name}: expected 16-bit grey values, got {pixels.min()} to {pixels.max()}.")
    grey = _from_array(pixels.astype(np.uint16), name)
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
    return grey


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, if it can be read.

    `ImageOps.exif_transpose` also writes the other entries anew, and fails where one of them is damaged.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF raises anything from struct.error to SyntaxError
        return image
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    if orientation not in turns:
        return image
    image = image.transpose(turns[orientation])
    image.info = {name: value for name, value in image.info.items() if name == "transparency"}  # it is upright now
    return image


def _from_array(item: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    shape = tuple(item.shape)
    if 0 in shape:
        raise ValueError(f"{name}: the image has no pixels (shape {shape}).")
    last, first = len(shape) == 3 and shape[-1] in _CHANNELS, len(shape) == 3 and shape[0] in _CHANNELS
    if len(shape) != 2 and not last and not first:
        raise ValueError(f"{name}: expected (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels, got shape {shape}.")
    channels_first = first and (isinstance(item, torch.Tensor) or not last)
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.dtype == torch.bfloat16 else item).numpy()
    if channels_first:
        item = item.transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
    pixels = _to_uint8(item, name)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def _to_uint8(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise ValueError(f"{name}: the image has NaN or infinite values.")
        low, high = float(pixels.min()), float(pixels.max())
        if low < -1e-3 or high > 1 + 1e-3:  # a little beyond is what interpolation leaves
            raise ValueError(
                f"{name}: expected floats in [0, 1] or uint8, got {low:.4g} to {high:.4g}; "
                "pixel values that are already normalised go to the model directly."
            )
        return (pixels.clip(0, 1).astype(np.float32) * 255).round().astype(np.uint8)
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype.kind in "iu":
        low, high = int(pixels.min()), int(pixels.max())
        if low < 0 or high > 255:
            raise ValueError(f"{name}: expected {pixels.dtype.name} values from 0 to 255, got {low} to {high}.")
        return pixels.astype(np.uint8)
    raise TypeError(f"{name}: expected numbers, got an array of {pixels.dtype}.")
