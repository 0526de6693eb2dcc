"""The matrices of Winograd's method, made from the points of an interpolation.

A convolution along one dimension is a product of polynomials, and their values at a few points determine it (Toom,
1963; Cook, 1966): m outputs under a kernel of r numbers take m + r - 1 products instead of m r (Winograd, 1980). In two
dimensions the same matrices act from both sides. The more outputs a tile has, the fewer products it takes, and the
larger the numbers in its matrices, which costs accuracy.

With stride 2 the even and the odd inputs are two convolutions with stride 1: under a kernel of three numbers the even
ones meet its outer two, and the odd ones the middle one. So a row of the matrices belongs to one or to the other.
"""

from __future__ import annotations

from fractions import Fraction
from math import prod
from typing import ClassVar, NamedTuple, Self

Matrix = tuple[tuple[Fraction, ...], ...]

POINTS = tuple(map(Fraction, (0, 1, -1, 2, -2)))
"""As many as are needed are taken; the last is always infinity."""


class _Lengths(NamedTuple):
    kernel: int
    step: int
    tile: int
    points: int
    filters: int


class Scheme(_Lengths):
    """How tiles are computed, along each of two dimensions alike.

    A tile of outputs is OUTPUT @ (values of the inputs * values of the kernel) @ OUTPUT.T, where the values of the
    inputs are INPUT @ inputs @ INPUT.T and those of the kernel FILTER @ kernel @ FILTER.T. Each scheme is a class, for
    which kernels are compiled; its one object holds the lengths that they need.

    Attributes
    ----------
    kernel : int
        Numbers of a kernel.
    step : int
        From the first input of a tile to that of the next.
    tile : int
        Outputs of a tile.
    points : int
        Values of the inputs, and products.
    filters : int
        Values of the kernel; all points that are left have the last one.
    """

    INPUT: ClassVar[Matrix]
    OUTPUT: ClassVar[Matrix]
    FILTER: ClassVar[Matrix]

    @classmethod
    def of(cls, step: int) -> Self:
        """Return the object of a class, whose tiles' inputs begin so far apart."""
        return cls(len(cls.FILTER[0]), step, len(cls.OUTPUT), len(cls.INPUT), len(cls.FILTER))

    def tiles(self, height: int, width: int) -> tuple[int, int]:
        """Return how many tiles an output of this size takes, downwards and across."""
        return -(-height // self.tile), -(-width // self.tile)

    def count(self, output: tuple[int, ...]) -> int:
        """Return how many tiles an array of outputs (n, height, width, channels) takes."""
        down, across = self.tiles(*output[1:3])
        return output[0] * down * across

    def products(self, height: int, width: int) -> int:
        """Return how many products an output of this size takes for each pair of channels."""
        down, across = self.tiles(height, width)
        return down * across * self.points**2


def interpolation(outputs: int, kernel: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return INPUT, OUTPUT and FILTER for so many outputs with stride 1; INPUT has whole numbers."""
    count = outputs + kernel - 1
    points = POINTS[: count - 1]
    others = [[other for other in points if other != point] for point in points]
    last = Fraction(0), Fraction(1)
    inputs = [(*_polynomial(roots), last[0]) for roots in others] + [_polynomial(points)]
    output = [(*(point**i for point in points), last[i == outputs - 1]) for i in range(outputs)]
    scales = [prod(point - other for other in rest) for point, rest in zip(points, others, strict=True)]
    filters = [tuple(point**i / scale for i in range(kernel)) for point, scale in zip(points, scales, strict=True)]
    return tuple(inputs), tuple(output), (*filters, tuple(last[i == kernel - 1] for i in range(kernel)))


def _polynomial(roots: tuple[Fraction, ...] | list[Fraction]) -> tuple[Fraction, ...]:
    """Return the coefficients of the product of all (x - root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        coefficients = [
            up - root * here
            for up, here in zip([Fraction(0), *coefficients], [*coefficients, Fraction(0)], strict=True)
        ]
    return tuple(coefficients)


def _units(places: list[int], length: int) -> Matrix:
    """Return rows with a one at each of these places."""
    return tuple(tuple(Fraction(i == place) for i in range(length)) for place in places)


def _spread(matrix: Matrix, places: list[int], length: int) -> Matrix:
    """Return a matrix of wider rows, whose columns lie at these places among zeros."""
    return tuple(
        tuple(dict(zip(places, row, strict=True)).get(i, Fraction(0)) for i in range(length)) for row in matrix
    )


def transposed(matrix: Matrix) -> Matrix:
    """Return rows as columns."""
    return tuple(zip(*matrix, strict=True))


class F43(Scheme):
    """Tiles of four outputs under kernels of three."""

    INPUT, OUTPUT, FILTER = interpolation(4, 3)


class F23(Scheme):
    """Tiles of two outputs under kernels of three."""

    INPUT, OUTPUT, FILTER = interpolation(2, 3)


class F25(Scheme):
    """Tiles of two outputs under kernels of five."""

    INPUT, OUTPUT, FILTER = interpolation(2, 5)


_INPUT, _OUTPUT, _FILTER = interpolation(4, 2)
_OUTER_AND_MIDDLE = (*_spread(_FILTER, [0, 2], 3), *_units([1], 3))


class Strided(Scheme):
    """Tiles of four outputs under kernels of three with stride 2: of nine inputs five are even, and four are odd."""

    INPUT = (*_spread(_INPUT, [0, 2, 4, 6, 8], 9), *_units([1, 3, 5, 7], 9))
    OUTPUT = tuple((*row, *unit) for row, unit in zip(_OUTPUT, _units([0, 1, 2, 3], 4), strict=True))
    FILTER = _OUTER_AND_MIDDLE


class StridedBack(Scheme):
    """The way back of `Strided`, for a padding of 1: tiles of eight inputs, four of either kind, from five outputs.

    Kernels are turned round. Inputs lie one before those of `Strided`, so that it is the even ones that meet the middle
    of a kernel.
    """

    INPUT = (*_spread(_INPUT, [0, 1, 2, 3, 4], 5), *_units([0, 1, 2, 3], 5))
    OUTPUT = tuple(
        row
        for outer, unit in zip(_OUTPUT, _units([0, 1, 2, 3], 4), strict=True)
        for row in ((*(5 * (Fraction(0),)), *unit), (*outer, *(4 * (Fraction(0),))))
    )
    FILTER = _OUTER_AND_MIDDLE


SCHEMES = {
    (3, 1): (F43.of(4), F23.of(2)),
    (5, 1): (F25.of(2),),
    (3, 2): (Strided.of(8),),
}
"""By kernel size and stride."""
