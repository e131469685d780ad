"""Differentiable search (Liu, Simonyan & Yang 2019): every option at once, weighed, and the weights learned.

The network holds each block at its greatest depth, width, kernel and expansion, with a path for each operator. What a
decision is worth is a softmax over its options; a block's output is the mixture of its paths and depths, and of masks
for the others: over channels (Wan et al. 2020) and over the taps of a kernel (Stamoulis et al. 2019). Masks and shares
are above 0, so they pass through relu, and batch normalization multiplies by them. Bilevel: the shares follow the
validation loss, the weights the training loss. First order takes the weights as they are (xi = 0); second order looks
one step of the weights ahead (eq. 7), with the Hessian product by finite differences (eq. 8).

The latency that the shares expect, from the table, is in the shares' loss as it is in the reward: 0.07 · log(latency /
target) where it is over the target. A block's stride must have one option here, for paths must agree on their shape.
Only in the search's child.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from regatta_fleet.optimize.nas.latency import LatencyTable
from regatta_fleet.optimize.nas.layers import Shape, build_layers, operator_layers
from regatta_fleet.optimize.nas.network import pad_same
from regatta_fleet.optimize.nas.objective import LATENCY_WEIGHT
from regatta_fleet.optimize.nas.space import Block, BlockChoice, Genes, SearchSpace
from regatta_fleet.optimize.nas.training import Data, batches
from regatta_protocol.errors import Rejected

__all__ = ["STEPS_FIRST", "STEPS_SECOND", "Supernet", "darts"]

STEPS_FIRST, STEPS_SECOND = 2, 5  # gradients of a batch in one iteration
_WEIGHTS_RATE, _MOMENTUM, _DECAY = 0.05, 0.9, 3e-4  # the paper's, with twice the rate for fewer steps
_SHARES_RATE = 0.02  # Adam; the paper's 3e-4 is for 50 epochs
_CLIP = 5.0
REACH = 0.01  # how far the weights are moved for the differences of eq. 8; the paper's
_NAMES = ("op", "kernel", "width", "depth", "expansion")
Told = Callable[[int], None]


def darts(
    space: SearchSpace,
    data: tuple[Data, Data],
    classes: int,
    shape: Shape,
    table: LatencyTable,
    target_us: float,
    *,
    steps: int,
    second_order: bool,
    seed: int,
    told: Told = lambda step: None,
) -> Genes:
    """Return the architecture whose options have the greatest shares.

    Args:
        data: what the weights are trained on, and what the shares follow.
        steps: gradients of a batch that may be taken.
        told: how many were taken, after each iteration.

    Raises:
        Rejected: when a block's stride has several options.
    """
    check_strides(space)
    torch.manual_seed(seed)
    net = Supernet(space, shape, classes, table)
    net.to(memory_format=torch.channels_last)  # two thirds of the time
    weights = list(net.weights())
    of_weights = torch.optim.SGD(weights, lr=_WEIGHTS_RATE, momentum=_MOMENTUM, weight_decay=_DECAY)
    of_shares = torch.optim.Adam(net.shares(), lr=_SHARES_RATE, betas=(0.5, 0.999))
    generator = torch.Generator().manual_seed(seed)
    training, validation = batches(data[0], generator), batches(data[1], generator)
    cost = STEPS_SECOND if second_order else STEPS_FIRST
    iterations = max(steps // cost, 1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(of_weights, iterations)
    for iteration in range(iterations):
        train_batch, validation_batch = next(training), next(validation)
        rate = float(schedule.get_last_lr()[0])
        slopes = (
            _second_order(net, weights, train_batch, validation_batch, target_us, rate)
            if second_order
            else _slopes(net.outer_loss(*validation_batch, target_us), list(net.shares()))
        )
        for share, slope in zip(net.shares(), slopes, strict=True):
            share.grad = slope
        of_shares.step()
        of_weights.zero_grad()
        for weight, slope in zip(weights, _slopes(net.loss(*train_batch), weights), strict=True):
            weight.grad = slope
        nn.utils.clip_grad_norm_(weights, _CLIP)
        of_weights.step()
        schedule.step()
        told((iteration + 1) * cost)
    return net.best()


def check_strides(space: SearchSpace) -> None:
    """Refuse a space that cannot be mixed.

    Raises:
        Rejected: naming the block.
    """
    for at, block in enumerate(space.blocks):
        if len(block.stride) > 1:
            raise Rejected(
                f"block {at + 1} has strides {list(block.stride)}: darts mixes paths of one shape, so it needs one "
                "stride a block. Fix it, or search by evolution, reinforce or random"
            )


def _second_order(
    net: Supernet,
    weights: list[Tensor],
    train_batch: tuple[Tensor, Tensor],
    validation_batch: tuple[Tensor, Tensor],
    target_us: float,
    rate: float,
) -> list[Tensor]:
    """Return the slope of the validation loss by the shares, one step of the weights ahead (eq. 7 and 8)."""
    shares = list(net.shares())
    kept = [weight.detach().clone() for weight in weights]
    ahead = _slopes(net.loss(*train_batch), weights)
    _shift(weights, ahead, -rate)
    both = _slopes(net.outer_loss(*validation_batch, target_us), shares + weights)
    by_shares, by_weights = both[: len(shares)], both[len(shares) :]
    norm = float(torch.cat([slope.flatten() for slope in by_weights]).norm())
    epsilon = REACH / max(norm, 1e-8)
    _restore(weights, kept)
    _shift(weights, by_weights, epsilon)
    plus = _slopes(net.loss(*train_batch), shares)
    _restore(weights, kept)
    _shift(weights, by_weights, -epsilon)
    minus = _slopes(net.loss(*train_batch), shares)
    _restore(weights, kept)
    return [
        slope - rate * (one - other) / (2 * epsilon) for slope, one, other in zip(by_shares, plus, minus, strict=True)
    ]


def _slopes(loss: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(of), allow_unused=True)
    return [torch.zeros_like(one) if slope is None else slope for slope, one in zip(found, of, strict=True)]


def _shift(weights: Sequence[Tensor], slopes: Sequence[Tensor], by: float) -> None:
    with torch.no_grad():
        for weight, slope in zip(weights, slopes, strict=True):
            weight.add_(slope, alpha=by)


def _restore(weights: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)


class Supernet(nn.Module):  # type: ignore[misc]  # torch is not typed here
    """Every architecture of the space at once; input float32 [n, c, h, w], output logits [n, classes]."""

    def __init__(self, space: SearchSpace, shape: Shape, classes: int, table: LatencyTable) -> None:
        super().__init__()
        self._space = space
        self.blocks = nn.ModuleList()
        channels = shape[2]
        for block in space.blocks:
            self.blocks.append(_MixedBlock(block, channels))
            channels = max(block.width)
        self.head = nn.Linear(channels, classes)
        self._costs = _Costs(space, shape, classes, table)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))

    def shares(self) -> list[Tensor]:
        """Return what decides: a vector for each decision."""
        return [share for block in self.blocks for share in block.decided.values()]

    def weights(self) -> list[Tensor]:
        """Return everything else that is learned."""
        mine = {id(share) for share in self.shares()}
        return [weight for weight in self.parameters() if id(weight) not in mine]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cross-entropy on a batch."""
        return functional.cross_entropy(self(x), y)

    def outer_loss(self, x: Tensor, y: Tensor, target_us: float) -> Tensor:
        """Return what the shares follow: cross-entropy, and the expected latency where it is over the target."""
        over = functional.relu(torch.log(self.expected_us() / target_us))
        return self.loss(x, y) + LATENCY_WEIGHT * over

    def expected_us(self) -> Tensor:
        """Return the latency that the shares expect."""
        return self._costs.expected([block.probabilities() for block in self.blocks])

    def best(self) -> Genes:
        """Return the options with the greatest shares."""
        return tuple(
            int(self.blocks[decision.block].decided[decision.name].argmax()) for decision in self._space.decisions()
        )


