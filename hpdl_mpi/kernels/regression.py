"""Losses of real-valued outputs: squared error and Huber's, with their gradients in the same pass."""

from __future__ import annotations

from hpdl_mpi.kernels.jit import kernel


@kernel
def squared_error(outputs, targets, scale, doutputs):
    """Return the sum of (outputs - targets)^2; write scale times its gradient unless `doutputs` is empty.

    All arrays are flat. The sum is kept in float64.
    """
    wants_gradient = doutputs.size > 0
    total = 0.0
    for i in range(outputs.size):
        error = outputs[i] - targets[i]
        total += error * error
        if wants_gradient:
            doutputs[i] = 2.0 * scale * error
    return total


@kernel
def huber(outputs, targets, delta, scale, doutputs):
    """Return (sum of Huber losses, sum of squared errors); write scale times the former's gradient unless empty.

    e^2 / 2 within `delta`, delta (|e| - delta / 2) beyond it (Huber, 1964).
    """
    wants_gradient = doutputs.size > 0
    total = 0.0
    squares = 0.0
    for i in range(outputs.size):
        error = outputs[i] - targets[i]
        size = abs(error)
        squares += error * error
        total += 0.5 * error * error if size <= delta else delta * (size - 0.5 * delta)
        if wants_gradient:
            doutputs[i] = scale * min(max(error, -delta), delta)
    return total, squares
