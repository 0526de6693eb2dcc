"""Sequences through a recurrent cell: all steps in one call, forward and back through time (Werbos, 1990).

The products of a sequence's input with the weights are one large matrix product, before; so are the gradients of the
weights, after. What must go step by step is the state's product with its weights, which are packed once for all
steps. Threads take shares of the samples, which do not see each other: no sum depends on how many there are.
"""

from __future__ import annotations

from numba import prange

from hpdl_mpi.kernels.emit import memory_of
from hpdl_mpi.kernels.jit import inline, kernel, parallel_kernel
from hpdl_mpi.kernels.packed import multiply_packed, pack
from hpdl_mpi.kernels.recurrent_cells import cell_backward, cell_forward
from hpdl_mpi.kernels.rows import copy_row
from hpdl_mpi.kernels.vector import ROWS


@kernel
def _share(samples, part, parts):
    """Return the first sample of one of `parts` shares, and the last + 1, in whole tiles of a product."""
    tiles = -(-samples // ROWS)
    return min(samples, part * tiles // parts * ROWS), min(samples, (part + 1) * tiles // parts * ROWS)


@kernel
def _clear(target):
    for j in range(target.size):
        target[j] = 0


@inline
def _row(memory, number, width):
    """Return a row of a matrix, of its memory: a view of an array would count its holders, on every thread."""
    return memory[number * width : (number + 1) * width]


@kernel
def _is_there(mask, sample, step):
    """Return whether a sample has a step: all have, where there is no mask."""
    return mask.shape[1] == 0 or mask[sample, step] > 0


@kernel
def _forward(cell, gates, size, packed, bias, mask, reverse, products, state, before, y, first, start, stop):
    """Take the samples from start to stop through all steps; see `forward`."""
    steps = gates.shape[1]
    widths = gates.shape[2], products.shape[1], state.shape[1], before.shape[2], y.shape[2]
    all_gates, all_products, states = memory_of(gates), memory_of(products), memory_of(state)
    all_before, outputs, biases = memory_of(before), memory_of(y), memory_of(bias)[: bias.size]
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        multiply_packed(state[start:stop, :size], packed, products[start:stop], False)
        for i in range(start, stop):
            number = i * steps + t
            own = _row(states, i, widths[2])
            copy_row(own, _row(all_before, number, widths[3]))
            output = _row(outputs, number, widths[4])[first : first + size]
            if _is_there(mask, i, t):
                of_input, of_state = _row(all_gates, number, widths[0]), _row(all_products, i, widths[1])
                cell_forward(cell, of_input, of_state, biases, own, output)
            else:
                _clear(output)


@parallel_kernel
def forward(cell, gates, weight, packed, bias, mask, reverse, products, state, before, y, first, parts):
    """Take sequences through a cell.

    Parameters
    ----------
    cell : int
        Of `recurrent_cells`, which says how many `products`, `gates` and parts of the `state` of size h there are.
    gates : array, shape (n, t, gates h)
        In: the input's products with its weights, in front. Written: the gates, for `backward`.
    weight : array, shape (products h, h)
        The state's.
    packed : array, of `packed.packed_shape(h, products h, itemsize)`
        Scratch.
    bias : array, shape (gates h,)
    mask : array, shape (n, t) or (n, 0)
        0 where a sample has no step: the state passes by it, and y is 0. The second form has all steps.
    reverse : bool
        Whether the last step is the first.
    products : array, shape (n, products h)
        Scratch.
    state : array, shape (n, state h)
        Before the first step; written: after the last.
    before : array, shape (n, t, state h) or (n, t, 0)
        Written, where there is room: the state before each step, for `backward`.
    y : array, shape (n, t, width)
        Written: h after each step, in columns from `first` on.
    first : int
    parts : int
        Into how many shares samples are cut.
    """
    pack(weight, True, packed)
    size = weight.shape[1]
    for part in prange(parts):
        start, stop = _share(len(gates), part, parts)
        _forward(cell, gates, size, packed, bias, mask, reverse, products, state, before, y, first, start, stop)


@kernel
def _backward(cell, gates, size, packed, dy, first, mask, reverse, before, dstate, dproducts, start, stop):
    """Take the samples from start to stop back through all steps; see `backward`."""
    steps = gates.shape[1]
    widths = gates.shape[2], dproducts.shape[1], dstate.shape[1], before.shape[2], dy.shape[2]
    all_gates, all_products, states = memory_of(gates), memory_of(dproducts), memory_of(dstate)
    all_before, gradients = memory_of(before), memory_of(dy)
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        for i in range(start, stop):
            number = i * steps + t
            of_gates, of_products = _row(all_gates, number, widths[0]), _row(all_products, i, widths[1])
            if _is_there(mask, i, t):
                of_y = _row(gradients, number, widths[4])[first : first + size]
                earlier, own = _row(all_before, number, widths[3]), _row(states, i, widths[2])
                cell_backward(cell, of_gates, of_y, earlier, own, of_products)
            else:
                _clear(of_gates)
                _clear(of_products)
        if step < steps - 1:
            multiply_packed(dproducts[start:stop], packed, dstate[start:stop, :size], True)


@parallel_kernel
def backward(cell, gates, weight, packed, dy, first, mask, reverse, before, dstate, dproducts, parts):
    """Go back through time.

    Arrays are contiguous here and in `forward`.

    Parameters
    ----------
    cell : int
    gates : array, shape (n, t, gates h)
        Of `forward`; written: the gradients of what they are made from, 0 where a sample has no step.
    weight : array, shape (products h, h)
        The state's.
    packed : array, of `packed.packed_shape(products h, h, itemsize)`
        Scratch.
    dy : array, shape (n, t, width)
        The gradient of h after each step, in columns from `first` on.
    first : int
    mask : array, shape (n, t) or (n, 0)
    reverse : bool
    before : array, shape (n, t, state h)
        Of `forward`.
    dstate : array, shape (n, state h)
        In: the gradient of the state after the last step. Written over.
    dproducts : array, shape (n, products h)
        Scratch.
    parts : int
        Into how many shares samples are cut.
    """
    pack(weight, False, packed)
    size = weight.shape[1]
    for part in prange(parts):
        start, stop = _share(len(gates), part, parts)
        _backward(cell, gates, size, packed, dy, first, mask, reverse, before, dstate, dproducts, start, stop)
