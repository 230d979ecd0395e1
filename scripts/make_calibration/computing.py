"""Worked problems of computing: traced programs (really run), queries (really executed), bits, costs, schedules."""

# ruff: noqa: E501, RUF001 (sentences and tables, one per line)

from __future__ import annotations

import heapq
import itertools
import math
import random
import re
import sqlite3
from typing import Any

from make_calibration.reasoning import MATHEMATICS, Problem

_PROGRAMS = (
    ("def f(xs):\n    total, best = 0, xs[0]\n    for x in xs:\n        total = max(x, total + x)\n        best = max(best, total)\n    return best", "total", "best"),
    ("def f(xs):\n    seen, out = set(), []\n    for x in xs:\n        if x not in seen:\n            out.append(x)\n        seen.add(x)\n    return out", "x", "out"),
    ("def f(xs):\n    a, b = 0, 0\n    for x in xs:\n        a, b = b, max(b, a + x)\n    return b", "a", "b"),
    ("def f(xs):\n    stack = []\n    for x in xs:\n        while stack and stack[-1] > x:\n            stack.pop()\n        stack.append(x)\n    return stack", "x", "stack"),
    ("def f(xs):\n    h = 7\n    for x in xs:\n        h = (h * 31 + x) % 1000\n    return h", "x", "h"),
    ("def f(xs):\n    runs, last = 0, None\n    for x in xs:\n        if x != last:\n            runs += 1\n        last = x\n    return runs", "last", "runs"),
    ("def f(xs):\n    low, profit = xs[0], 0\n    for x in xs:\n        low = min(low, x)\n        profit = max(profit, x - low)\n    return profit", "low", "profit"),
)  # fmt: skip


def trace(r: random.Random) -> Problem:
    """Run a small program by hand; the states come from running it."""
    source, one, two = r.choice(_PROGRAMS)
    values = [r.randint(-6, 9) for _ in range(r.randint(4, 8))]
    states: list[str] = []
    lines = source.split("\n")
    loop = next(n for n, line in enumerate(lines) if line.strip().startswith("for"))
    end = next(n for n, line in enumerate(lines) if line.strip().startswith("return"))
    probed = [
        *lines[:end],
        f"        _log.append((x, {one}, list({two}) if isinstance({two}, list) else {two}))",
        *lines[end:],
    ]
    log: list[tuple[Any, ...]] = []
    space: dict[str, Any] = {"_log": log}
    exec("\n".join(probed), space)
    result = space["f"](list(values))
    states = [f"x = {x}: " + (f"{one} = {a}, " if one != "x" else "") + f"{two} = {b}." for x, a, b in log]
    ask = r.choice(
        (
            "What does `f({v})` return?",
            "Trace the call `f({v})` and give its result.",
            "Without running it: what is the value of `f({v})`?",
        )
    )
    return (
        f"{ask.format(v=values)}\n\n```python\n{source}\n```",
        f"The loop starts at line {loop + 1}. I keep a table. " + " ".join(states),
        f"`{result}`",
    )


def query(r: random.Random) -> Problem:
    """Results of SQL queries, from a real database."""
    people = r.sample(("Ana", "Bob", "Cem", "Dee", "Eli", "Fu", "Gus", "Hal"), 6)
    rows = [(n, name, r.choice(("north", "south", "west")), r.randint(1, 9) * 10) for n, name in enumerate(people, 1)]
    questions = (
        ("SELECT region, COUNT(*), SUM(amount) FROM sales GROUP BY region HAVING COUNT(*) > 1 ORDER BY region", "HAVING filters groups after they are formed, WHERE would filter rows before."),
        ("SELECT name FROM sales WHERE amount > (SELECT AVG(amount) FROM sales) ORDER BY name", "The inner query has one value, computed once."),
        ("SELECT a.name, b.name FROM sales a JOIN sales b ON a.region = b.region AND a.id < b.id ORDER BY a.id, b.id", "`a.id < b.id` keeps each pair once and no row with itself."),
        ("SELECT region, MAX(amount) FROM sales GROUP BY region ORDER BY 2 DESC, 1 LIMIT 2", "Sort by the second column, then cut to two rows."),
    )  # fmt: skip
    sql, hint = r.choice(questions)
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE sales (id INTEGER, name TEXT, region TEXT, amount INTEGER)")
    database.executemany("INSERT INTO sales VALUES (?, ?, ?, ?)", rows)
    found = database.execute(sql).fetchall()
    groups = {
        region: [f"{row[1]} {row[3]}" for row in rows if row[2] == region]
        for region in sorted({row[2] for row in rows})
    }
    table = "\n".join(f"| {a} | {b} | {c} | {d} |" for a, b, c, d in rows)
    think = (
        "By region: "
        + "; ".join(f"{region}: {', '.join(names)}" for region, names in groups.items())
        + f". The average amount is {sum(row[3] for row in rows) / 6:.2f}. {hint} That gives {found}."
    )
    listed = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in found) or "(no rows)"
    return (
        f"Table sales:\n\n| id | name | region | amount |\n|---|---|---|---|\n{table}\n\nWhat does this return?\n\n```sql\n{sql};\n```",
        think,
        f"{hint}\n\n{listed}",
    )


