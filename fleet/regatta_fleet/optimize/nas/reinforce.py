"""A controller that learns by REINFORCE which architectures are worth most (Zoph & Le 2017). Only in the child.

An LSTM takes the decisions one after another, each with what was chosen before as its input. Its gradient is that of
the log-probability of its choices, times the reward less a moving average of rewards (Williams 1992; section 3.2), with
a small bonus for entropy, so that it does not settle before it has seen anything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from regatta_fleet.optimize.nas.space import Genes, SearchSpace

__all__ = ["Reinforce"]

_HIDDEN = 32  # the paper's 35
_RATE = 1e-2  # Adam; the paper's 6e-4 is for 12,800 candidates
_KEEP = 0.8  # of the moving average at each candidate
_ENTROPY = 1e-3


class Reinforce:
    """The strategy: `propose` draws from the controller, `tell` teaches it."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._controller = _Controller([decision.options for decision in space.decisions()])
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(self._controller.parameters(), lr=_RATE)
        self._baseline: float | None = None

    def propose(self) -> Genes:
        """Return a candidate drawn from the controller."""
        with torch.no_grad():
            genes: list[int] = []
            state = self._controller.begin()
            for at in range(len(self._controller.options)):
                logits, state = self._controller.step(at, genes[-1] if genes else None, state)
                genes.append(int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator)))
        return tuple(genes)

    def tell(self, genes: Genes, reward: float) -> None:
        """Make the candidate likelier when it was worth more than the average, and less likely otherwise."""
        baseline = reward if self._baseline is None else self._baseline
        log_probability, entropy = self._controller.score(genes)
        loss = -(reward - baseline) * log_probability - _ENTROPY * entropy
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._baseline = _KEEP * baseline + (1 - _KEEP) * reward

    def probability(self, genes: Genes) -> float:
        """Return how likely the controller now proposes the candidate."""
        with torch.no_grad():
            return float(self._controller.score(genes)[0].exp())


class _Controller(nn.Module):  # type: ignore[misc]  # torch is not typed here
    def __init__(self, options: list[int]) -> None:
        super().__init__()
        self.options = options
        self.cell = nn.LSTMCell(_HIDDEN, _HIDDEN)
        self.first = nn.Parameter(torch.zeros(1, _HIDDEN))
        self.chosen = nn.ModuleList(nn.Embedding(count, _HIDDEN) for count in options)
        self.heads = nn.ModuleList(nn.Linear(_HIDDEN, count) for count in options)

    def begin(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, _HIDDEN), torch.zeros(1, _HIDDEN)

    def step(self, at: int, before: int | None, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the logits of decision `at` [options], after the choice `before`."""
        given = self.first if before is None else self.chosen[at - 1](torch.tensor([before]))
        hidden, memory = self.cell(given, state)
        return self.heads[at](hidden)[0], (hidden, memory)

    def score(self, genes: Genes) -> tuple[Tensor, Tensor]:
        """Return the log-probability of the candidate, and the entropy of the choices on its way."""
        state, log_probability, entropy = self.begin(), torch.zeros(()), torch.zeros(())
        for at, gene in enumerate(genes):
            logits, state = self.step(at, genes[at - 1] if at else None, state)
            choice = Categorical(logits=logits)
            log_probability = log_probability + choice.log_prob(torch.tensor(gene))
            entropy = entropy + choice.entropy()
        return log_probability, entropy
