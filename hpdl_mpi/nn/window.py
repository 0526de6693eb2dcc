"""What layers share that slide a window over an image: pairs of numbers, and the size of the output."""

from __future__ import annotations

from typing import Protocol

from hpdl_mpi.base.errors import InputError, integers, is_integer
from hpdl_mpi.kernels.conv2d import output_size
from hpdl_mpi.nn.layer import Layer, Shape

Pair = tuple[int, int]

MOST_PIXELS = 2**15
"""Of a window's side, stride or padding: beyond any photograph, and far from what kernels overflow at."""


class Window(Protocol):
    """A layer with a kernel size, a stride and a padding, each vertical and horizontal."""

    kernel_size: Pair
    stride: Pair
    padding: Pair

    def refuse(self, what: str, *, found: object, expected: object, remedy: str | None = None) -> InputError:
        """Return the error of a layer that cannot be built as asked."""


def pair(layer: Layer | Window, value: int | Pair, name: str) -> Pair:
    """Return (vertical, horizontal) of one number for both or of two, also in an array; `name` is the argument.

    Raises
    ------
    InputError
        They are something else, or larger than `MOST_PIXELS`.
    """
    numbers = integers([value, value] if is_integer(value) else value)
    if numbers is not None and len(numbers) == 2 and max(numbers) <= MOST_PIXELS:
        return numbers[0], numbers[1]
    expected = f"an integer of at most {MOST_PIXELS}, or two: vertical and horizontal"
    raise layer.refuse(f"no {name} of a window", found=repr(value), expected=expected)


def require_image(layer: Layer | Window, input_shape: Shape) -> None:
    """Raise an InputError if a sample is no image (h, w, c)."""
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise layer.refuse(
            "takes images",
            found=f"samples of shape {input_shape}",
            expected="(height, width, channels)",
            remedy='set data.transform.layout, such as "hw" for images without a channel dimension',
        )


def window_output(layer: Window, input_shape: Shape) -> Pair:
    """Return the height and width of the output.

    Raises
    ------
    InputError
        There is no such window, the sample is no image (h, w, c), or the window does not fit in it.
    """
    if min(*layer.kernel_size, *layer.stride) < 1 or min(layer.padding) < 0:
        raise layer.refuse(
            "there is no such window",
            found=f"kernel size {layer.kernel_size}, stride {layer.stride}, padding {layer.padding}",
            expected="a kernel size and a stride of at least 1, a padding of at least 0",
        )
    require_image(layer, input_shape)
    sizes = zip(input_shape[:2], layer.kernel_size, layer.stride, layer.padding, strict=True)
    height, width = (output_size(*numbers) for numbers in sizes)
    if min(height, width) < 1:
        raise layer.refuse(
            "the window does not fit the image",
            found=f"an image of {input_shape[0]} x {input_shape[1]} with padding {layer.padding}",
            expected=f"at least {layer.kernel_size[0]} x {layer.kernel_size[1]}",
            remedy="take larger images (data.augment.resized_crop enlarges them), or a model for small ones",
        )
    return height, width
