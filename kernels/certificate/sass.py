"""Machine code as `nvdisasm` prints it: instructions, loops, and what a loop does in a turn."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PRODUCT = re.compile(r"(HGMMA|HMMA|UTCHMMA)")
LOAD = re.compile(r"(LDG|LDGSTS)\b")
SPECIAL = r"MUFU|F2F\b|F2I|I2F|FRND"  # a quarter of a warp's lanes, or fewer: exponentials, and conversions of single numbers
WIDTH = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # bytes a thread; 4 where nothing is said
RARE = 32  # a forward branch over so many instructions steps over what few turns need: a mask in the last tile, a target


@dataclass(frozen=True)
class Instruction:
    address: int
    op: str
    """With its modifiers: `HGMMA.64x256x16.F32.BF16`."""
    text: str


@dataclass(frozen=True)
class Loop:
    body: tuple[Instruction, ...]

    def holds(self, other: Loop) -> bool:
        return set(other.body) < set(self.body)

    def count(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, i.op)) for i in self.body)

    def moved(self, pattern: str) -> int:
        """Bytes that one thread moves by instructions of this pattern."""
        return sum(width(i.op) for i in self.body if re.match(pattern, i.op))

    @property
    def products(self) -> int:
        """Multiply-accumulates by one warp (of a group of four, where the instruction is the group's)."""
        total = 0
        for i in self.body:
            if found := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", i.op):
                total += int(found[1]) * int(found[2]) * int(found[3]) // 4
            elif found := re.match(r"HMMA\.(\d{3,})", i.op):  # 1688: 16 × 8 × 8, 16816: 16 × 8 × 16
                total += 16 * 8 * int(found[1][3:])
        return total

    @property
    def waits_for_all(self) -> bool:
        """Its products are waited for before the turn ends: nothing of the same warps runs beside them."""
        return any(re.match(r"WARPGROUP\.DEPBAR", i.op) and "0x0" in i.text for i in self.body)

    @property
    def early_releases(self) -> int:
        """Barriers arrived at (shared memory given back to the loader) while products that read it may still run."""
        pending, early = False, 0
        for i in self.body:
            if i.op.startswith("HGMMA"):
                pending = True
            elif i.op.startswith("WARPGROUP.DEPBAR") and "0x0" in i.text:
                pending = False
            elif i.op.startswith("SYNCS.ARRIVE") and pending:
                early += 1
        return early


def width(op: str) -> int:
    return next((WIDTH[part] for part in op.split(".") if part in WIDTH), 4)


def parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """Instructions in order, and the address of each label, of `nvdisasm -c` of one kernel."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x?_?\w+):", line):
            waiting.append(label[1])
        elif found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([^\s;]+)([^;]*);", line):
            code.append(Instruction(int(found[1], 16), found[2], found[0]))
            labels |= dict.fromkeys(waiting, code[-1].address)
            waiting = []
    return code, labels


def branches(code: Iterable[Instruction], labels: dict[str, int]) -> list[tuple[int, int]]:
    """(from, to) of each; not of those that only a warp whose threads have parted takes."""
    found = ((i.address, re.search(r"`\((\.L_\w+)\)", i.text)) for i in code if i.op.startswith("BRA") and ".DIV" not in i.op)
    return [(address, labels[label[1]]) for address, label in found if label and label[1] in labels]


def loops(code: list[Instruction], labels: dict[str, int]) -> list[Loop]:
    """Natural loops: those of a branch back to what every way to it leads through. Without what lies out of line behind the branch: waits
    that are spun, threads that have parted."""
    jumps = branches(code, labels)
    place = {i.address: n for n, i in enumerate(code)}
    starts = sorted(
        {0, *(place[to] for _, to in jumps), *(place[at] + 1 for at, _ in jumps), *(n + 1 for n, i in enumerate(code) if ends(i))}
    )
    blocks = [(start, end) for start, end in zip(starts, [*starts[1:], len(code)], strict=True) if start < end]
    number = {start: n for n, (start, _) in enumerate(blocks)}
    target = dict(jumps)
    ways: list[set[int]] = []
    for n, (_, end) in enumerate(blocks):
        last = code[end - 1]
        after = {number[place[target[last.address]]]} if last.address in target else set()
        ways.append(after | ({n + 1} if n + 1 < len(blocks) and not ends(last) else set()))
    over = dominators(ways)
    latches: dict[int, set[int]] = {}
    for n, after in enumerate(ways):
        for header in after & over.get(n, set()):
            latches.setdefault(header, set()).add(n)
    back = [{n for n, after in enumerate(ways) if m in after and n in over} for m in range(len(ways))]
    found = []
    for header, sources in latches.items():
        inside, waiting = {header}, list(sources)
        while waiting:
            n = waiting.pop()
            if n not in inside:
                inside.add(n)
                waiting += back[n]
        found.append(Loop(tuple(i for n in sorted(inside) if n <= max(sources) for i in code[slice(*blocks[n])])))
    return sorted(found, key=lambda loop: loop.body[0].address)


def ends(i: Instruction) -> bool:
    """Nothing falls through it: EXIT, RET, branches that are always taken. A predicate stands before it or, uniform, among its operands."""
    return re.match(r"(EXIT|RET|BRX|JMX|BRA)\b(?!\.DIV)", i.op) is not None and not re.search(r"@|BRA\S*\s+!?UP\d", i.text)


def dominators(ways: list[set[int]]) -> dict[int, set[int]]:
    """Of each block that can be reached from the first: the blocks that every way to it leads through, itself among them."""
    seen, waiting = {0}, [0]
    while waiting:
        fresh = ways[waiting.pop()] - seen
        seen |= fresh
        waiting += fresh
    over = {n: {0} if n == 0 else set(seen) for n in sorted(seen)}
    changed = True
    while changed:
        changed = False
        for n in over:
            before = [over[m] for m in over if n in ways[m]]
            now = {n} | (set.intersection(*before) if n and before else set())
            changed, over[n] = changed or now != over[n], now
    return over


def innermost(all_loops: list[Loop], wanted: Callable[[Loop], bool]) -> list[Loop]:
    kept = [loop for loop in all_loops if wanted(loop)]
    return [loop for loop in kept if not any(loop.holds(other) for other in kept)]


def rarely_run(code: Iterable[Instruction], labels: dict[str, int]) -> set[int]:
    """Addresses of long stretches without products that a forward branch steps over."""
    code, out = list(code), set()
    for at, to in branches(code, labels):
        skipped = [i for i in code if at < i.address < to]
        if len(skipped) >= RARE and not any(PRODUCT.match(i.op) for i in skipped):
            out |= {i.address for i in skipped}
    return out
