"""The delegates that variants may require, as data: what they are, how a board shows them, and how to get them.

One row a delegate. This landing runs CPU candidates only; a variant that requires one of these is explained with its
row. Sources: design notes on boards; each vendor's installation page.
"""

from __future__ import annotations

from dataclasses import dataclass

from regatta_protocol.measurement import BoardFacts

__all__ = ["DELEGATES", "DelegateFacts", "explain_absence"]


@dataclass(frozen=True)
class DelegateFacts:
    """`accelerators`: the names in BoardFacts.accelerators that it serves."""

    name: str
    what: str
    accelerators: tuple[str, ...]
    install: str


DELEGATES = {
    row.name: row
    for row in (
        DelegateFacts(
            "edgetpu",
            "a Coral Edge TPU",
            ("coral-usb", "coral-pcie"),
            "plug in a Coral accelerator and install libedgetpu1-std",
        ),
        DelegateFacts("gpu", "a GPU", ("jetson",), "use a board with a Vulkan driver"),
        DelegateFacts("vx", "an i.MX 8M Plus NPU", ("imx8mp-npu",), "install libvx_delegate.so from NXP's BSP"),
        DelegateFacts("ethosu", "an i.MX 93 Ethos-U NPU", ("ethosu",), "install libethosu_delegate.so from NXP's BSP"),
        DelegateFacts("teflon", "an NPU that Mesa drives", ("rocket",), "install Mesa's libteflon.so"),
        DelegateFacts("qnn", "a Qualcomm HTP", (), "install libQnnTFLiteDelegate.so of Qualcomm's SDK"),
        DelegateFacts("npu", "an NPU of LiteRT's compiled models", (), "install the vendor's LiteRT plug-in"),
    )
}


def explain_absence(required: str, board: BoardFacts) -> str:
    """Return why a variant that requires this delegate cannot run on the board, and what would help."""
    facts = DELEGATES.get(required)
    if facts is None:
        return f"it requires delegate {required!r}, which this agent does not know: update the agent"
    found = [name for name in board.accelerators if name in facts.accelerators]
    if found:
        return f"it requires {facts.what}; {', '.join(found)} is here, but this agent has no backend for {required} yet"
    seen = ", ".join(board.accelerators) or "none"
    return f"it requires {facts.what} and none was found here (accelerators found: {seen}): {facts.install}"
