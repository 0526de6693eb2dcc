"""From stored samples to what the model sees: augmentation, transform, and the middle of images to evaluate on."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.data.augment import Augment
from hpdl_mpi.data.transform import Shape, Transform
from hpdl_mpi.kernels import augment as kernel
from hpdl_mpi.kernels.color import jitter

_AS_STORED = (1.0, np.zeros(3), np.ones(3))
"""Scale, mean and 1/std that change nothing."""


class Preparation:
    """Prepares batches of samples in one thread. Owns what it draws for them, and no batch.

    Parameters
    ----------
    transform : Transform
    augment : Augment
    stored_shape : tuple of int
        Of one sample.
    stored_dtype : dtype
    rows : int
        Samples of a batch at most.

    Raises
    ------
    InputError
        Samples of this shape cannot be transformed, or augmented.
    """

    def __init__(
        self, transform: Transform, augment: Augment, stored_shape: Shape, stored_dtype: DTypeLike, rows: int
    ) -> None:
        self._transform, self._augment = transform, augment
        shape = transform.output_shape(stored_shape)
        self.output_shape = augment.output_shape(shape)
        self._white = _white(np.dtype(stored_dtype), transform.scale)
        if augment.of_images:
            self._height, self._width = shape[:2]
            self._middle = _middle(augment, shape, rows)
            self._draws = self._middle.copy()
        if augment.resized_crop:
            self._scratch = _scratch(shape, self.output_shape)

    def apply(
        self, raw: np.ndarray, out: np.ndarray, key: np.uint64 | None = None, ids: np.ndarray | None = None
    ) -> None:
        """Prepare a batch: to learn from if there is a key, else to evaluate. Nothing is allocated.

        Parameters
        ----------
        raw : array, shape (n, *stored_shape)
            Integers, flags, float32 or float64, of native byte order, C-contiguous.
        out : float array, shape (n, *output_shape)
            C-contiguous; overwritten.
        key : uint64, optional
            Of (seed, epoch).
        ids : int64 array, shape (n,), optional
            To draw for.
        """
        augment = self._augment
        if not augment.of_images or (key is None and augment.size is None):
            self._transform.apply(raw, out)
            return
        images = self._transform.images(raw)
        affine = (self._transform.scale, *self._transform.channel_tables(images.shape[3]))
        if key is None or ids is None:
            self._window(images, self._middle[: len(raw)], affine, out)
            return
        draws = self._draws[: len(raw)]
        self._draw(key, ids, draws)
        if augment.jitters:
            self._window(images, draws, _AS_STORED, out)
            jitter(out, draws, self._white, *affine)
        else:
            self._window(images, draws, affine, out)
        if augment.cutout:
            kernel.cut_out(out, draws, augment.cutout)

    def _draw(self, key: np.uint64, ids: np.ndarray, draws: np.ndarray) -> None:
        augment, jitter = self._augment, self._augment.jitter
        if augment.flip:
            kernel.draw_flips(key, ids, draws)
        if augment.crop:
            kernel.draw_crops(key, ids, self._height, self._width, augment.pad, draws)
        if augment.resized_crop:
            kernel.draw_resized_crops(key, ids, self._height, self._width, draws)
        if augment.jitters:
            strengths = map(float, (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue))
            kernel.draw_jitter(key, ids, *strengths, draws)
        if augment.cutout:
            kernel.draw_cutouts(key, ids, *self.output_shape[:2], augment.cutout, draws)

    def _window(
        self, images: np.ndarray, draws: np.ndarray, affine: tuple[float, np.ndarray, np.ndarray], out: np.ndarray
    ) -> None:
        if self._augment.resized_crop:
            kernel.resize(images, draws, *affine, out, *self._scratch)
        else:
            kernel.crop(images, draws, *affine, out)


def _white(dtype: np.dtype, scale: float) -> float:
    """Return the largest value of a colour: of an integer type its own; of floats what `scale` makes 1."""
    if dtype.kind == "f":
        return 1.0 / abs(scale)
    return 1.0 if dtype.kind == "b" else float(np.iinfo(dtype).max)


def _middle(augment: Augment, shape: Shape, rows: int) -> np.ndarray:
    """Return the draws, DRAW (rows,), that show the middle of an image as it is."""
    height, width = shape[:2]
    h, w = augment.size or (height, width)
    if augment.resized_crop:
        spacing = augment.central_fraction * min(height / h, width / w)
        h, w = (max(1, round(spacing * side)) for side in (h, w))
    draws = np.zeros(rows, kernel.DRAW)
    draws["top"], draws["left"] = round((height - h) / 2), round((width - w) / 2)
    draws["height"], draws["width"] = h, w
    return draws


def _scratch(shape: Shape, output_shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `kernels.augment.resize` overwrites: places, weights and a row."""
    height, width, channels = shape
    h, w, _ = output_shape
    taps = kernel.num_taps(max(height / h, width / w))
    return np.empty((w, 2), np.int64), np.empty((w + 1, taps)), np.empty((channels, width))
