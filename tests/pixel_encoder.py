"""An encoder without a network, for tests of what lies around one."""

import numpy as np


class PixelEncoder:
    """Stands in for R3D-18, which is slow: a clip's features are a few of its pixels."""

    backbone, weights, weights_sha256, precision, device = "pixels", "random:0", "0" * 64, "fp32", "cpu"
    transform, feature_dim, batch_size = "none", 512, 4
    frame_size, arithmetic, num_frames, gpu = (128, 171), 1, None, None

    def __init__(self):
        self.batches = []

    def features(self, clips):
        """clips: [B, T, H, W, 3] uint8 → [B, 512] float32."""
        self.batches.append(len(clips))
        return clips[:, ::5, ::16, ::8].reshape(len(clips), -1)[:, :512].astype(np.float32)
