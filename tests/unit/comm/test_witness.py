"""The process that says which rank was killed: a job goes on without it."""

from __future__ import annotations

import socket
import subprocess

import pytest

from hpdl_mpi.comm import SingleCommunicator, witness
from hpdl_mpi.comm.witness import Witness


def refuse(*arguments: object, **settings: object) -> None:
    raise OSError("no more")


class Deaf(socket.socket):
    """A socket whose connection fails."""

    connect = refuse


def test_a_rank_that_the_witness_cannot_hear_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "_PARTING_SECONDS", 0.3)
    monkeypatch.setattr(witness.socket, "socket", Deaf)
    started = Witness(SingleCommunicator(), [0])
    process = started._process
    assert process is not None
    started.end()
    assert process.returncode is not None


def test_a_witness_that_cannot_be_started_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", refuse)
    absent = Witness(SingleCommunicator(), [0])
    assert absent._process is None
    absent.say_farewell()
    absent.end()
    assert absent._socket.fileno() == -1, "its end of the connection is closed all the same"


def test_a_witness_leaves_when_all_is_well(capfd: pytest.CaptureFixture[str]) -> None:
    started = Witness(SingleCommunicator(), [0])
    process = started._process
    assert process is not None
    started.end()
    assert process.returncode == 0
    assert capfd.readouterr() == ("", "")
