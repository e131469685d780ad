"""A search space as data: the choices of each block of a convolutional network, read from YAML. Pure.

    input -> block 1 -> … -> block n -> global average -> dense

A block is `depth` layers of one operator: the first has the block's stride and brings the block's width, the others
keep both. Operators: `conv`, k × k; `separable`, depthwise k × k then 1 × 1 (Howard 2017); `inverted`, 1 × 1 to
`expansion` times the channels, depthwise k × k, 1 × 1 back, with a shortcut where shapes allow (Sandler 2018).

A decision is a choice with several options; an architecture is its genes, one index a decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from regatta_fleet.optimize.recipe.document import read_document
from regatta_protocol.errors import Rejected

__all__ = ["SMALL", "Block", "BlockChoice", "Decision", "Draws", "Genes", "Operator", "SearchSpace", "read_space"]

Operator = Literal["conv", "separable", "inverted"]
Genes = tuple[int, ...]
_NAMES = ("op", "kernel", "width", "depth", "expansion", "stride")


def _listed(value: object) -> object:
    return [value] if isinstance(value, int | str) else value


Kernels = Annotated[tuple[Literal[1, 3, 5, 7], ...], BeforeValidator(_listed), Field(min_length=1, max_length=4)]
Whole = Annotated[
    tuple[Annotated[int, Field(ge=1, le=4096)], ...], BeforeValidator(_listed), Field(min_length=1, max_length=16)
]


class Block(BaseModel):
    """The choices of a block; one value stands for a list of one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    op: Annotated[tuple[Operator, ...], BeforeValidator(_listed), Field(min_length=1, max_length=3)] = ("conv",)
    kernel: Kernels = (3,)
    width: Whole
    depth: Annotated[Whole, Field(max_length=8)] = (1,)
    expansion: Annotated[Whole, Field(max_length=8)] = (2,)
    stride: Annotated[tuple[Literal[1, 2], ...], BeforeValidator(_listed), Field(min_length=1, max_length=2)] = (1,)


@dataclass(frozen=True)
class BlockChoice:
    """One block of an architecture."""

    op: Operator
    kernel: int
    width: int
    depth: int
    expansion: int
    stride: int


@dataclass(frozen=True)
class Decision:
    """A choice with several options: which block, of what, and how many options."""

    block: int
    name: str
    options: int


class Draws(Protocol):
    """What strategies draw from; random.Random is one."""

    def randrange(self, start: int, /) -> int: ...


class SearchSpace(BaseModel):
    """A space of architectures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: Literal[1] = Field(description="The version of the format.")
    blocks: tuple[Block, ...] = Field(min_length=1, max_length=16)

    def decisions(self) -> tuple[Decision, ...]:
        """Return what is to be decided, block by block."""
        return tuple(
            Decision(at, name, len(getattr(block, name)))
            for at, block in enumerate(self.blocks)
            for name in _NAMES
            if len(getattr(block, name)) > 1
        )

    def choices(self, genes: Genes) -> tuple[BlockChoice, ...]:
        """Return the blocks of an architecture."""
        chosen = {(decision.block, decision.name): gene for decision, gene in zip(self.decisions(), genes, strict=True)}
        return tuple(
            BlockChoice(**{name: getattr(block, name)[chosen.get((at, name), 0)] for name in _NAMES})
            for at, block in enumerate(self.blocks)
        )

    def draw(self, draws: Draws) -> Genes:
        """Return an architecture, every option equally likely."""
        return tuple(draws.randrange(decision.options) for decision in self.decisions())

    def mutate(self, genes: Genes, draws: Draws) -> Genes:
        """Return the architecture with one decision taken otherwise (Real et al. 2019, section 2)."""
        decisions = self.decisions()
        at = draws.randrange(len(decisions))
        other = (genes[at] + 1 + draws.randrange(decisions[at].options - 1)) % decisions[at].options
        return (*genes[:at], other, *genes[at + 1 :])

    def size(self) -> int:
        """Return how many architectures there are; some compute the same."""
        total = 1
        for decision in self.decisions():
            total *= decision.options
        return total

    def words(self, genes: Genes) -> str:
        """Return the architecture in one line."""
        return " | ".join(_block_words(choice) for choice in self.choices(genes))

    def each_choice(self) -> Iterator[BlockChoice]:
        """Yield every choice of every block."""
        for block in self.blocks:
            for op in block.op:
                for kernel in block.kernel:
                    for width in block.width:
                        for depth in block.depth:
                            for expansion in block.expansion:
                                for stride in block.stride:
                                    yield BlockChoice(op, kernel, width, depth, expansion, stride)


def _block_words(choice: BlockChoice) -> str:
    times = f"{choice.depth}× " if choice.depth > 1 else ""
    expansion = f" e{choice.expansion}" if choice.op == "inverted" else ""
    return f"{times}{choice.op} {choice.kernel}×{choice.kernel} {choice.width}{expansion} s{choice.stride}"


def read_space(path: Path) -> SearchSpace:
    """Return the space in the file.

    Raises:
        Rejected: when it is none, or has nothing to decide; the text names line and key.
    """
    text, space = read_document(path, SearchSpace, {})
    if not space.decisions():
        raise Rejected(f"{text.where(('blocks',))}: every choice has one option: there is nothing to search")
    return space


# 9,216 architectures for pictures from 8 × 8 on; a candidate trains in a fraction of a second.
_DEEP = Block(
    op=("conv", "separable", "inverted"), kernel=(3, 5), width=(16, 32), depth=(1, 2), expansion=(2, 3), stride=(2,)
)
SMALL = SearchSpace(space=1, blocks=(Block(kernel=(3, 5), width=(8, 16)), _DEEP, _DEEP))
