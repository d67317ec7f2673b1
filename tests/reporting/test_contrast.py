"""Colours of the pages, in light and dark: contrast by WCAG 2.2, computed from their style sheets."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

STYLE = files("finelens.reporting").joinpath("style.css").read_text("utf-8")
BOARD = files("finelens.bench.tables").joinpath("leaderboard.html").read_text("utf-8")
MAP = files("finelens.reporting").joinpath("map.js").read_text("utf-8")
# Text on its ground; 4.5 : 1 (1.4.3).
TEXT = [(ink, ground) for ink in ("ink", "quiet", "accent", "good", "bad", "mid") for ground in ("paper", "card")]
TEXT += [("good", "good-soft"), ("bad", "bad-soft"), ("mid", "mid-soft"), ("ink", "mid-soft"), ("ink", "accent-soft")]
# Bars, lines, dots and the edges of fields; 3 : 1 (1.4.11).
SHAPES = [(shape, ground) for shape in ("accent", "second", "quiet") for ground in ("paper", "card")]
ON_BOARD = [(ink, ground) for ink in ("text", "soft", "up", "down", "mark") for ground in ("back", "band")]


def palette(style: str, *, dark: bool) -> dict[str, str]:
    """Colours by name; those that the dark part leaves out are the light ones."""
    light, own = (dict(re.findall(r"--([\w-]+):\s*(#\w+)", block)) for block in re.findall(r":root\s*{(.*?)}", style, re.S)[:2])
    return light | own if dark else light


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted(map(luminance, (a, b)))
    return (high + 0.05) / (low + 0.05)


def test_the_formula():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("style", "pairs", "least"), [(STYLE, TEXT, 4.5), (STYLE, SHAPES, 3.0), (BOARD, ON_BOARD, 4.5)])
def test_colours_can_be_told_from_their_ground(style, pairs, least, dark):
    colours = palette(style, dark=dark)
    assert {(a, b): round(found, 2) for a, b in pairs if (found := contrast(colours[a], colours[b])) < least} == {}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_dots_of_the_map_can_be_told_from_their_ground(dark):
    """Both colourings whose colours mean something; of one pair of a condition the first is the dark one."""
    tones = [colour for line in MAP.splitlines() if "colour.value ===" in line and "#" in line for colour in re.findall(r"#[0-9a-f]{6}", line)]
    pairs = {(a, b) for a, b in re.findall(r'dark\.matches \? "(#\w+)" : "(#\w+)"', MAP)}
    left = {light if dark else night for night, light in pairs}
    ground = palette(STYLE, dark=dark)["card"]
    assert {tone: round(contrast(tone, ground), 2) for tone in set(tones) - left if contrast(tone, ground) < 3} == {}


@pytest.mark.parametrize("style", [STYLE, BOARD], ids=["report", "board"])
def test_a_dark_screen_prints_on_light_paper(style):
    assert re.findall(r"@media ([^{]*prefers-color-scheme: dark[^{]*?)\s*{", style) == ["screen and (prefers-color-scheme: dark)"]
