"""The child process of a search: tries candidates or mixes them, and trains the best. PyTorch, on one thread.

Budgets are counted in training steps, the gradient of one batch each: a candidate costs its training, DARTS two
gradients an iteration in first order and five in second, and its one candidate. A step of DARTS's network, which holds
every option, takes longer than a candidate's; the result tells the time beside the steps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from regatta_fleet.optimize.model_file import write_model
from regatta_fleet.optimize.nas.darts import darts
from regatta_fleet.optimize.nas.evolution import RandomSearch, RegularizedEvolution, Sampler
from regatta_fleet.optimize.nas.layers import Shape, build_layers, count
from regatta_fleet.optimize.nas.network import Network, folded_weights
from regatta_fleet.optimize.nas.objective import Found, SearchResult, front_of, reward
from regatta_fleet.optimize.nas.reinforce import Reinforce
from regatta_fleet.optimize.nas.request import SearchAnswer, SearchSpec
from regatta_fleet.optimize.nas.space import Genes
from regatta_fleet.optimize.nas.tflite import network_model
from regatta_fleet.optimize.nas.training import accuracy_of, divide, train
from regatta_fleet.optimize.process import serve, tell_parent
from regatta_fleet.optimize.samples import read_samples
from regatta_protocol.errors import Rejected

__all__ = ["main"]

_SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "random": RandomSearch,
    "evolution": RegularizedEvolution,
    "reinforce": Reinforce,
}


def main(arguments: list[str]) -> int:
    """Do the search that `run` asks for; 0 when an answer was written."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    return serve(arguments, SearchSpec, lambda spec: _Search(spec).run(), lambda spec: f"search by {spec.strategy}")


class _Search:
    def __init__(self, spec: SearchSpec) -> None:
        self._spec = spec
        samples = read_samples(Path(spec.samples))
        self._training, self._validation, self._all = divide(samples)
        x = samples.x
        self._shape: Shape = (x.shape[1], x.shape[2], x.shape[3])
        self._tried: dict[Genes, Found] = {}
        self._order: list[Found] = []
        self._steps = 0

    def run(self) -> SearchAnswer:
        """Return the result; the best one is written."""
        spec, begun = self._spec, time.monotonic()
        if spec.strategy in _SAMPLERS:
            self._sample(_SAMPLERS[spec.strategy](spec.space, spec.seed))
        else:
            self._mix()
        best = max(self._order, key=lambda found: found.reward)
        tell_parent(f"training the best of {len(self._order)}: {best.words}", 0.85)
        trained_accuracy = self._write(best)
        return SearchAnswer(
            result=SearchResult(
                strategy=spec.strategy,
                seed=spec.seed,
                budget=spec.budget,
                steps=self._steps,
                candidate_steps=spec.candidate_steps,
                target_us=spec.target_us,
                latency_from=f"{spec.table.device}, {spec.table.setting}",
                tried=tuple(self._order),
                front=front_of(self._order),
                best=best,
                final_steps=spec.final_steps,
                trained_accuracy=trained_accuracy,
                duration_s=round(time.monotonic() - begun, 2),
            )
        )

    def _sample(self, sampler: Sampler) -> None:
        spec = self._spec
        while self._steps + spec.candidate_steps <= spec.budget:
            genes = sampler.propose()
            found = self._try(genes)
            sampler.tell(genes, found.reward)
            best = max(one.reward for one in self._order)
            share = 0.85 * self._steps / spec.budget
            tell_parent(f"{spec.strategy}: {len(self._order)} tried, the best is worth {best:.4f}", share)

    def _mix(self) -> None:
        spec = self._spec
        steps = spec.budget - spec.candidate_steps
        genes = darts(
            spec.space,
            (self._training, self._validation),
            spec.classes,
            self._shape,
            spec.table,
            spec.target_us,
            steps=steps,
            second_order=spec.strategy == "darts2",
            seed=spec.seed,
            told=lambda step: tell_parent(f"{spec.strategy}: {step} of {steps} gradients", 0.85 * step / spec.budget),
        )
        self._steps = steps
        self._try(genes)

    def _try(self, genes: Genes) -> Found:
        """Return the candidate with its figures; one that REINFORCE proposes again is trained and paid for again."""
        spec = self._spec
        layers = build_layers(spec.space, genes, self._shape, spec.classes)
        torch.manual_seed(spec.seed)
        network = Network(layers)
        train(network, self._training, spec.candidate_steps, spec.seed)
        self._steps += spec.candidate_steps
        accuracy, latency_us = accuracy_of(network, self._validation), spec.table.estimate_us(layers)
        macs, weights = count(layers)
        found = Found(
            genes=genes,
            words=spec.space.words(genes),
            accuracy=accuracy,
            latency_us=round(latency_us, 3),
            reward=reward(accuracy, latency_us, spec.target_us),
            macs=macs,
            weights=weights,
            train_steps=self._steps,
        )
        if genes not in self._tried:
            self._tried[genes] = found
            self._order.append(found)
        return found

    def _write(self, best: Found) -> float | None:
        """Train the best on all samples, write it, and return its accuracy on those that nothing was chosen by."""
        spec = self._spec
        layers = build_layers(spec.space, best.genes, self._shape, spec.classes)
        torch.manual_seed(spec.seed)
        network = Network(layers)
        train(network, self._all, spec.final_steps, spec.seed)
        weights = folded_weights(network)
        if any(not torch.isfinite(torch.from_numpy(values)).all() for pair in weights.values() for values in pair):
            raise Rejected(f"training {best.words} diverged to NaN: are the samples scaled, for example to 0..1?")
        write_model(network_model(layers, weights), Path(spec.output))
        if spec.test is None:
            return None
        return accuracy_of(network, divide(read_samples(Path(spec.test)))[2])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