class _MixedBlock(nn.Module):  # type: ignore[misc]  # as above
    def __init__(self, block: Block, channels: int) -> None:
        super().__init__()
        self.block = block
        self.decided = nn.ParameterDict(
            {
                name: nn.Parameter(1e-3 * torch.randn(len(getattr(block, name))))
                for name in _NAMES
                if len(getattr(block, name)) > 1
            }
        )
        width = max(block.width)
        self.levels = nn.ModuleList()
        for level in range(max(block.depth)):
            self.levels.append(_MixedOperator(block, channels if level == 0 else width, width, level == 0))
        masks = torch.zeros(len(block.width), width)
        for at, size in enumerate(block.width):
            masks[at, :size] = 1.0
        self.register_buffer("masks", masks)

    def probabilities(self) -> dict[str, Tensor]:
        """Return the share of each option by the decision's name; one option has it all."""
        return {name: self.decided[name].softmax(0) if name in self.decided else torch.ones(1) for name in _NAMES}

    def forward(self, x: Tensor) -> Tensor:
        shares = self.probabilities()
        mask = shares["width"] @ self.masks
        result: Tensor | None = None
        for level, operator in enumerate(self.levels, start=1):
            x = operator(x, shares, mask)
            if level in self.block.depth:
                part = shares["depth"][self.block.depth.index(level)] * x
                result = part if result is None else result + part
        assert result is not None
        return result


