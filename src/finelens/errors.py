"""Errors that a user can cause, and the end that a user can ask for. The command prints an error's message on one line and exits with code 2."""

from __future__ import annotations

import re

# Arguments of the public functions by the option of the command that says the same, where the name is another or the option has no value.
_NAMES = {
    "in": "in_file",
    "set": "options",
    "extra-encoder": "extra_encoders",
    "ask": "n",
    **{flag: f"{flag.replace('-', '_')}=True" for flag in ("overwrite", "strict", "csv-bom", "patches", "resize", "unknown", "none-apart")},
}
# Where it is the same with underscores.
_SAME = """
at-least backbone box-confidence calibrate calibrate-photos captions classes coverage crops csv descriptions device extra extra-names
group-by groups hints host how labels logit-scale method minutes out package photos port project prototypes rank-floor row-names shard
stage test tile-floor tiles to token-file weights
"""
ARGUMENTS = {flag: f"{flag.replace('-', '_')}=..." for flag in _SAME.split()}
ARGUMENTS |= {flag: text if "=" in text else f"{text}=..." for flag, text in _NAMES.items()}
_OPTION = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)(?: ([a-z]+)\.([a-z_]+))?")


class UserError(Exception):
    """Input, option or file that cannot be used; the message names it and the remedy, on one line whatever it quotes.

    Messages speak of the options of the command. As a text the error also names the arguments that say the same in Python.

    Attributes:
        message: What the command prints.
    """

    def __init__(self, message: str) -> None:
        self.message = " ".join(line.strip() for line in message.splitlines())
        super().__init__(self.message)

    def __str__(self) -> str:
        named = list(dict.fromkeys(argument for match in _OPTION.finditer(self.message) if (argument := _argument(*match.groups()))))
        return f"{self.message} (from Python: {', '.join(named)})" if named else self.message

    def __format__(self, spec: str) -> str:
        """Without the arguments, for a message that quotes this one."""
        return format(self.message, spec)


def _argument(flag: str, section: str | None, key: str | None) -> str | None:
    if flag == "set" and section is not None:
        return f"options={{{section!r}: {{{key!r}: ...}}}}"
    return ARGUMENTS.get(flag)


class Interrupted(Exception):
    """Training was asked to stop; the state is saved."""
