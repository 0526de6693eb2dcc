"""What all sections of a job are: fields of given types and no others, checked in words that people understand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pydantic
from pydantic import BaseModel, ConfigDict, Field

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.train.problems import problems

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _Meta
else:
    _Meta = type(BaseModel)

Positive = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class _Checked(_Meta):
    """Lets a section that is made in Python, rather than read from a file, be refused in words."""

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}
        try:
            return super().__call__(*args, **plain)
        except pydantic.ValidationError as error:
            raise InputError("; ".join(problems(error, plain, cls.__name__))) from None


class Section(BaseModel, metaclass=_Checked):
    """A section of a job: unknown keys, other types and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