class _MixedOperator(nn.Module):  # type: ignore[misc]  # as above
    """One level of a block: a path for each operator."""

    def __init__(self, block: Block, channels: int, width: int, first: bool) -> None:
        super().__init__()
        stride = block.stride[0] if first else 1
        self.paths = nn.ModuleList(_Path(op, block, channels, width, stride) for op in block.op)

    def forward(self, x: Tensor, shares: dict[str, Tensor], mask: Tensor) -> Tensor:
        first, *others = (path(x, shares, share * mask) for share, path in zip(shares["op"], self.paths, strict=True))
        return sum(others, first)


class _Path(nn.Module):  # type: ignore[misc]  # as above
    """One operator at its greatest kernel and expansion; the smaller ones are its middle and its first channels."""

    def __init__(self, op: str, block: Block, channels: int, width: int, stride: int) -> None:
        super().__init__()
        kernel, inside = max(block.kernel), channels * (max(block.expansion) if op == "inverted" else 1)
        self.expands = op == "inverted"
        self.shortcut = op == "inverted" and stride == 1 and channels == width
        self.wide = _Unit(channels, inside, 1, 1) if op == "inverted" else None
        self.deep = None if op == "conv" else _Unit(inside, inside, kernel, stride, groups=inside)
        self.out = _Unit(channels, width, kernel, stride) if op == "conv" else _Unit(inside, width, 1, 1)
        kernels = torch.zeros(len(block.kernel), kernel, kernel)
        for at, size in enumerate(block.kernel):
            edge = (kernel - size) // 2
            kernels[at, edge : edge + size, edge : edge + size] = 1.0
        expansions = torch.zeros(len(block.expansion), inside)
        for at, expansion in enumerate(block.expansion):
            expansions[at, : channels * expansion] = 1.0
        self.register_buffer("kernels", kernels)
        self.register_buffer("expansions", expansions)

    def forward(self, x: Tensor, shares: dict[str, Tensor], scale: Tensor) -> Tensor:
        """Return the path's answer times `scale` [width]."""
        kernel = torch.einsum("o,okl->kl", shares["kernel"], self.kernels)
        if self.deep is None:
            return functional.relu(self.out(x, kernel=kernel, scale=scale))
        given = x
        if self.wide is not None:
            x = functional.relu(self.wide(x, scale=shares["expansion"] @ self.expansions))
        x = self.out(functional.relu(self.deep(x, kernel=kernel)), scale=scale)
        if not self.expands:
            return functional.relu(x)
        return torch.addcmul(x, given, scale.reshape(1, -1, 1, 1)) if self.shortcut else x


