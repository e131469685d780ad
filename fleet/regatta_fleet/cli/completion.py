"""`regatta completion`: the script that teaches a shell to complete regatta's commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from regatta_fleet.cli.connection import examples

__all__ = ["completion"]

_SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog=examples(
        'eval "$(regatta completion bash)"',
        "regatta completion zsh > ~/.zfunc/_regatta",
        "regatta completion fish > ~/.config/fish/completions/regatta.fish",
    )
)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the shell's completion script."""
    kind = get_completion_class(shell)
    assert kind is not None
    root = ctx.find_root()
    click.echo(kind(root.command, {}, "regatta", "_REGATTA_COMPLETE").source())
