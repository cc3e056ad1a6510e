"""Is anything slower than in an earlier result? Held against yardsticks of the same run, and measured again before it is said.

A machine that is busy makes everything slower. So a case's time is compared three ways: as it is, as a multiple of the copy or multiply-add
limit of the same rounds, and as a multiple of eager PyTorch (or another peer) in the same rounds; it is suspect if it is above the
tolerance in all three, and even the fast fifth of its calls is slower than the earlier median. The same is asked of the fastest calls (the
5 % quantile), which see a slower kernel through a load that drowns the medians. A suspect is measured again, up to five times; it is slower
only if it was so every time. The price: what is slower is not seen where the earlier result was taken on a machine busier than now, so
take that one in quiet.

Another machine's time says nothing about this one. Against a result of another machine only the two yardsticks count, each of its own run:
what share of its limit the case reached there and reaches here, and how many times as fast as a peer it was and is. A case without either
is not compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vae_fast.bench import report
from vae_fast.bench.options import Options, Row
from vae_fast.bench.suites import run
from vae_fast.errors import RunError

PEERS = ("eager", "scikit-learn", "compile", "distributions")
CHEAP = ("ours", "eager", "scikit-learn")  # what a comparison measures: compiling would take longer than all of it
ATTEMPTS = 5
PAUSE = 1.0  # seconds before a suspect is measured again: what disturbed it may have passed
_SLACK = 64 << 10  # bytes


@dataclass(frozen=True)
class Change:
    """A case that differs: by how much (0.2 is 20 % more), beyond what the load accounts for, in time or memory."""

    case: str
    what: str
    before: float
    now: float
    by: float

    def __str__(self) -> str:
        """In a line."""
        unit = (2**-20, "MiB") if self.what == "memory" else (1e3, "ms")
        text = f"{self.before * unit[0]:.4g} -> {self.now * unit[0]:.4g} {unit[1]}"
        return f"{self.case}: {self.what} {self.by:+.0%} ({text})"


def _by_case(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["direction"] == "both":
            found.setdefault(row["case"], {})[row["contender"]] = row
    return found


def _limit(before: dict[str, Row], now: dict[str, Row], key: str = "usual_limit_seconds") -> float | None:
    """The limit at the machine's usual (or best) speed in those rounds, now over before, if both results have the same kind."""
    old, new = before["ours"], now["ours"]
    then, today = old.get(key), new.get(key)
    return float(today / then) if then and today and old["limit"] == new["limit"] else None


def _peer(before: dict[str, Row], now: dict[str, Row], key: str = "seconds") -> float | None:
    """The time of a peer, now over before, of the first that both results have."""
    for peer in PEERS:
        if peer in before and peer in now and before[peer].get(key) and now[peer].get(key):
            return float(now[peer][key] / before[peer][key])
    return None


def _divisor(before: dict[str, Row], now: dict[str, Row], key: str, elsewhere: bool) -> float | None:
    """What the load of the machine, or the other machine, accounts for, of the medians or of the fastest calls; None: nothing tells."""
    limit = _limit(before, now, "limit_seconds" if key == "fastest" else "usual_limit_seconds")
    yardsticks = [y for y in (limit, _peer(before, now, key), None if elsewhere else 1.0) if y is not None]
    return max(yardsticks, default=None)


def table(before: Sequence[Row], now: Sequence[Row]) -> list[list[str]]:
    """What changed, case by case: the time as it is, and against each yardstick.

    Example:
        >>> row = {"case": "a", "contender": "ours", "direction": "both", "seconds": 1.0}
        >>> table([row], [row | {"seconds": 1.5}])[1]
        ['a', '1.0 s', '1.5 s', '+50%', '', '']
    """
    old, new = _by_case(before), _by_case(now)
    cells = [["case", "before", "now", "as it is", "against the limit", "against a peer"]]
    for case in common(before, now):
        a, b = old[case]["ours"]["seconds"], new[case]["ours"]["seconds"]
        if a and b:
            limit, peer = _limit(old[case], new[case]), _peer(old[case], new[case])
            by = [f"{b / a / y - 1.0:+.0%}" if y else "" for y in (1.0, limit, peer)]
            cells.append([case, report.seconds(a), report.seconds(b), *by])
    return cells


