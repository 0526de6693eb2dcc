"""PyTorch's contenders of ``hpdl bench step`` run, and train models as large as ours."""

from __future__ import annotations

import os
import shutil

import pytest

from hpdl_mpi.bench import bench_step
from tests.unit.test_docstrings import NEED_TORCH, undocumented

pytestmark = pytest.mark.parity


def run(model: str, vs: str) -> dict:
    """Run as short a benchmark as can be; it compares the models' sizes itself."""
    return bench_step(model, 4, 1, vs, num_rounds=2, turn_seconds=0.0)


@pytest.mark.parametrize(
    "model", ["lenet", "mlp", "resnet20", "vgg16_cifar", "mobilenet_v2", "gpt_nano", "lstm_lm", "seq2seq", "vit_tiny"]
)
def test_eager_runs(model):
    result = run(model, "torch-eager")
    assert set(result["vs"]) == {"torch-eager"}
    assert result["ratio"] == pytest.approx(result["vs"]["torch-eager"]["step_seconds"] / result["step_seconds"])
    assert result["versions"]["torch"].startswith("2.")


@pytest.mark.parametrize("vs", ["torch-channels-last", "torch-bf16"])
def test_other_layouts_and_types_run(vs):
    assert set(run("lenet", vs)["vs"]) == {vs}


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
def test_compile_runs():
    assert set(run("mlp", "torch-compile")["vs"]) == {"torch-compile"}


@pytest.mark.parametrize("name", sorted(NEED_TORCH))
def test_every_public_name_of_a_twin_has_a_docstring(name):
    assert not undocumented(name)
