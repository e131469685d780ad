"""A race's choice in plain words: asked for, chosen, close, excluded, unknown, and under which conditions. Pure.

Everything is read from the report, so that whoever holds one (the device, the fleet) tells the same. What a report does
not know is said to be unknown, with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from regatta_protocol.measurement import CandidateResult, Outcome, RaceReport
from regatta_protocol.policy import Objective, Policy
from regatta_runtimes.choice.judge import TIE, tied
from regatta_runtimes.choice.limits import broken_constraint, limits_in_words, unchecked_limits
from regatta_runtimes.choice.objective import FALLBACK, OBJECTIVES, better, cost, figure
from regatta_runtimes.choice.report import ranked, words_of
from regatta_runtimes.choice.simplicity import simpler_because

__all__ = ["explain", "naive_default"]

_NAMED = 3  # candidates of a group that are named; the table has them all
_REASON_CHARS = 200
_TAIL_GAIN, _TAIL_COST = 2.0, 1.5  # a tail of half the length, for a median of half as much again


def explain(report: RaceReport) -> tuple[str, ...]:
    """Return the explanation, a line of text each; lines of a list begin with two spaces."""
    winner = report.placed()
    lines = [_asked(report)]
    if winner is None:
        lines.append(f"Nothing was placed: none of {len(report.candidates)} candidates can run it and meet the policy.")
    else:
        lines += [_chosen(report, winner), *_accuracy(winner), *_close(report, winner), *_kept(report, winner)]
        lines += _tail(report, winner)
    lines += [*_excluded(report), *_front(report), *_unknown(report, winner), _measured(report, winner)]
    return tuple(lines)


def naive_default(report: RaceReport, winner: CandidateResult) -> CandidateResult | None:
    """Return the candidate that one gets without looking: the winner's file in tflite-runtime with one thread."""
    name = f"tflite/{winner.variant}/none/t1"
    return next((result for result in report.candidates if result.id == name), None)


def _objective(report: RaceReport) -> Objective:
    """Return what was judged by; a report of a newer agent may name what this one does not know."""
    return report.objective if report.objective in OBJECTIVES else FALLBACK


def _policy(report: RaceReport) -> Policy:
    return report.policy or Policy(objective=_objective(report))


def _asked(report: RaceReport) -> str:
    objective = _objective(report)
    if report.policy is None:
        return f"Judged by {OBJECTIVES[objective]}; an older agent wrote this report, without the rest of the policy."
    asked = OBJECTIVES.get(report.policy.objective, f"{report.policy.objective}, which this program does not know")
    text = f"Asked for: {asked}, {', '.join(limits_in_words(report.policy))}."
    if objective != report.policy.objective:
        text += f" That objective is unknown here, so {OBJECTIVES[objective]} stood in for it."
    return text


def _eligible(report: RaceReport) -> list[CandidateResult]:
    """Return those that could have been placed, the best first."""
    objective, policy = _objective(report), _policy(report)
    able = [
        (value, result)
        for result in report.candidates
        if result.outcome == Outcome.MEASURED
        and broken_constraint(result, policy) is None
        and (value := cost(result, objective)) is not None
    ]
    return [result for _, result in sorted(able, key=lambda pair: (pair[0], pair[1].id))]


def _chosen(report: RaceReport, winner: CandidateResult) -> str:
    objective = _objective(report)
    eligible = _eligible(report)
    near = {result.id for result in tied(eligible, objective)}
    comparisons = []
    following = next((result for result in eligible if result.id not in near), None) or _best_dropped(report, objective)
    if following is not None:
        dropped = ", dropped early" if following.outcome == Outcome.DROPPED else ""
        what = f"the next, {following.id} ({figure(following, objective)}{dropped})"
        comparisons.append(_better(winner, following, objective, what))
    naive = naive_default(report, winner)
    if naive is None or naive.latency is None:
        why = f": {naive.reason}" if naive is not None and naive.reason else ""
        naive_text = f" The naive default (tflite-runtime, one thread) was not timed{why}."
    elif naive.id == winner.id:
        naive_text = " That is the naive default (tflite-runtime, one thread) itself."
    else:
        what = f"the naive default (tflite-runtime, one thread: {figure(naive, 'latency_p50')})"
        comparisons.append(_better(winner, naive, "latency_p50", what))
        naive_text = ""
    compared = f", {' and '.join(comparisons)}" if comparisons else ""
    return f"Chosen: {winner.id}, {figure(winner, objective)}{compared}.{naive_text}"


def _better(winner: CandidateResult, other: CandidateResult, objective: Objective, what: str) -> str:
    ours, theirs = cost(winner, objective), cost(other, objective)
    if not ours or theirs is None:
        return f"not to be compared with {what}"
    return f"{better(theirs / ours, objective)} {what}"


def _best_dropped(report: RaceReport, objective: Objective) -> CandidateResult | None:
    """Return the fastest of those dropped, when that tells something: early rounds are too short for more than p50."""
    if objective != "latency_p50":
        return None
    dropped = [
        (value, result)
        for result in report.candidates
        if result.outcome == Outcome.DROPPED and (value := cost(result, objective)) is not None
    ]
    return min(dropped, key=lambda pair: (pair[0], pair[1].id))[1] if dropped else None


