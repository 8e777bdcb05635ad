"""What every record is: a frozen pydantic model that refuses unknown fields; on disk one JSON object a line."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Base of all records: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Probability = Annotated[float, Field(ge=0.0, le=1.0)]