class _Unit(nn.Module):  # type: ignore[misc]  # as above
    """A convolution, and batch normalization, whose scale is given: a learned one would hide the shares, as the paper
    says. It normalizes by the batch, for the mixture is only ever trained.
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor, *, kernel: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        conv = self.conv
        weight = conv.weight if kernel is None else conv.weight * kernel
        edge = conv.kernel_size[0] // 2 if conv.stride[0] == 1 else 0  # as pad_same would, and without a copy
        padded = x if edge else pad_same(x, conv.kernel_size[0], conv.stride[0])
        found = functional.conv2d(padded, weight, None, conv.stride, edge, 1, conv.groups)
        return functional.batch_norm(found, None, None, scale, training=True)


class _Costs:
    """Latencies of every choice, so that what the shares expect is a product of tensors.

    By block: `first` [widths before, op, kernel, expansion, width] of its first level, `more` [op, kernel, expansion,
    width] of each further one.
    """

    def __init__(self, space: SearchSpace, shape: Shape, classes: int, table: LatencyTable) -> None:
        self._first: list[Tensor] = []
        self._more: list[Tensor] = []
        self._extra = [torch.tensor([float(depth - 1) for depth in block.depth]) for block in space.blocks]
        befores: Sequence[int] = (shape[2],)
        height, width = shape[:2]
        for block in space.blocks:
            sizes = (len(block.op), len(block.kernel), len(block.expansion), len(block.width))
            first, more = torch.zeros((len(befores), *sizes)), torch.zeros(sizes)
            stride = block.stride[0]
            for place in itertools.product(*(range(size) for size in sizes)):
                op, kernel, expansion, out = place
                for at, before in enumerate(befores):
                    choice = _choice(block, op, kernel, expansion, out, 1, stride)
                    index = (at, *place)
                    first[index] = _operator_us(choice, (height, width, before), table)
                after = (-(-height // stride), -(-width // stride), block.width[out])
                if max(block.depth) > 1:
                    more[place] = _operator_us(_choice(block, op, kernel, expansion, out, 1, 1), after, table)
            self._first.append(first)
            self._more.append(more)
            height, width, befores = -(-height // stride), -(-width // stride), block.width
        self._head = torch.tensor([_head_us((height, width, before), classes, table) for before in befores])
        self._call = table.call_us

    def expected(self, shares: Sequence[dict[str, Tensor]]) -> Tensor:
        """Return the expected latency in microseconds."""
        total, before = torch.tensor(self._call), torch.ones(1)
        for at, share in enumerate(shares):
            options = (share["op"], share["kernel"], share["expansion"], share["width"])
            total = total + torch.einsum("bokew,b,o,k,e,w->", self._first[at], before, *options)
            total = total + (share["depth"] @ self._extra[at]) * torch.einsum(
                "okew,o,k,e,w->", self._more[at], *options
            )
            before = share["width"]
        return total + before @ self._head


def _choice(block: Block, op: int, kernel: int, expansion: int, width: int, depth: int, stride: int) -> BlockChoice:
    return BlockChoice(
        block.op[op], block.kernel[kernel], block.width[width], depth, block.expansion[expansion], stride
    )


def _operator_us(choice: BlockChoice, shape: Shape, table: LatencyTable) -> float:
    return table.estimate_us(operator_layers(choice, shape, choice.stride, 0)) - table.call_us


def _head_us(shape: Shape, classes: int, table: LatencyTable) -> float:
    block = Block(width=(shape[2],))
    layers = build_layers(SearchSpace(space=1, blocks=(block,)), (), shape, classes)
    return table.estimate_us(layers[-2:]) - table.call_us
