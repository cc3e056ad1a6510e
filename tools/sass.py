"""Machine code as a graph: nvdisasm's listing of a kernel, its basic blocks, its loops, and what a way through them issues and moves.

What it takes for granted: warps stay converged (the edges of BRA.DIV are left out), a call returns and counts as one instruction, and of
two accesses under opposite predicates in one block the wider one is made. Ways through nested loops are the shortest ones that do what is
asked of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

LABEL = re.compile(r"^(\.L_\w+):")
FUNCTION = re.compile(r"^\.text\.(\S+):")
INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;?\s*(?:\(\*\"BRANCH_TARGETS (.*?)\"\*\).*)?$"
)
CLASSES = {
    "fma": r"FFMA|FMUL|FADD|HFMA2|HADD2|HMUL2|DFMA|DADD|DMUL|IMAD|HMMA|HGMMA",
    "mufu": r"MUFU|F2F\.|F2I|I2F|FRND",
    "memory": r"LD|ST|ATOM|RED|SHFL|UBLKCP|LDGSTS",
}


class RefusalError(Exception):
    """The code does not show what was asked of it."""


@dataclass
class Instruction:
    """One line of the listing."""

    predicate: str
    name: str
    operands: str
    targets: list[str]

    @property
    def kind(self) -> str:
        return next((kind for kind, names in CLASSES.items() if re.match(names, self.name)), "other")

    def bytes_moved(self) -> int:
        """Bytes that a thread moves to or from device memory, or 0."""
        if not re.match(r"(LDG|STG|LDGSTS)\b", self.name):
            return 0
        for part, size in ((".128", 16), (".64", 8), (".U8", 1), (".S8", 1), (".U16", 2), (".S16", 2)):
            if part in self.name:
                return size
        return 4


@dataclass
class Block:
    """Instructions that run one after the other, and the blocks that may follow."""

    code: list[Instruction] = field(default_factory=list)
    next: list[int] = field(default_factory=list)

    def bytes_moved(self) -> tuple[int, int]:
        """Bytes read and written by a thread that takes the wider of two accesses under opposite predicates."""
        moved = [0, 0]
        accesses = [i for i in self.code if i.bytes_moved() > 0]
        for one in accesses:
            opposite = one.predicate.removeprefix("!") if one.predicate.startswith("!") else "!" + one.predicate
            rivals = [i for i in accesses if one.predicate and i.predicate == opposite and i.name[:3] == one.name[:3]]
            if not any(i.bytes_moved() > one.bytes_moved() for i in rivals):
                moved[one.name.startswith("STG")] += one.bytes_moved()
        return moved[0], moved[1]


def functions(listing: str) -> dict[str, list[str]]:
    """The lines of every function, by its mangled name."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in listing.splitlines():
        if name := FUNCTION.match(line):
            lines = found.setdefault(name[1], [])
        elif line.startswith("//-----") or re.match(r"\s*\.section", line):
            lines = None
        elif lines is not None:
            lines.append(line)
    return found


def blocks_of(lines: list[str]) -> list[Block]:
    """The basic blocks of a function, the first one its entry."""
    blocks, labels, ends = [Block()], {}, [False]
    for line in lines:
        if label := LABEL.match(line):
            if blocks[-1].code:
                blocks.append(Block())
                ends.append(False)
            labels[label[1]] = len(blocks) - 1
        elif match := INSTRUCTION.match(line):
            _, predicate, name, operands, table = match.groups()
            targets = table.split(",") if table else re.findall(r"`\((\.L_\w+)\)", operands)
            one = Instruction(predicate or "", name, operands, [t.strip() for t in targets])
            blocks[-1].code.append(one)
            if re.match(r"BRA|BRX|JMP|JMX|EXIT|RET", name):
                # a uniform predicate may stand before the target: BRA UP0, `(.L_x_1)
                always = not predicate and not re.match(r"BRA\.DIV|BRA\.CONV", name) and not re.match(r"!?U?P\w+,", operands)
                ends[-1] = always
                blocks.append(Block())
                ends.append(False)
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            raise RefusalError(f"no instruction is known as {line.strip()!r}")
    for at, block in enumerate(blocks):
        last = block.code[-1] if block.code else None
        if last is not None and last.name.startswith(("BRA", "BRX", "JMP")) and not last.name.startswith("BRA.DIV"):
            missing = [t for t in last.targets if t not in labels]
            if missing or not last.targets:
                raise RefusalError(f"a branch to nowhere known: {last.name} {last.operands}")
            block.next += [labels[t] for t in last.targets]
        if not ends[at] and at + 1 < len(blocks):
            block.next.append(at + 1)
    return blocks