def changes(before: Sequence[Row], now: Sequence[Row], tolerance: float, *, elsewhere: bool = False) -> list[Change]:
    """The cases of both results that are slower, or take more memory, by more than the tolerance.

    Args:
        before: rows of the earlier result.
        now: rows of this one.
        tolerance: as a share: 0.05 for 5 %.
        elsewhere: the earlier result is of another machine: its times count only as shares of its limits and against its peers.

    Example:
        >>> row = {"case": "a", "contender": "ours", "direction": "both", "seconds": 1.0, "q20": 1.0, "peak_bytes": None}
        >>> [str(c) for c in changes([row], [row | {"seconds": 1.2, "q20": 1.2}], 0.05)]
        ['a: time +20% (1000 -> 1200 ms)']
        >>> changes([row], [row], 0.05)
        []
    """
    old, new = _by_case(before), _by_case(now)
    found = []
    for case in old:
        if "ours" not in old[case] or "ours" not in new.get(case, {}):
            continue
        a, b = old[case]["ours"], new[case]["ours"]
        words = " by this machine's measure" * elsewhere
        divisor = _divisor(old[case], new[case], "seconds", elsewhere)
        if a["seconds"] and b["seconds"] and divisor is not None:
            by, fast = (b[key] / a["seconds"] / divisor - 1.0 for key in ("seconds", "q20"))
            worst = Change(case, f"time{words}", a["seconds"], b["seconds"], by if fast > 0.0 else 0.0)
            divisor = _divisor(old[case], new[case], "fastest", elsewhere)
            if a.get("fastest") and b.get("fastest") and divisor is not None:
                by = b["fastest"] / a["fastest"] / divisor - 1.0
                fastest = Change(case, f"time of the fastest calls{words}", a["fastest"], b["fastest"], by)
                worst = max(worst, fastest, key=lambda c: c.by)
            if worst.by > tolerance:
                found.append(worst)
        if a["peak_bytes"] and b["peak_bytes"] and b["peak_bytes"] > a["peak_bytes"] * (1.0 + tolerance) + _SLACK:
            by = b["peak_bytes"] / a["peak_bytes"] - 1.0
            found.append(Change(case, "memory", a["peak_bytes"], b["peak_bytes"], by))
    return found


def without_yardstick(before: Sequence[Row], now: Sequence[Row]) -> list[str]:
    """The cases of both results whose times have neither a limit nor a peer in common: another machine's cannot be held against them.

    Example:
        >>> row = {"case": "a", "contender": "ours", "direction": "both", "seconds": 1.0, "limit": ""}
        >>> without_yardstick([row], [row]), without_yardstick([row], [row | {"seconds": None}])
        (['a'], [])
    """
    old, new = _by_case(before), _by_case(now)
    timed = [c for c in common(before, now) if old[c]["ours"]["seconds"] and new[c]["ours"]["seconds"]]
    return [c for c in timed if _divisor(old[c], new[c], "seconds", True) is None]


def common(before: Sequence[Row], now: Sequence[Row]) -> list[str]:
    """The cases of ours that both results hold.

    Example:
        >>> row = {"case": "a", "contender": "ours", "direction": "both"}
        >>> common([row], [row, row | {"case": "b"}])
        ['a']
    """
    new = _by_case(now)
    return [case for case, group in _by_case(before).items() if "ours" in group and "ours" in new.get(case, {})]


def options_of(result: dict[str, Any], options: Options) -> Options:
    """Those that measure the cases of a result again: its own, and only what a comparison needs."""
    own = result["options"]
    return replace(
        options,
        quick=bool(own.get("quick", options.quick)),
        shapes=[(int(a), int(b), int(c)) for a, b, c in own.get("shapes", options.shapes)],
        dtype=own.get("dtype", options.dtype),
        contenders=options.contenders or CHEAP,
    )


def check(
    result: dict[str, Any],
    options: Options,
    tolerance: float,
    *,
    elsewhere: bool = False,
    measured: Sequence[Row] | None = None,
    again: Callable[[Sequence[str]], Sequence[Row]] | None = None,
) -> tuple[list[Row], list[Change]]:
    """Measure what an earlier result holds, and find what is slower.

    Args:
        result: what :func:`vae_fast.bench.report.read` gave.
        options: how to measure, see :func:`options_of`.
        tolerance: as a share.
        elsewhere: the earlier result is of another machine, see :func:`changes`.
        measured: rows to compare in place of measuring.
        again: measures suspects again; None is to run their suite.

    Returns:
        The rows that were compared, and what is slower.

    Raises:
        RunError: if the two have no case in common.
    """
    before: list[Row] = result["rows"]
    rows = list(run(result["suite"], options) if measured is None else measured)
    if not common(before, rows):
        raise RunError(f"nothing to compare: no case of the earlier result (suite {result['suite']}) was measured")
    missing = [case for case, group in _by_case(before).items() if "ours" in group and case not in common(before, rows)]
    for case in missing:
        options.say(f"not compared: {case} was not measured")
    for case in without_yardstick(before, rows) if elsewhere else ():
        options.say(f"time not compared: {case} has neither a limit nor a peer in both results, and they are of two machines")
    found = changes(before, rows, tolerance, elsewhere=elsewhere)
    if measured is not None and again is None:
        return rows, found
    measure_again = again or (lambda cases: run(result["suite"], options, only=cases))
    for attempt in range(2, ATTEMPTS + 1):
        suspects = [c for c in found if c.what != "memory"]
        if not suspects:
            break
        options.say(f"measuring again ({attempt} of {ATTEMPTS}): {', '.join(c.case for c in suspects)}")
        time.sleep(PAUSE)
        repeated = changes(before, measure_again([c.case for c in suspects]), tolerance, elsewhere=elsewhere)
        still = {c.case: c for c in repeated if c.what != "memory"}
        least = {c.case: min(c, still[c.case], key=lambda x: x.by) for c in suspects if c.case in still}
        found = [c for c in found if c.what == "memory"] + list(least.values())
    return rows, found
