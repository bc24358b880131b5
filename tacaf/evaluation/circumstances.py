"""Facts about the model and the images that a result records besides its scores; feature files do not contain them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from tacaf.documents import Document, what_is_wrong
from tacaf.vocabulary import InputError

Text = Annotated[str, Field(max_length=4096)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Facts = dict[Text, Text | int | float | bool | None]
# For a table over several splits, each with its own model: a list with one entry per split.
SplitName = Text | Whole | Annotated[list[Text], Field(min_length=1, max_length=1000)] | None
Embedded = Text | Whole | None
Origin = Text | Facts | Annotated[list[Facts], Field(min_length=1, max_length=1000)] | None
Seed = Whole | Text | Annotated[list[Whole | None], Field(min_length=1, max_length=1000)] | None
Versions = dict[Text, Text | None]


class Circumstances(Document):
    """Facts for a result that only the caller knows; null if unknown."""

    split: SplitName = None
    embedding: Embedded = None
    embedding_width: Annotated[int, Field(ge=1, le=2**24)] | None = None
    part_weight: Annotated[float, Field(gt=0, le=1e3)] | None = None
    flip: bool | None = None
    trained_on: Origin = None
    scored_on: Origin = None
    seed: Seed = None
    versions: Versions | None = None

    @classmethod
    def of(cls, facts: "Circumstances | Mapping[str, Any] | None") -> "Circumstances":
        """The circumstances in a mapping. Raises InputError for an unknown field or a wrong value."""
        if isinstance(facts, Circumstances):
            return facts
        stray = set(facts or {}) - set(cls.model_fields)
        if stray:
            raise InputError(
                f"expected circumstances among {', '.join(cls.model_fields)}, got {min(stray)!r}; rename it"
            )
        try:
            return cls.model_validate(dict(facts or {}))
        except ValidationError as error:
            raise InputError(f"circumstances: {what_is_wrong(error)}") from None


CIRCUMSTANCES = tuple(Circumstances.model_fields)


def join_circumstances(splits: Sequence[Circumstances]) -> Circumstances:
    """The circumstances of a table over splits. A fact that differs becomes a list with one entry per split."""
    columns = {name: [getattr(one, name) for one in splits] for name in CIRCUMSTANCES}
    return Circumstances.of(
        {name: values[0] if all(one == values[0] for one in values) else values for name, values in columns.items()}
    )
