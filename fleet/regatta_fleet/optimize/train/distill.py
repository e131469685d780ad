"""Fine-tuning and distillation of a .tflite: a pruned student learns to answer as the original did.

a and T are searched on samples that are held out of training. The result always tells, over several seeds on the same
held-out samples, how the student does with the teacher's soft answers, how the same student does without them (trained
on the labels alone; where there are none, on the teacher's first choices as labels), and how it did untrained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from regatta_fleet.optimize.model_file import ModelTree, model_bytes
from regatta_fleet.optimize.samples import Samples
from regatta_fleet.optimize.train.bridge import Network, load_network, with_weights
from regatta_fleet.optimize.train.fit import Progress
from regatta_fleet.optimize.train.options import FitOptions
from regatta_fleet.optimize.train.spread import Spread
from regatta_fleet.optimize.train.teaching import Blend, teach
from regatta_protocol.errors import Rejected

__all__ = ["BLENDS", "Distilled", "distill", "score"]

BLENDS = (Blend(0.5, 2.0), Blend(0.5, 4.0), Blend(0.9, 2.0), Blend(0.9, 4.0), Blend(1.0, 1.0), Blend(1.0, 2.0))
SEEDS = (0, 1, 2)
_ALONE = Blend(0.0)
_LEAST_SAMPLES = 8
_SEARCH_SHARE = 2  # the search trains for a half of the epochs


@dataclass(frozen=True)
class Distilled:
    """The trained student, and how it did on held-out samples.

    Scores are accuracies where there are labels, else how often the student's first choice is the teacher's; of models
    without classes, minus the relative squared error. All in the order in which more is better.
    """

    content: bytes  # of the .tflite, trained on all samples
    judged: bytes  # the same trained without those held out, with the first seed
    blend: Blend | None  # None: learned by squared error
    with_teacher: Spread
    without_teacher: Spread | None  # None where there is nothing else to learn from
    untrained: float
    held_out: int
    tried: int  # blends


def distill(
    student: ModelTree,
    teacher: ModelTree,
    samples: Samples,
    held_out: Samples,
    *,
    options: FitOptions | None = None,
    blends: Sequence[Blend] = BLENDS,
    seeds: Sequence[int] = SEEDS,
    progress: Progress = lambda message, share: None,
) -> Distilled:
    """Return the student trained on the samples to answer as the teacher; both trees stay as they are.

    Args:
        student, teacher: float models of one input and output shape, such as a pruned one and its original.
        held_out: samples that the student was not pruned and refitted on either, for the search and the scores.
        blends: a and T to search through; one is not searched.
        seeds: of the runs that are reported; the student that is returned is trained with the first, on all samples,
            those held out too.

    Raises:
        Rejected: for too few samples, labels out of range, an operator that cannot be trained (named with its
            tensor), or training that diverges.
    """
    if len(samples) < _LEAST_SAMPLES or not len(held_out):
        raise Rejected(
            f"{len(samples)} samples to train on and {len(held_out)} held out are too few: give at least "
            f"{_LEAST_SAMPLES} and 1"
        )
    lesson = _Lesson(student, load_network(teacher), held_out, options or FitOptions())
    total = len(blends) + 2 * len(seeds) + 1
    done = 0

    def run(blend: Blend | None, seed: int, chosen: Samples, epochs: int, words: str) -> Network:
        nonlocal done
        progress(words, done / total)
        done += 1
        return lesson.train(blend, seed, chosen, epochs)

    epochs = lesson.options.epochs
    classes = lesson.teacher.ends_in_softmax
    best: Blend | None = None
    if classes:
        found = []
        for blend in blends if len(blends) > 1 else ():
            words = f"trying a = {blend.alpha:g}, T = {blend.temperature:g}"
            network = run(blend, seeds[0], samples, max(1, epochs // _SEARCH_SHARE), words)
            found.append((lesson.distance(network), blend))
        best = min(found, key=lambda pair: pair[0])[1] if found else blends[0]
    students = [run(best, seed, samples, epochs, f"distilling, seed {seed}") for seed in seeds]
    alone = [
        lesson.score(run(_ALONE, seed, samples, epochs, f"training without a teacher, seed {seed}"))
        for seed in (seeds if classes else ())
    ]
    final = run(best, seeds[0], samples.joined(held_out), epochs, "distilling on all samples")
    return Distilled(
        model_bytes(with_weights(student, final)),
        model_bytes(with_weights(student, students[0])),
        best,
        Spread.of([lesson.score(network) for network in students]),
        Spread.of(alone) if alone else None,
        lesson.score(load_network(student)),
        len(held_out),
        len(blends) if classes and len(blends) > 1 else 0,
    )


class _Lesson:
    """A student's model with its teacher, and the samples that judge it."""

    def __init__(self, student: ModelTree, teacher: Network, held_out: Samples, options: FitOptions) -> None:
        self.student, self.teacher, self.held_out, self.options = student, teacher, held_out, options

    def train(self, blend: Blend | None, seed: int, samples: Samples, epochs: int) -> Network:
        """Return the student after training."""
        network = load_network(self.student)
        teach(
            network.logits,
            list(network.parameters()),
            self.teacher.logits,
            samples.x,
            samples.y,
            blend=blend,
            options=replace(self.options, epochs=epochs),
            seed=seed,
        )
        return network

    def score(self, network: Network) -> float:
        """Return how good the network is on the held-out samples; more is better."""
        return score(network, self.teacher, self.held_out)

    def distance(self, network: Network) -> float:
        """Return what tells blends apart on few samples, where accuracy is too coarse: the cross-entropy, less is
        better, with the labels, or with the teacher's answers where there are none.
        """
        given, wanted = _both(network, self.teacher, self.held_out.x)
        logs = torch.log_softmax(given, 1)
        if self.held_out.y is not None:
            return float(-logs[torch.arange(len(logs)), torch.from_numpy(self.held_out.y)].mean())
        return float(-(torch.softmax(wanted, 1) * logs).sum(1).mean())


def score(network: Network, teacher: Network, samples: Samples) -> float:
    """Return the network's accuracy, or its agreement with the teacher without labels; see `Distilled`."""
    given, wanted = _both(network, teacher, samples.x)
    if not teacher.ends_in_softmax:
        return -float(((given - wanted) ** 2).mean() / (wanted**2).mean().clamp_min(1e-30))
    answers: npt.NDArray[np.int64] = wanted.argmax(1).numpy() if samples.y is None else samples.y
    return float((given.argmax(1).numpy() == answers).mean())


def _both(network: Network, teacher: Network, x: npt.NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        return network.logits(inputs), teacher.logits(inputs)
