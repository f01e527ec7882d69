"""Bodies of what the page sends, checked before anything is done with them."""

import json
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from marcod.domain import DropClass
from marcod.labels.requests import MOST
from marcod.plates.harvest import MarkKind

B = TypeVar("B", bound=BaseModel)

Id = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
RequestKey = Annotated[str, Field(strict=True, pattern=r"\A[A-Za-z0-9_-]{8,64}\z")]
NOTE_LENGTH: Final = 2000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelGiven(_Body):
    """One label: of the drop at the inspection, ``label`` or none, or with ``undo`` the key of one to take back."""

    drop: Id
    inspection: Id
    key: RequestKey
    label: DropClass | None = None
    undo: RequestKey | None = None


class LabelsGiven(_Body):
    """Labels; ``several`` says that the drops were chosen together."""

    labels: list[LabelGiven] = Field(min_length=1, max_length=MOST)
    several: bool = False


class MarkGiven(_Body):
    """A note or a mark on a drop."""

    kind: Literal[MarkKind.NOTE, MarkKind.HARVESTED, MarkKind.UNHARVESTED] | Literal["follow", "unfollow"]
    drop: Id
    inspection: Id
    key: RequestKey
    text: str = Field("", max_length=NOTE_LENGTH)


class NextWanted(_Body):
    """The wish for an item of the review, other than those that the browser has already."""

    besides: list[Id] = Field(default_factory=list, max_length=20)


class ItemAnswered(_Body):
    """An answer in the review: one of the classes, or ``skip``."""

    item: Id
    answer: DropClass | Literal["skip"]
    key: RequestKey


class ItemReopened(_Body):
    """An answer of the review to take back."""

    item: Id


class ItemsReleased(_Body):
    """Items of the review that this person does not answer now."""

    items: list[Id] = Field(min_length=1, max_length=20)


async def body_of(request: Request, kind: type[B]) -> B:
    """Read the body of a request. Raises HTTPException with one sentence for what no page of ours sends."""
    try:
        return kind.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise HTTPException(400, f"{where}: {first['msg'][:200]}") from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is no JSON") from error