@dataclass
class Loop:
    """A natural loop: its head, the blocks in it, the blocks that jump back."""

    head: int
    body: set[int]
    latches: set[int]


def loops_of(blocks: list[Block]) -> list[Loop]:
    """Every loop, those with one head as one."""
    before: list[set[int]] = [set() for _ in blocks]
    for at, block in enumerate(blocks):
        for to in block.next:
            before[to].add(at)
    reached, waiting = {0}, [0]
    while waiting:
        for to in blocks[waiting.pop()].next:
            if to not in reached:
                reached.add(to)
                waiting.append(to)
    dominators = {at: {0} if at == 0 else set(reached) for at in reached}
    changed = True
    while changed:
        changed = False
        for at in sorted(reached - {0}):
            new = set.intersection(*(dominators[p] for p in before[at] if p in reached)) | {at}
            if new != dominators[at]:
                dominators[at], changed = new, True
    found: dict[int, Loop] = {}
    for at in sorted(reached):
        for head in blocks[at].next:
            if head not in dominators[at]:
                continue
            loop = found.setdefault(head, Loop(head, {head}, set()))
            loop.latches.add(at)
            stack = [at]
            while stack:
                one = stack.pop()
                if one not in loop.body:
                    loop.body.add(one)
                    stack += [p for p in before[one] if p in reached]
    return list(found.values())


def innermost(loops: list[Loop]) -> list[Loop]:
    return [loop for loop in loops if not any(other.head != loop.head and other.body < loop.body for other in loops)]


@dataclass(frozen=True)
class Way:
    """What one way round a loop issues, by class, and the bytes that a thread reads and writes on it."""

    counts: tuple[tuple[str, int], ...]
    read: int
    written: int

    @property
    def instructions(self) -> int:
        return sum(n for _, n in self.counts)

    def then(self, block: Block) -> Way:
        counts = Counter(dict(self.counts))
        counts.update(i.kind for i in block.code)
        read, written = block.bytes_moved()
        return Way(tuple(sorted(counts.items())), self.read + read, self.written + written)


def ways_round(blocks: list[Block], loop: Loop) -> list[Way]:
    """The ways from an innermost loop's head back to it; of those that move the same bytes the longest alone."""
    order: list[int] = []
    seen: set[int] = set()

    def visit(at: int) -> None:
        seen.add(at)
        for to in blocks[at].next:
            if to in loop.body and to != loop.head and to not in seen:
                visit(to)
        order.append(at)

    visit(loop.head)
    ways: dict[int, dict[tuple[int, int], Way]] = {loop.head: {(0, 0): Way((), 0, 0)}}
    done: dict[tuple[int, int], Way] = {}

    def keep(table: dict[tuple[int, int], Way], way: Way) -> None:
        key = way.read, way.written
        if key not in table or table[key].instructions < way.instructions:
            table[key] = way

    for at in reversed(order):
        for way in ways.get(at, {}).values():
            after = way.then(blocks[at])
            for to in blocks[at].next:
                if to == loop.head:
                    keep(done, after)
                elif to in loop.body:
                    keep(ways.setdefault(to, {}), after)
    return list(done.values())


def widest(blocks: list[Block], loop: Loop) -> int:
    """Bytes of the widest access to device memory in a loop."""
    return max((i.bytes_moved() for at in loop.body for i in blocks[at].code), default=0)


def hot_loop(blocks: list[Block], read: int, written: int, width: int = 16) -> tuple[Loop, Way]:
    """The one innermost loop, of those whose widest access is of `width` bytes, on a way round which a thread reads and writes so many."""
    found = []
    loops = [loop for loop in innermost(loops_of(blocks)) if widest(blocks, loop) == width]
    for loop in loops:
        found += [(loop, way) for way in ways_round(blocks, loop) if (way.read, way.written) == (read, written)]
    if len(found) != 1:
        seen = sorted({(w.read, w.written) for loop in loops for w in ways_round(blocks, loop)})
        raise RefusalError(f"{len(found)} innermost loops read {read} and write {written} bytes a thread; there are (read, written) {seen}")
    return found[0]


