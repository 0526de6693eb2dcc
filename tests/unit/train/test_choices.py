"""From a job's words to objects: factories of all forms, and what they may import."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn import Conv2d, Layer, walk
from hpdl_mpi.train.choices import make_model, read_job

LENET = Path("jobs/lenet_mnist.toml").read_text()

FORMS = """
from __future__ import annotations
from typing import TYPE_CHECKING
from hpdl_mpi import nn
if TYPE_CHECKING:
    from nowhere import Width
def keywords(**sizes):
    return nn.Linear(sizes["width"])
def beside(*parts, width: int = 1, **others) -> nn.Layer:
    return nn.Linear(width + others.get("copy", 0))
def unresolved(width: int, name: Width = None) -> Layer:
    return nn.Linear(width)
"""


@pytest.fixture
def make(tmp_path):
    """Return a function that writes a module beside a job and makes the model of a factory in it."""

    def make_from(factory: str, *overrides: str, **modules: str) -> Layer:
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        job = tmp_path / "own.toml"
        job.write_text(LENET.replace('name = "lenet"\n', f'factory = "{factory}"\n'))
        before = sys.path[:]
        layer = make_model(read_job(job, overrides))
        assert sys.path == before
        return layer

    return make_from


@pytest.mark.parametrize(("overrides", "expected"), [([], "winograd"), (["training.exact=true"], "unfolded")])
def test_a_job_can_ask_for_exact_convolutions(overrides, expected):
    model = make_model(read_job("jobs/lenet_mnist.toml", overrides))
    model.build((28, 28, 1))
    assert {layer.method for layer in walk(model) if isinstance(layer, Conv2d)} == {"unfolded", expected}


@pytest.mark.parametrize("function", ["keywords", "beside", "unresolved"])
def test_every_form_of_signature_takes_its_keywords(make, function):
    assert make(f"many_forms:{function}", "model.width=7", many_forms=FORMS).output_shape((3,)) == (7,)


def test_a_keyword_that_no_parameter_names_arrives_whatever_its_name(make):
    layer = make("many_forms:beside", "model.width=7", "model.copy=2", many_forms=FORMS)
    assert layer.output_shape((3,)) == (9,)


def test_types_are_checked_beside_those_that_cannot_be_known(make):
    with pytest.raises(InputError, match=r"model\.width: input should be a valid integer; found 'wide'"):
        make("many_forms:unresolved", "model.width=wide", many_forms=FORMS)
    with pytest.raises(InputError, match=r"model\.width: missing"):
        make("many_forms:unresolved", many_forms=FORMS)


def test_a_factory_may_import_what_lies_beside_the_job_but_nothing_later_may(make):
    lazy = "def net():\n    from lazy_helper import layer\n    return layer()\n"
    helper = "from hpdl_mpi import nn\ndef layer():\n    return nn.Linear(4)\n"
    layer = make("lazy_net:net", lazy_net=lazy, lazy_helper=helper, lazy_later="")
    assert layer.output_shape((3,)) == (4,)
    with pytest.raises(ModuleNotFoundError):
        __import__("lazy_later")
