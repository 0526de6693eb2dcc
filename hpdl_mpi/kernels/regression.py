"""Losses of real-valued outputs: squared error and Huber's, with their gradients.

Sums have loops of their own: their bits do not depend on whether there is a gradient to write.
"""

from __future__ import annotations

from hpdl_mpi.kernels.jit import kernel


@kernel
def squared_error(outputs, targets, scale, doutputs):
    """Return the sum of (outputs - targets)^2; write scale times its gradient unless `doutputs` is empty.

    All arrays are flat. The sum is kept in float64.
    """
    total = 0.0
    for i in range(outputs.size):
        error = outputs[i] - targets[i]
        total += error * error
    for i in range(doutputs.size):
        doutputs[i] = 2.0 * scale * (outputs[i] - targets[i])
    return total


@kernel
def huber(outputs, targets, delta, scale, doutputs):
    """Return (sum of Huber losses, sum of squared errors); write scale times the former's gradient unless empty.

    e^2 / 2 within `delta`, delta (|e| - delta / 2) beyond it (Huber, 1964).
    """
    total = 0.0
    squares = 0.0
    for i in range(outputs.size):
        error = outputs[i] - targets[i]
        size = abs(error)
        squares += error * error
        total += 0.5 * error * error if size <= delta else delta * (size - 0.5 * delta)
    for i in range(doutputs.size):
        doutputs[i] = scale * min(max(outputs[i] - targets[i], -delta), delta)
    return total, squares
