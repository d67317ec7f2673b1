"""Floors of rooms, and the circles among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scripts.structure.package import Arrow, Room

# Circles of rooms are few and small; beyond this many steps the best answer so far is taken.
SEARCH_LIMIT = 20_000


def targets(arrows: Iterable[Arrow]) -> dict[Room, list[Room]]:
    """The rooms that a room imports, sorted."""
    found: dict[Room, list[Room]] = {}
    for start, end in sorted(arrows):
        found.setdefault(start, []).append(end)
    return found


def circles(arrows: Iterable[Arrow]) -> list[list[Room]]:
    """Groups of rooms each of which reaches each other."""
    adjacent = targets(arrows)
    reached: dict[Room, set[Room]] = {}
    for start in adjacent:
        seen: set[Room] = set()
        waiting = list(adjacent[start])
        while waiting:
            room = waiting.pop()
            if room not in seen:
                seen.add(room)
                waiting += adjacent.get(room, ())
        reached[start] = seen
    groups = {tuple(sorted(b for b in reached[a] if a in reached.get(b, ()))) for a in reached if a in reached[a]}
    return [list(group) for group in sorted(groups)]


def shortest_circle(arrows: Iterable[Arrow]) -> list[Arrow]:
    """The arrows of a shortest circle; none where there is no circle."""
    adjacent = targets(arrows)
    best: list[Room] = []
    for start in adjacent:
        before: dict[Room, Room | None] = {start: None}
        waiting = [start]
        for room in waiting:
            if start in adjacent.get(room, ()):
                path = [room]
                while (previous := before[path[-1]]) is not None:
                    path.append(previous)
                if not best or len(path) < len(best):
                    best = path[::-1]
                break
            for following in adjacent.get(room, ()):
                if following not in before:
                    before[following] = room
                    waiting.append(following)
    return list(zip(best, best[1:] + best[:1], strict=True))


class SetAside:
    """The lightest arrows without which no circle is left, by branch and bound.

    Args:
        weights: Number of imports by arrow.

    Attributes:
        best: The arrows.
    """

    def __init__(self, weights: Mapping[Arrow, int]) -> None:
        self._weights = weights
        self._cost = sum(weights.values()) + 1
        self._steps = 0
        self.best: frozenset[Arrow] = frozenset()
        self._search(frozenset(), 0, frozenset())

    def _search(self, removed: frozenset[Arrow], cost: int, kept: frozenset[Arrow]) -> None:
        self._steps += 1
        circle = shortest_circle(self._weights.keys() - removed)
        if not circle:
            if cost < self._cost:
                self._cost, self.best = cost, removed
            return
        if cost + self._at_least(removed, kept) >= self._cost or (self._steps > SEARCH_LIMIT and self.best):
            return
        for arrow in sorted(set(circle) - kept, key=lambda arrow: (self._weights[arrow], arrow)):
            self._search(removed | {arrow}, cost + self._weights[arrow], kept)
            kept |= {arrow}

    def _at_least(self, removed: frozenset[Arrow], kept: frozenset[Arrow]) -> int:
        """What is still to be set aside costs at least this: circles that share no import."""
        left = {arrow: weight for arrow, weight in self._weights.items() if arrow not in removed}
        total = 0
        while circle := shortest_circle(left):
            free = [arrow for arrow in circle if arrow not in kept]
            if not free:
                return self._cost
            least = min(left[arrow] for arrow in free)
            total += least
            for arrow in free:
                left[arrow] -= least
                if not left[arrow]:
                    del left[arrow]
        return total


def floors(rooms: Iterable[Room], arrows: Mapping[Arrow, int]) -> dict[Room, int]:
    """The floor of each room; see the top of this file."""
    adjacent = targets(arrows.keys() - SetAside(arrows).best)
    found: dict[Room, int] = {}

    def floor(room: Room) -> int:
        if room not in found:
            found[room] = 1 + max((floor(lower) for lower in adjacent.get(room, ())), default=0)
        return found[room]

    return {room: floor(room) for room in rooms}
