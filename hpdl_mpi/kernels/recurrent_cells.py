"""Recurrent cells: one step of one sample, between the products with the weights.

Those of `LSTM` are Hochreiter and Schmidhuber's (1997) with the forget gates of Gers, Schmidhuber and Cummins (2000);
those of `GRU` are Cho et al.'s (2014) as cuDNN has them: what is reset is a product and not the state.

All cells take the same arrays, so that one loop over steps serves them all. The sizes of these, in units of h:

======  ========  ==============  =====
cell    products  gates           state
======  ========  ==============  =====
`TANH`  1         1: h            1: h
`RELU`  1         1: h            1: h
`LSTM`  4         4: i, f, g, o   2: h, c
`GRU`   3         4: r, z, n, s   1: h
======  ========  ==============  =====

Gates stand in PyTorch's order. s is the state's part of n, which is kept apart.
"""

from __future__ import annotations

from hpdl_mpi.kernels.activation import logistic
from hpdl_mpi.kernels.elementary import tanh
from hpdl_mpi.kernels.jit import kernel

TANH, RELU, LSTM, GRU = range(4)


@kernel
def _logistic_gates(gates, products, bias):
    """gates = 1 / (1 + exp(-(gates + products + bias))); a loop with few arrays fills the vector registers best."""
    one = gates.dtype.type(1)
    for j in range(gates.size):
        gates[j], _ = logistic(gates[j] + products[j] + bias[j], one)


@kernel
def _tanh_gates(gates, products, bias):
    for j in range(gates.size):
        gates[j] = tanh(gates[j] + products[j] + bias[j])


@kernel
def _relu_gates(gates, products, bias):
    zero = gates.dtype.type(0)
    for j in range(gates.size):
        total = gates[j] + products[j] + bias[j]
        gates[j] = zero if total <= zero else total  # a NaN stays


@kernel
def _simple_forward(gates, state, y):
    for j in range(y.size):
        state[j] = gates[j]
        y[j] = gates[j]


@kernel
def _lstm_forward(gates, products, bias, state, y):
    size = y.size
    _logistic_gates(gates[: 2 * size], products[: 2 * size], bias[: 2 * size])
    _tanh_gates(gates[2 * size : 3 * size], products[2 * size : 3 * size], bias[2 * size : 3 * size])
    _logistic_gates(gates[3 * size :], products[3 * size :], bias[3 * size :])
    i, f, g, o = gates[:size], gates[size : 2 * size], gates[2 * size : 3 * size], gates[3 * size :]
    h, c = state[:size], state[size:]
    for j in range(size):
        memory = f[j] * c[j] + i[j] * g[j]
        output = o[j] * tanh(memory)
        c[j] = memory
        h[j] = output
        y[j] = output


@kernel
def _gru_forward(gates, products, bias, state, y):
    size, one = y.size, y.dtype.type(1)
    _logistic_gates(gates[: 2 * size], products[: 2 * size], bias[: 2 * size])
    r, z, n, s = gates[:size], gates[size : 2 * size], gates[2 * size : 3 * size], gates[3 * size :]
    part, of_n, of_s = products[2 * size :], bias[2 * size : 3 * size], bias[3 * size :]
    for j in range(size):
        reset = part[j] + of_s[j]
        new = tanh(n[j] + of_n[j] + r[j] * reset)
        output = (one - z[j]) * new + z[j] * state[j]
        n[j] = new
        s[j] = reset
        state[j] = output
        y[j] = output


@kernel
def cell_forward(cell, gates, products, bias, state, y):
    """Take one step.

    Parameters
    ----------
    cell : int
    gates : flat array
        In: the input's products with the weights. Written: the gates, for `cell_backward`.
    products : flat array
        The state's products with the weights.
    bias : flat array
        Of the gates.
    state : flat array
        Before the step; written: after it.
    y : array, shape (h,)
        Written: h after the step.
    """
    if cell == LSTM:
        _lstm_forward(gates, products, bias, state, y)
    elif cell == GRU:
        _gru_forward(gates, products, bias, state, y)
    else:
        if cell == RELU:
            _relu_gates(gates, products, bias)
        else:
            _tanh_gates(gates, products, bias)
        _simple_forward(gates, state, y)


@kernel
def _simple_backward(gates, dy, dstate, dproducts, rectified):
    one, zero = dy.dtype.type(1), dy.dtype.type(0)
    for j in range(dy.size):
        value = gates[j]
        slope = (zero if value <= zero else one) if rectified else one - value * value
        gradient = (dy[j] + dstate[j]) * slope
        gates[j] = gradient
        dproducts[j] = gradient
        dstate[j] = zero


@kernel
def _lstm_backward(gates, dy, before, dstate, dproducts):
    size, one, zero = dy.size, dy.dtype.type(1), dy.dtype.type(0)
    i, f, g, o = gates[:size], gates[size : 2 * size], gates[2 * size : 3 * size], gates[3 * size :]
    c, dh, dc = before[size:], dstate[:size], dstate[size:]
    for j in range(size):
        inlet, keep, new, outlet = i[j], f[j], g[j], o[j]
        out = tanh(keep * c[j] + inlet * new)
        dout = dy[j] + dh[j]
        dmemory = dc[j] + dout * outlet * (one - out * out)
        i[j] = dmemory * new * inlet * (one - inlet)
        f[j] = dmemory * c[j] * keep * (one - keep)
        g[j] = dmemory * inlet * (one - new * new)
        o[j] = dout * out * outlet * (one - outlet)
        dh[j] = zero
        dc[j] = dmemory * keep
    for j in range(dproducts.size):
        dproducts[j] = gates[j]


@kernel
def _gru_backward(gates, dy, before, dstate, dproducts):
    size, one = dy.size, dy.dtype.type(1)
    r, z, n, s = gates[:size], gates[size : 2 * size], gates[2 * size : 3 * size], gates[3 * size :]
    for j in range(size):
        reset, keep, new = r[j], z[j], n[j]
        dout = dy[j] + dstate[j]
        dn = dout * (one - keep) * (one - new * new)
        r[j] = dn * s[j] * reset * (one - reset)
        z[j] = dout * (before[j] - new) * keep * (one - keep)
        n[j] = dn
        s[j] = dn * reset
        dstate[j] = dout * keep
    of_gates, of_state = dproducts[: 2 * size], dproducts[2 * size :]
    for j in range(of_gates.size):
        of_gates[j] = gates[j]
    for j in range(size):
        of_state[j] = s[j]


@kernel
def cell_backward(cell, gates, dy, before, dstate, dproducts):
    """Go back one step.

    Parameters
    ----------
    cell : int
    gates : flat array
        Of `cell_forward`; written: the gradients of what they are made from.
    dy : array, shape (h,)
    before : flat array
        The state before the step.
    dstate : flat array
        The gradient of the state after the step. Written: of that before it, but for what comes through `dproducts`.
    dproducts : flat array
        Written: the gradient of the state's products with the weights.
    """
    if cell == LSTM:
        _lstm_backward(gates, dy, before, dstate, dproducts)
    elif cell == GRU:
        _gru_backward(gates, dy, before, dstate, dproducts)
    else:
        _simple_backward(gates, dy, dstate, dproducts, cell == RELU)