def bases(r: random.Random) -> Problem:
    """Number bases and bit operations."""
    a, b = r.randint(16, 255), r.randint(16, 255)
    op, name = r.choice((("&", "and"), ("|", "or"), ("^", "exclusive or")))
    value = {"&": a & b, "|": a | b, "^": a ^ b}[op]
    think = (
        f"{a} = {a:08b}, {b} = {b:08b}. Bit by bit {name}: {value:08b}. In decimal: "
        + (" + ".join(str(1 << i) for i in range(7, -1, -1) if value >> i & 1) or "0")
        + f" = {value}; in hexadecimal the two halves {value >> 4:04b} and {value & 15:04b} are {value >> 4:x} and {value & 15:x}."
    )
    return (
        f"What is {a} {op} {b}, in decimal, binary and hexadecimal?",
        think,
        f"{value} = 0b{value:08b} = 0x{value:02x}",
    )


def cost(r: random.Random) -> Problem:
    """How often the inner line of a loop nest runs, counted and estimated."""
    n = r.choice((8, 16, 32, 64, 100))
    nests = (
        ("for i in range(n):\n    for j in range(i):\n        work()", sum(range(n)), "n(n−1)/2", "Θ(n²)", "The inner loop runs i times: 0 + 1 + … + (n−1)."),
        ("i = n\nwhile i > 1:\n    i //= 2\n    work()", int(math.log2(n)), "⌊log₂ n⌋", "Θ(log n)", "Every step halves i."),
        ("for i in range(n):\n    j = 1\n    while j < n:\n        j *= 2\n        work()", n * math.ceil(math.log2(n)), "n·⌈log₂ n⌉", "Θ(n log n)", "The inner loop doubles j until it reaches n, for each i anew."),
        ("for i in range(n):\n    for j in range(i, n):\n        for k in range(3):\n            work()", 3 * n * (n + 1) // 2, "3n(n+1)/2", "Θ(n²)", "The innermost loop is a constant factor of three."),
        ("for i in range(1, n + 1):\n    for j in range(i, n + 1, i):\n        work()", sum(n // i for i in range(1, n + 1)), "Σ ⌊n/i⌋", "Θ(n log n)", "The inner loop visits the multiples of i; the sum n/1 + n/2 + … grows like n ln n."),
    )  # fmt: skip
    code, count, formula, order, why = r.choice(nests)
    return (
        f"How often is work() called for n = {n}, and how does that grow?\n\n```python\n{code}\n```",
        f"{why} As a formula: {formula}. For n = {n}: {count}.",
        f"{count} times for n = {n}; in general {formula}, that is {order}.",
    )


def shortest_path(r: random.Random) -> Problem:
    """Dijkstra on a small graph, with the order in which nodes are settled."""
    nodes = "ABCDEF"
    edges = {(a, b): r.randint(1, 12) for i, a in enumerate(nodes) for b in nodes[i + 1 : i + 4] if r.random() < 0.75}
    edges |= {(a, b): r.randint(1, 12) for a, b in zip(nodes, nodes[1:], strict=False) if (a, b) not in edges}
    best, before, heap, settled = {"A": 0}, {}, [(0, "A")], []
    while heap:
        d, u = heapq.heappop(heap)
        if u in settled:
            continue
        settled.append(u)
        for (a, b), w in edges.items():
            if u in (a, b):
                v = b if u == a else a
                if d + w < best.get(v, 10**9):
                    best[v], before[v] = d + w, u
                    heapq.heappush(heap, (d + w, v))
    path = ["F"]
    while path[-1] != "A":
        path.append(before[path[-1]])
    think = "Dijkstra: always settle the nearest open node. " + " ".join(
        f"{u} at {best[u]}" + (f" (through {before[u]})." if u in before else ".") for u in settled
    )
    listed = ", ".join(f"{a}–{b} {w}" for (a, b), w in edges.items())
    return (
        f"An undirected graph has these edges: {listed}. What is the shortest way from A to F?",
        think,
        f"{' → '.join(path[::-1])}, length **{best['F']}**",
    )


def schedule(r: random.Random) -> Problem:
    """As many meetings as possible in one room."""
    meetings = sorted(
        {(s, s + r.randint(1, 3)) for s in (r.randint(8, 16) for _ in range(7))}, key=lambda m: (m[1], m[0])
    )
    taken: list[tuple[int, int]] = []
    story = []
    for s, e in meetings:
        fits = not taken or s >= taken[-1][1]
        story.append(f"{s}–{e}: {'take it' if fits else f'overlaps {taken[-1][0]}–{taken[-1][1]}, skip'}.")
        if fits:
            taken.append((s, e))
    shown = [f"{s}–{e}" for s, e in meetings]
    r.shuffle(shown)
    return (
        f"One room, these requests (hours): {', '.join(shown)}. How many can be granted at most?",
        "Greedy by the end time is optimal: whatever ends first leaves most room. " + " ".join(story),
        f"**{len(taken)}**, for example {', '.join(f'{s}–{e}' for s, e in taken)}.",
    )


def pattern(r: random.Random) -> Problem:
    """Which strings a regular expression matches as a whole, tested for real."""
    expression, why = r.choice((
        (r"[a-z]+\d{2,3}", "letters, then two or three digits"), (r"(ab)+c?", "one or more ab, perhaps a c"),
        (r"\w+@\w+\.(com|org)", "a name, @, a word, a dot, com or org"), (r"-?\d+(\.\d+)?", "a number, sign and fraction optional"),
        (r"(\w)\w*\1", "ends with the letter it began with"),
    ))  # fmt: skip
    samples = r.sample(
        [
            "abc12",
            "abc1",
            "x999",
            "ab",
            "abab",
            "ababc",
            "abc",
            "me@site.org",
            "me@site.net",
            "-3",
            "3.",
            "0.25",
            "level",
            "banana",
            "a",
            "noon",
            "12ab",
        ],
        7,
    )
    hits = [text for text in samples if re.fullmatch(expression, text)]
    think = f"The expression reads: {why}. It has to match the whole string. " + " ".join(
        f"{text}: {'yes' if text in hits else 'no'}." for text in samples
    )
    return (
        f"Which of these does `{expression}` match completely: {', '.join(samples)}?",
        think,
        ", ".join(f"`{text}`" for text in hits) or "None of them.",
    )


def memory(r: random.Random) -> Problem:
    """Size of a model or a table in memory."""
    b, bits, context, layers, width = (
        r.choice((1, 3, 7, 13, 70)),
        r.choice((4, 8, 16)),
        r.choice((4096, 8192, 32768)),
        r.choice((24, 32, 48)),
        r.choice((512, 1024)),
    )
    weights, cache = b * bits / 8, 2 * layers * width * context * 2
    think = f"Weights: {b}·10⁹ × {bits} bit / 8 = {weights:g}·10⁹ bytes. Cache: keys and values, so 2 × {layers} layers × {width} values × {context} positions × 2 bytes = {cache} bytes = {cache / 2**30:.2f} GiB."
    return (
        f"A model has {b} billion weights at {bits} bits each, {layers} layers, and keys and values of width {width} per layer in 16 bits. How much memory do weights and a cache for {context} tokens take?",
        think,
        f"Weights about **{weights:g} GB**, cache **{cache / 2**30:.2f} GiB**.",
    )


def search(r: random.Random) -> Problem:
    """Binary search, step by step."""
    values = sorted(r.sample(range(100), r.randint(9, 15)))
    wanted = r.choice([*values, r.randint(0, 99)])
    low, high, steps = 0, len(values) - 1, []
    while low <= high:
        middle = (low + high) // 2
        sign = "=" if values[middle] == wanted else "<" if values[middle] < wanted else ">"
        steps.append(f"[{low}, {high}]: index {middle} holds {values[middle]} {sign} {wanted}.")
        if sign == "=":
            break
        low, high = (middle + 1, high) if sign == "<" else (low, middle - 1)
    found = low <= high
    return (
        f"Binary search for {wanted} in {values}: which indices are looked at?",
        " ".join(steps) + ("" if found else " The range is empty, so it is not there."),
        (f"Found at index {(low + high) // 2}" if found else "Not found") + f" after {len(steps)} comparisons.",
    )


COMPUTING = (trace, trace, query, query, bases, cost, shortest_path, schedule, pattern, memory, search)


def reasoning_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """The rows of reasoning.jsonl: all kinds in turn, no question twice."""
    rng = random.Random(f"{seed}/reasoning")
    kinds = [*MATHEMATICS, *COMPUTING]
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for kind in itertools.cycle(kinds):
        if len(rows) == count:
            break
        question, thinking, answer = kind(rng)  # kinds with few questions stop giving new ones after a while
        if question not in seen:
            seen.add(question)
            turn = {"role": "assistant", "content": answer, "reasoning_content": thinking}
            rows.append({"messages": [{"role": "user", "content": question}, turn]})
    rng.shuffle(rows)
    return rows
