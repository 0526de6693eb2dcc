"""AlexNet in one tower.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014).
"""

from __future__ import annotations

from hpdl_mpi.models.naming import numbered
from hpdl_mpi.nn import AdaptiveAvgPool2d, Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential
from hpdl_mpi.nn.init import FanInUniform


def alexnet(outputs: int = 1000, dropout: float = 0.5, hidden: int = 4096) -> Layer:
    """Return five convolutions and three Linear layers, for images of 63 x 63 or more.

    Parameters have torchvision's names. Three ReLUs stand behind the pooling that they stand in front of there, which
    computes the same.

    Parameters
    ----------
    outputs : int
        Classes.
    dropout : float
        Rate, in front of the first two Linear layers.
    hidden : int
        Width of the first two Linear layers.
    """
    # The largest of clipped numbers is the largest, clipped: behind the pooling there is less to clip, and to keep.
    features = [
        *(_conv(64, 11, stride=4, padding=2), MaxPool2d(3, stride=2), ReLU()),
        *(_conv(192, 5, padding=2), MaxPool2d(3, stride=2), ReLU()),
        *(_conv(384, 3, padding=1), ReLU()),
        *(_conv(256, 3, padding=1), ReLU()),
        *(_conv(256, 3, padding=1), MaxPool2d(3, stride=2), ReLU()),
    ]
    classifier = [
        *(Dropout(dropout), _linear(hidden), ReLU()),
        *(Dropout(dropout), _linear(hidden), ReLU()),
        _linear(outputs),
    ]
    return Sequential(
        **numbered("features", features),
        avgpool=AdaptiveAvgPool2d(6),
        flatten=Flatten(),
        **numbered("classifier", classifier),
    )


# Initial values below He's: nothing here normalises, and the usual rate of 0.01 is for these.
def _conv(channels: int, kernel_size: int, *, stride: int = 1, padding: int) -> Layer:
    start = FanInUniform()
    return Conv2d(channels, kernel_size, stride=stride, padding=padding, init=start, bias_init=start)


def _linear(features: int) -> Layer:
    start = FanInUniform()
    return Linear(features, init=start, bias_init=start)