def _accuracy(winner: CandidateResult) -> Iterable[str]:
    accuracy, drop = winner.accuracy, winner.accuracy_drop
    if accuracy is None:
        return
    text = f"Its accuracy is {accuracy.value * 100:.1f} % ({accuracy.correct} of {accuracy.total})"
    if drop is None:
        yield f"{text}."
    elif drop.low == drop.drop == drop.high == 0:
        yield f"{text}; it is what the others are compared with."
    else:
        yield (
            f"{text}: {drop.drop * 100:.1f} points lost against {drop.reference} on the same {drop.samples} samples, "
            f"95 % interval {drop.low * 100:.1f} to {drop.high * 100:.1f}."
        )


def _close(report: RaceReport, winner: CandidateResult) -> Iterable[str]:
    objective = _objective(report)
    ties = [result for result in tied(_eligible(report), objective) if result.id != winner.id]
    if not ties:
        return
    told = [
        f"{one.id} ({figure(one, objective)}; the placed one is simpler: {simpler_because(winner, one)})"
        for one in ties[:_NAMED]
    ]
    more = f" and {len(ties) - _NAMED} more" if len(ties) > _NAMED else ""
    yield f"Close, within {TIE:.0%} of the best, so that the simplest was taken: {', '.join(told)}{more}."


def _tail(report: RaceReport, winner: CandidateResult) -> Iterable[str]:
    """Yield who has a far shorter tail at a little more of the median, when the median is what was asked for."""
    if _objective(report) != "latency_p50" or winner.latency is None:
        return
    steadier = [
        (one.latency.p99_us, one.id, one)
        for one in _eligible(report)
        if one.latency is not None
        and one.latency.p99_us <= winner.latency.p99_us / _TAIL_GAIN
        and one.latency.p50_us <= winner.latency.p50_us * _TAIL_COST
    ]
    if not steadier:
        return
    *_, other = min(steadier)
    ratio = (other.latency.p50_us if other.latency is not None else 0.0) / winner.latency.p50_us
    yield (
        f"Mind the tail: its {figure(winner, 'latency_p99')}, and {other.id} has {figure(other, 'latency_p99')} at "
        f"{ratio:.2f} times the p50. --objective latency-p99 or --max-p99 asks for that."
    )


def _kept(report: RaceReport, winner: CandidateResult) -> Iterable[str]:
    """Yield why what serves was kept, where this race had a better one."""
    if winner.id not in {result.id for result in tied(_eligible(report), _objective(report))}:
        yield f"It is not the best of this race: {report.reason}."


def _excluded(report: RaceReport) -> Iterable[str]:
    """Yield why the others are out, alike ones together; those that were only slower in one line."""
    policy = _policy(report)
    groups: dict[str, list[CandidateResult]] = {}
    for result in ranked(report):
        if result.id == report.placement:
            continue
        if result.outcome != Outcome.MEASURED:
            groups.setdefault(words_of(result.outcome), []).append(result)
        elif broken_constraint(result, policy) is not None:
            groups.setdefault("over a limit of the policy", []).append(result)
        elif report.placement is not None:
            groups.setdefault("measured to the end, and not the best", []).append(result)
    if groups:
        yield "The others:"
    for words, results in groups.items():
        yield f"  {words} ({len(results)}): {_names(results)}{_first_reason(results)}"


def _names(results: Sequence[CandidateResult]) -> str:
    more = f" and {len(results) - _NAMED} more" if len(results) > _NAMED else ""
    return ", ".join(result.id for result in results[:_NAMED]) + more


def _first_reason(results: Sequence[CandidateResult]) -> str:
    reason = results[0].reason
    if not reason:
        return ""
    short = reason if len(reason) <= _REASON_CHARS else reason[:_REASON_CHARS] + "…"
    return f" ({short})" if len(results) == 1 else f" (the first: {short})"


def _front(report: RaceReport) -> Iterable[str]:
    others = [name for name in report.pareto if name != report.placement]
    if others and report.placement in report.pareto:
        yield f"To be had instead, for no other is better in every respect: {', '.join(others)} (the Pareto front)."
    elif others:
        yield f"No other is better in every respect than: {', '.join(others)} (the Pareto front)."


def _unknown(report: RaceReport, winner: CandidateResult | None) -> Iterable[str]:
    if winner is None:
        return
    unknown = []
    if winner.power.power_mw is None:
        unknown.append(f"power and energy ({winner.power.reason or 'not measured'})")
    if winner.conditions.temperature_c is None and report.board.temperature_c is None:
        unknown.append("temperature (no sensor of this board can be read)")
    if winner.conditions.throttled is None and report.board.throttled is None:
        unknown.append("throttling (nothing on this board tells)")
    if winner.accuracy is None:
        unknown.append("accuracy on this board (no evaluation set was given)")
    if unknown:
        yield f"Unknown: {'; '.join(unknown)}."
    for text in unchecked_limits(winner, _policy(report)):
        yield f"{text[0].upper()}{text[1:]}."


def _measured(report: RaceReport, winner: CandidateResult | None) -> str:
    board = report.board
    what = board.model or board.cpu or board.machine or "an unknown board"
    cores = f" with {board.cores} cores" if board.cores is not None else ""
    parts = [f"Measured on {what}{cores} in {report.duration_s:.1f} s"]
    if winner is not None and winner.latency is not None:
        rounds = winner.conditions.rounds
        steady = "" if winner.conditions.steady or not rounds else ", not steady by then"
        times = f" in {rounds} rounds{steady}" if rounds else ""
        parts.append(f"{winner.latency.samples} inferences of the placed one{times}")
    if winner is not None and winner.conditions.throttled:
        parts.append("the board throttled meanwhile")
    parts += [f"{name.replace('_', ' ')} {value}" for name, value in sorted(report.conditions.items())]
    return f"{'; '.join(parts)}."
