"""Recurrent layers: sequences of vectors, of one length or of many, whole or in pieces.

They are PyTorch's with ``batch_first=True``: samples of shape (t, features) give (t, hidden_size), or, if
`bidirectional`, (t, 2 hidden_size), the states after each step, forward and reverse side by side. Names, shapes and
first values of parameters are PyTorch's too. The number of steps may differ from call to call.

*Lengths.* The activation may be ``(x, mask)``; the output is ``(y, mask)`` then. The mask, shape (n, t), is 1 where a
sample has a step and 0 in the padding behind its last one. A step that is not there leaves the state as it is, and y
is 0 there; so the reverse direction begins at each sample's last step, as with PyTorch's packed sequences, and a sample
of padding alone gives zeros. What x holds there has no influence, but must be finite. Holes are passed by in the same
way; there are no steps by halves, any number above 0 counts as 1.

*Carried state.* With `carry` the output ends in the states after the last step, ``(y, h)`` or ``(y, h, c)``, and the
activation may end in those before the first one, which else are zeros: ``(x, mask, h, c) -> (y, mask, h, c)``, with
or without the mask, and with c for `LSTM` alone. They have shape (n, layers, hidden_size), a layer's directions one
after the other. The gradient of a state before the first step is None: back-propagation ends where the caller cuts a
sequence (Williams and Peng, 1990). That of a state after the last step is taken, None for zeros. So a long sequence
goes through in pieces::

    states = []
    for piece in pieces:
        y, *states = layer.forward((piece, *states), ctx)
        layer.backward((gradient(y), *[None] * len(states)), ctx)

The states are the caller's, who releases them after the next piece.
"""

from __future__ import annotations

from typing import Literal

from hpdl_mpi.base.errors import is_one_of
from hpdl_mpi.kernels.recurrent_cells import GRU as GRU_CELL
from hpdl_mpi.kernels.recurrent_cells import LSTM as LSTM_CELL
from hpdl_mpi.kernels.recurrent_cells import RELU, TANH
from hpdl_mpi.nn.recurrent_passes import Cell
from hpdl_mpi.nn.recurrent_stack import Recurrent


class RNN(Recurrent):
    """The simple recurrent layer: h = tanh(W_ih x + b_ih + W_hh h + b_hh) (Elman, 1990).

    Parameters
    ----------
    hidden_size : int
        Of the state of each direction of each layer.
    num_layers : int
        How many stand on top of each other.
    nonlinearity : {"tanh", "relu"}
    bidirectional : bool
        Whether each layer also goes from the last step to the first.
    dropout : float
        The rate at which outputs of all layers but the last are zeroed while training, see `Dropout`.
    bias : bool
    carry : bool
        Whether states go from call to call, see the module.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bidirectional: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        carry: bool = False,
    ) -> None:
        if not is_one_of(nonlinearity, ("tanh", "relu")):
            raise self.refuse("no such nonlinearity", found=repr(nonlinearity), expected="'tanh' or 'relu'")
        self.nonlinearity = nonlinearity
        self._cell = Cell(TANH if nonlinearity == "tanh" else RELU, products=1, gates=1, state=1)
        super().__init__(hidden_size, num_layers, bidirectional=bidirectional, dropout=dropout, bias=bias, carry=carry)


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997; Gers, Schmidhuber and Cummins, 2000).

    With i, f, o = sigmoid(W_ih x + b_ih + W_hh h + b_hh) and g = tanh of the like: c = f c + i g, and h = o tanh(c).
    Rows of the weights come in the order i, f, g, o. Parameters are those of `RNN`, without `nonlinearity`;
    `hidden_size` is that of the memory c, too.
    """

    _cell = Cell(LSTM_CELL, products=4, gates=4, state=2)


class GRU(Recurrent):
    """Gated recurrent units (Cho et al., 2014).

    With r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh): n = tanh(W_in x + b_in + r (W_hn h + b_hn)), and h = (1 - z) n
    + z h. Rows of the weights come in the order r, z, n. Parameters are those of `RNN`, without `nonlinearity`.
    """

    _cell = Cell(GRU_CELL, products=3, gates=4, state=1)
