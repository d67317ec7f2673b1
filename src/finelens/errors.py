"""Errors that a user can cause, and the end that a user can ask for. The command prints an error's message on one line and exits with code 2."""

from __future__ import annotations


class UserError(Exception):
    """Input, option or file that cannot be used; the message names it and the remedy, on one line whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class Interrupted(Exception):
    """Training was asked to stop; the state is saved."""