def around(blocks: list[Block], inner: Loop) -> int:
    """Instructions of the shortest way round the loop that holds `inner`, through it and without it."""
    outer = [loop for loop in loops_of(blocks) if loop.head != inner.head and inner.body < loop.body]
    if not outer:
        return 0
    row = min(outer, key=lambda loop: len(loop.body))
    # Dijkstra over (block, whether the inner loop has been passed); the inner loop is one node that costs nothing.
    best = {(row.head, False): 0}
    waiting = [(0, row.head, False)]
    lengths = []
    while waiting:
        waiting.sort(reverse=True)
        cost, at, passed = waiting.pop()
        if best.get((at, passed), -1) != cost:
            continue
        if at == inner.head:
            exits, cost_after, passed_after = {t for b in inner.body for t in blocks[b].next} - inner.body, cost, True
        else:
            exits, cost_after, passed_after = set(blocks[at].next), cost + len(blocks[at].code), passed
        for to in exits:
            if to == row.head:
                if passed_after:
                    lengths.append(cost_after)
            elif to in row.body and cost_after < best.get((to, passed_after), 1 << 30):
                best[(to, passed_after)] = cost_after
                waiting.append((cost_after, to, passed_after))
    if not lengths:
        raise RefusalError("no way round the loop over rows leads through the hot loop")
    return min(lengths)


def working_loop(blocks: list[Block], name: str, count: int, accesses: int | None = None) -> tuple[Loop, Way]:
    """The one innermost loop with a way round that issues `name` (FFMA, HMMA) `count` times and moves nothing; of its ways the
    shortest. Where several do, it is the one of so many `accesses` to shared memory."""
    found = []
    for loop in innermost(loops_of(blocks)):
        if widest(blocks, loop) == 0:
            ways = _shortest(blocks, loop, [], lambda i: i.name.split(".")[0] == name, count)
            if count in ways and accesses in (None, dict(ways[count].counts).get("memory", 0)):
                found.append((loop, ways[count]))
    if len(found) != 1:
        beside = "" if accesses is None else f" beside {accesses} accesses to shared memory"
        raise RefusalError(f"{len(found)} innermost loops without access to device memory issue {name} {count} times{beside}")
    return found[0]


def ways_through(blocks: list[Block], inner: Loop, read: int, written: int, exponentials: int) -> Way:
    """The shortest way round the loop that holds `inner` and through it, of those that read and write so many bytes and take so many
    exponentials; loops on the way, `inner` among them, count for nothing."""
    outer = [loop for loop in loops_of(blocks) if loop.head != inner.head and inner.body < loop.body]
    if not outer:
        raise RefusalError("no loop holds the innermost one")
    loop = min(outer, key=lambda one: len(one.body))
    found = _shortest(blocks, loop, [inner], lambda i: i.name.startswith("MUFU.EX2"), exponentials, (read, written))
    if exponentials not in found:
        raise RefusalError(f"no way through the innermost loop reads {read} bytes, writes {written} and takes {exponentials} exponentials")
    return found[exponentials]


def filling(blocks: list[Block], inner: Loop, read: int) -> Way:
    """The shortest way round the one other loop beside `inner`, in the loop that holds it, that reads so many bytes; loops on the way count
    for nothing."""
    loops = loops_of(blocks)
    outer = min((loop for loop in loops if loop.head != inner.head and inner.body < loop.body), key=lambda one: len(one.body), default=None)
    beside = [one for one in loops if outer is not None and one.body < outer.body and not one.body & inner.body]
    ways = [found[0] for one in beside if 0 in (found := _shortest(blocks, one, [], lambda i: False, 0, (read, 0)))]
    if len(ways) != 1:
        raise RefusalError(f"{len(ways)} loops beside the innermost one read {read} bytes")
    return ways[0]


def staged(blocks: list[Block], read: int, written: int) -> tuple[list[Way], Way]:
    """The longest way round each innermost loop of the one loop that holds them all, in their order, and the shortest way round that loop
    through all of them which beside them reads and writes so many bytes."""
    loops = loops_of(blocks)
    inner = sorted(innermost(loops), key=lambda loop: loop.head)
    outer = [loop for loop in loops if all(one.head != loop.head and one.body < loop.body for one in inner)]
    if len(outer) != 1 or len(loops) != len(inner) + 1:
        raise RefusalError(f"{len(loops)} loops, of which {len(outer)} hold the {len(inner)} innermost ones: expected one")
    found = _shortest(blocks, outer[0], inner, lambda i: False, 0, (read, written))
    if 0 not in found:
        raise RefusalError(f"no way round through {len(inner)} innermost loops reads {read} bytes and writes {written} beside them")
    return [max(ways_round(blocks, loop), key=lambda way: way.instructions) for loop in inner], found[0]


