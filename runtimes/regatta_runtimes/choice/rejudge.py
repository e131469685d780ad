"""Whether an earlier race answers for a changed policy too, so that nothing need be raced again. Pure.

It does when the same candidate wins by the same objective and no more accuracy may be lost than before. Then nothing
that was left out could have won: what was dropped was clearly slower than the winner, and what was refused for its
accuracy is refused still. Every other change (another objective, more accuracy to lose, a winner that now breaks a
limit) asks of candidates that were never measured to the end, and only a race answers that.
"""

from __future__ import annotations

from regatta_protocol.measurement import RaceReport
from regatta_protocol.policy import Policy
from regatta_runtimes.choice.judge import judge
from regatta_runtimes.choice.yardstick import Floor

__all__ = ["rejudge"]


def rejudge(report: RaceReport, policy: Policy, floor: Floor | None) -> RaceReport | None:
    """Return the report as judged by `policy`, or None when only a new race can tell.

    Args:
        floor: of `policy` (yardstick.accuracy_floor).
    """
    before = report.policy
    if before is None or report.placement is None:
        return None
    if policy.objective != before.objective or policy.max_accuracy_drop > before.max_accuracy_drop:
        return None
    verdict = judge(report.candidates, policy, floor)
    if verdict.placement != report.placement or verdict.objective != report.objective:
        return None
    return report.model_copy(
        update={
            "candidates": verdict.candidates,
            "reason": f"{verdict.reason}; the policy changed, and the earlier race answers for it",
            "policy": policy,
        }
    )
