"""The section ``data`` of a job: where samples are, what they are, and how they are prepared."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from hpdl_mpi.data.transform import Layout
from hpdl_mpi.train.section import Positive, Section, Text
from hpdl_mpi.train.source import array_names


class Transform(Section):
    """How stored numbers become the network's: ``(x * scale - mean) / std``; see `data.Transform`."""

    scale: float = 1.0
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    standardize: bool = False
    layout: Layout = "hwc"


class Jitter(Section):
    """How far colours may change; see `data.Jitter`."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


class Augment(Section):
    """How training images are varied, and the size in which all are seen; see `data.Augment`, which checks sizes."""

    flip: bool = False
    crop: Any = None
    pad: int = 0
    resized_crop: Any = None
    central_fraction: float = 0.875
    jitter: Jitter = Jitter()
    cutout: int | None = None
    mixup: float | None = None


class Masking(Section):
    """Which tokens a model is to predict, and what hides them; see `data.Masking`, which checks the numbers."""

    mask: int
    vocabulary: int
    specials: int | None = None
    rate: float = 0.15


class Data(Section):
    """Where the samples are and in which order they come."""

    train: Text
    test: Text | None = None
    context: Positive | None = None
    """Tokens of a window: the inputs are then running text, and the targets what follows each token."""
    pairs: bool = False
    """The inputs are sources and the targets what a decoder writes, sequences of tokens."""
    bucket: bool | None = None
    """Pairs of like lengths come in one batch, by default they do."""
    masking: Masking | None = None
    """The targets of windows are tokens that the inputs hide, in place of those that follow."""
    inputs: Text = "x"
    targets: Text = "y"
    shuffle: Literal["block", "global", "none"] = "block"
    transform: Transform = Transform()
    target_transform: Transform = Transform()
    augment: Augment = Augment()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _arrays_of_text(cls, settings: Any) -> Any:
        """Let the arrays of text have the names that the converter gives them."""
        if not isinstance(settings, dict):
            return settings
        inputs, targets = array_names(settings.get("context"), settings.get("pairs"))
        if settings.get("context") is not None:
            targets = settings.get("inputs", targets)
        return {"inputs": inputs, "targets": targets} | settings

    @pydantic.model_validator(mode="after")
    def _one_kind_of_samples(self) -> Data:
        if self.context is not None and self.pairs:
            raise ValueError("context is of running text, pairs = true of pairs: leave one out")
        if self.context is not None and self.targets != self.inputs:
            raise ValueError(f"the targets of windows are what follows in {self.inputs!r}: leave out targets")
        if self.masking is not None and self.context is None:
            raise ValueError("masking is of running text: give context, the tokens of a window")
        if self.bucket and not self.pairs:
            raise ValueError("bucket = true is of pairs: give pairs = true, or leave it out")
        return self