def pieced(blocks: list[Block], passed: tuple[tuple[int, int, int], ...], read: int, written: int) -> tuple[list[Way], Way]:
    """Of the one loop that holds all innermost ones: of those that `passed` names by their place in the code the longest way round that
    reads and writes so many bytes, and the shortest way round the loop through these, which beside them reads and writes so many."""
    loops = loops_of(blocks)
    inner = sorted(innermost(loops), key=lambda loop: loop.head)
    outer = [loop for loop in loops if all(one.head != loop.head and one.body < loop.body for one in inner)]
    if len(outer) != 1 or len(loops) != len(inner) + 1 or max(place for place, _, _ in passed) >= len(inner):
        raise RefusalError(f"{len(loops)} loops, of which {len(outer)} hold the {len(inner)} innermost ones: expected one")
    found = []
    for place, in_read, in_written in passed:
        ways = [way for way in ways_round(blocks, inner[place]) if (way.read, way.written) == (in_read, in_written)]
        if not ways:
            seen = sorted({(way.read, way.written) for way in ways_round(blocks, inner[place])})
            raise RefusalError(f"innermost loop {place} reads {in_read} and writes {in_written} on no way round; there are {seen}")
        found.append(max(ways, key=lambda way: way.instructions))
    around = _shortest(blocks, outer[0], [inner[place] for place, _, _ in passed], lambda i: False, 0, (read, written))
    if 0 not in around:
        raise RefusalError(f"no way round through {len(passed)} innermost loops reads {read} bytes and writes {written} beside them")
    return found, around[0]


def cells(blocks: list[Block], read: int, written: int) -> tuple[Way, Way, list[tuple[Way, bool]], int]:
    """Of the smallest loop with loops inside on a way round which a thread reads and writes so many bytes: the way of a thread that goes
    through none of those, the way of one that goes through all, the way round each of them and whether it is one of shuffles, in their
    order, and what the loop that holds it adds. Of the ways that move these bytes they are the shortest among those with the most
    multifunction instructions: both sides of a branch that a term takes for some values and not for others."""
    loops = loops_of(blocks)

    def heaviest(loop: Loop, through: list[Loop]) -> Way | None:
        found = _shortest(blocks, loop, through, lambda i: i.name.startswith("MUFU"), 1 << 30, (read, written))
        return found[max(found)] if found else None

    holding = [loop for loop in loops if any(one.body < loop.body for one in loops)]
    for loop in sorted(holding, key=lambda one: len(one.body)):
        inner = sorted((one for one in innermost(loops) if one.body < loop.body), key=lambda one: one.head)
        alone, whole = heaviest(loop, []), heaviest(loop, inner)
        if alone is not None and whole is not None:
            ways = [max(ways_round(blocks, one), key=lambda way: way.instructions) for one in inner]
            shuffles = [any(i.name.startswith("SHFL") for at in one.body for i in blocks[at].code) for one in inner]
            return alone, whole, list(zip(ways, shuffles, strict=True)), around(blocks, loop)
    raise RefusalError(f"no loop that holds others reads {read} bytes and writes {written}")


def _shortest(
    blocks: list[Block], loop: Loop, through: list[Loop], counted: Callable[[Instruction], bool], most: int, moved: tuple[int, int] = (0, 0)
) -> dict[int, Way]:
    """By how many instructions are `counted`, at most `most`: the shortest way round a loop that moves exactly these bytes and passes the
    loops of `through`. A loop inside is one step that issues nothing."""
    inside = [one for one in loops_of(blocks) if one.body < loop.body]
    top = [one for one in inside if not any(one.body < other.body for other in inside)]
    step_of = {at: one for one in top for at in one.body}
    wanted = frozenset(one.head for one in through)

    def after(at: int) -> set[int]:
        if at in step_of:
            return {to for b in step_of[at].body for to in blocks[b].next} - step_of[at].body
        return set(blocks[at].next)

    order: list[int] = []
    seen: set[int] = set()
    stack = [(loop.head, False)]
    while stack:
        at, left = stack.pop()
        if left:
            order.append(at)
        elif at not in seen:
            seen.add(at)
            stack.append((at, True))
            stack += [(to, False) for to in after(at) if to in loop.body and to != loop.head and to not in seen]
    ways: dict[int, dict[tuple[int, int, int, frozenset[int]], Way]] = {loop.head: {(0, 0, 0, frozenset()): Way((), 0, 0)}}
    done: dict[tuple[int, int, int, frozenset[int]], Way] = {}
    for at in reversed(order):
        for (_, _, count, passed), way in ways.pop(at, {}).items():
            way_after = way if at in step_of else way.then(blocks[at])
            count_after = count if at in step_of else count + sum(counted(i) for i in blocks[at].code)
            key = way_after.read, way_after.written, count_after, passed | (wanted & {at})
            if key[0] > moved[0] or key[1] > moved[1] or key[2] > most:
                continue
            for to in after(at):
                if to != loop.head and to not in loop.body:
                    continue
                table = done if to == loop.head else ways.setdefault(to, {})
                if key not in table or table[key].instructions > way_after.instructions:
                    table[key] = way_after
    return {count: way for (read, written, count, passed), way in done.items() if (read, written) == moved and passed == wanted}
