"""Worked problems of mathematics and everyday arithmetic: numbers are drawn, every step is computed.

A problem is (question, thinking, answer).
"""

# ruff: noqa: E501, RUF001 (sentences and tables, one per line)

from __future__ import annotations

import calendar
import datetime
import itertools
import math
import random
from collections.abc import Callable
from fractions import Fraction
from statistics import median

Problem = tuple[str, str, str]


def _list(values: list[object] | list[int] | list[str]) -> str:
    return ", ".join(map(str, values))


def linear_equation(r: random.Random) -> Problem:
    """a x + b = c x + d with a whole solution."""
    x, a, c, b = r.randint(-12, 12), r.randint(4, 15), r.randint(-3, 3), r.randint(-20, 20)
    d = (a - c) * x + b
    ask = r.choice(
        (
            "Solve for x: {a}x + {b} = {c}x + {d}.",
            "For which x do {a}x + {b} and {c}x + {d} have the same value?",
            "Find the number x with {a}x + {b} = {c}x + {d}, and check it.",
        )
    )
    think = (f"Bring x to one side: subtract {c}x on both sides, which leaves {a - c}x + {b} = {d}. Subtract {b}: {a - c}x = {d - b}. "
             f"Divide by {a - c}: x = {x}. Check: left {a}·{x} + {b} = {a * x + b}, right {c}·{x} + {d} = {c * x + d}. Equal.")  # fmt: skip
    return ask.format(a=a, b=b, c=c, d=d), think, f"**x = {x}**. Both sides are then {a * x + b}."


def quadratic(r: random.Random) -> Problem:
    """A quadratic with whole roots."""
    p, q = r.randint(-9, 9), r.randint(-9, 9)
    s, m = p + q, p * q
    think = (f"I look for two numbers with sum {s} and product {m}. {p} and {q} do it: {p} + {q} = {s}, {p}·{q} = {m}. Cross-check with the "
             f"discriminant: {s}² − 4·{m} = {s * s - 4 * m} = {abs(p - q)}², so x = ({s} ± {abs(p - q)})/2, that is {min(p, q)} and {max(p, q)}.")  # fmt: skip
    roots = f"x = {p} (a double root)" if p == q else f"x = {min(p, q)} or x = {max(p, q)}"
    return (
        f"Solve x² {-s:+d}x {m:+d} = 0 and explain how you found the roots.",
        think,
        f"The left side factors into (x − ({p}))(x − ({q})), so {roots}.",
    )


def discount(r: random.Random) -> Problem:
    """Two changes in percent, one after the other."""
    price, up, down = r.randint(4, 90) * 20, r.choice((5, 10, 15, 20, 25)), r.choice((5, 10, 15, 20, 25))
    first, last = Fraction(price * (100 + up), 100), Fraction(price * (100 + up) * (100 - down), 10_000)
    think = (f"The second percentage applies to the new price, not to the old one. After the rise: {price}·{1 + up / 100:g} = {float(first):g}. "
             f"After the cut: {float(first):g}·{1 - down / 100:g} = {float(last):g}. In total the factor is {(100 + up) * (100 - down) / 10_000:g}, "
             f"so the change is {((100 + up) * (100 - down) / 100 - 100):+.2f} %.")  # fmt: skip
    ask = r.choice(("A bike costs {p} euros. The shop raises the price by {u} % and later cuts it by {d} %. What does it cost in the end?",
                    "Rent of {p} goes up by {u} % and is then reduced by {d} %. Is the tenant back where she started?"))  # fmt: skip
    return (
        ask.format(p=price, u=up, d=down),
        think,
        f"In the end it is **{float(last):g}**, a change of {((100 + up) * (100 - down) / 100 - 100):+.2f} % against the beginning.",
    )


def two_trains(r: random.Random) -> Problem:
    """Meeting point of two movers."""
    v, w, t = r.randint(4, 12) * 10, r.randint(4, 12) * 10, r.randint(1, 6)
    who = r.choice((("trains", "stations"), ("cyclists", "villages"), ("ships", "harbours"), ("drones", "towers")))
    think = f"They approach each other, so speeds add: {v} + {w} = {v + w} km/h. Time = distance / speed = {(v + w) * t} / {v + w} = {t} h. The first one covers {v}·{t} = {v * t} km, the second {w * t} km, together {(v + w) * t}. Fits."
    return (f"Two {who[0]} leave two {who[1]} that are {(v + w) * t} km apart at the same moment and move towards each other at {v} and {w} km/h. When and where do they meet?",
            think, f"After **{t} hour{'s' * (t > 1)}**, {v * t} km from where the first one started.")  # fmt: skip


def mixture(r: random.Random) -> Problem:
    """Mix two concentrations."""
    a, b, x, y = r.randint(1, 9) * 5, r.randint(10, 18) * 5, r.randint(1, 9), r.randint(1, 9)
    share = Fraction(a * x + b * y, x + y)
    think = f"What stays the same is the amount of acid. {x} l of {a} % hold {a * x / 100:g} l, {y} l of {b} % hold {b * y / 100:g} l; together {(a * x + b * y) / 100:g} l in {x + y} l. Concentration = {(a * x + b * y) / 100:g}/{x + y} = {float(share):.2f} %. It lies between {a} and {b}, as it must."
    return (
        f"{x} litres of a {a} % acid are mixed with {y} litres of a {b} % acid. How strong is the mixture?",
        think,
        f"About **{float(share):.2f} %**.",
    )


def number_theory(r: random.Random) -> Problem:
    """Euclid's algorithm, written out."""
    g = r.randint(2, 30)
    a, b = g * r.randint(8, 60), g * r.randint(8, 60)
    steps, m, n = [], max(a, b), min(a, b)
    while n:
        steps.append(f"{m} = {m // n}·{n} + {m % n}")
        m, n = n, m % n
    return (f"What are the greatest common divisor and the least common multiple of {a} and {b}?", "Euclid: " + "; ".join(steps) + f". The last divisor is {m}. For the multiple: {a}·{b}/{m} = {a * b // m}.",
            f"gcd = **{m}**, lcm = **{math.lcm(a, b)}**.")  # fmt: skip


def remainder(r: random.Random) -> Problem:
    """A power modulo a small number."""
    a, e, n = r.randint(2, 9), r.randint(20, 200), r.choice((5, 7, 9, 10, 11, 13))
    powers, value = [], a % n
    while value not in powers:
        powers.append(value)
        value = value * a % n
    start = powers.index(value)
    period = len(powers) - start
    place = start + (e - 1 - start) % period
    think = f"Write down {a}^1, {a}^2, … modulo {n}: {_list(powers)}, and then it repeats from {value} with period {period}. Exponent {e} is at place {place + 1} of this list, because only the remainder of the exponent by the period matters. There stands {powers[place]}."
    return f"What is the remainder of {a}^{e} divided by {n}?", think, f"**{pow(a, e, n)}**"


def counting(r: random.Random) -> Problem:
    """Arrangements of a word with equal letters."""
    word = r.choice(
        ("BANANA", "LEVEL", "PEPPER", "COFFEE", "KAYAK", "MISSISSIPPI", "TOMATO", "STATISTICS", "RADAR", "COMMITTEE")
    )
    counts = {c: word.count(c) for c in dict.fromkeys(word)}
    below = math.prod(math.factorial(k) for k in counts.values())
    think = (
        f"{word} has {len(word)} letters: "
        + ", ".join(f"{c} {k}×" for c, k in counts.items())
        + f". If all were different there would be {len(word)}! = {math.factorial(len(word))} orders. Swapping equal letters changes nothing, so divide by "
        + "·".join(f"{k}!" for k in counts.values() if k > 1)
        + f" = {below}."
    )
    return (
        f"In how many different orders can the letters of {word} be written?",
        think,
        f"{math.factorial(len(word))}/{below} = **{math.factorial(len(word)) // below}**",
    )


def committee(r: random.Random) -> Problem:
    """Choose some of two groups, at least one of each."""
    a, b, k = r.randint(4, 8), r.randint(4, 8), r.randint(3, 4)
    total, bad = math.comb(a + b, k), math.comb(a, k) + math.comb(b, k)
    think = f"Count the opposite. Without a condition there are C({a + b},{k}) = {total} committees. Only from the first group: C({a},{k}) = {math.comb(a, k)}; only from the second: C({b},{k}) = {math.comb(b, k)}. {total} − {bad} = {total - bad}."
    return (
        f"A club has {a} players and {b} coaches. A committee of {k} needs at least one of each. How many committees are possible?",
        think,
        f"**{total - bad}**",
    )


def dice(r: random.Random) -> Problem:
    """Probability of a sum of two dice, counted."""
    s = r.randint(3, 11)
    pairs = [(i, j) for i, j in itertools.product(range(1, 7), repeat=2) if i + j == s]
    p = Fraction(len(pairs), 36)
    return (f"Two fair dice are thrown. What is the probability that the sum is {s}? And what is it if I already know that the first die shows {pairs[0][0]}?",
            f"36 equally likely pairs. Those with sum {s}: {_list(pairs)}; that is {len(pairs)}, so {len(pairs)}/36 = {p}. If the first die shows {pairs[0][0]}, the second has to be {pairs[0][1]}, one of six.",
            f"Without knowledge **{p}** (about {float(p):.3f}); knowing the first die, **1/6**.")  # fmt: skip


def bayes(r: random.Random) -> Problem:
    """A test with false alarms."""
    base, hit, false = r.choice((1, 2, 5)), r.choice((90, 95, 98)), r.choice((2, 5, 8, 10))
    sick, well = base * hit, (100 - base) * false
    thing = r.choice(("a disease", "a manufacturing defect", "a fraudulent payment", "a spam message"))
    think = f"Imagine 10,000 cases. {base * 100} have it, of which {sick} are flagged. {(100 - base) * 100} do not, of which {well} are flagged by mistake. So {sick + well} flags, {sick} of them right: {sick}/{sick + well} = {sick / (sick + well):.3f}. The answer is far below {hit} % because the thing is rare."
    return (
        f"{base} % of cases are {thing}. A detector flags {hit} % of these, and {false} % of all others. A case is flagged. How likely is it real?",
        think,
        f"Only about **{100 * sick / (sick + well):.1f} %**.",
    )


def weekday(r: random.Random) -> Problem:
    """Date arithmetic."""
    start = datetime.date(r.randint(2020, 2030), r.randint(1, 12), r.randint(1, 28))
    days = r.randint(30, 400)
    end = start + datetime.timedelta(days)
    think = f"For the weekday only the remainder by 7 counts: {days} = {days // 7}·7 + {days % 7}, so {days % 7} days after {start:%A} is {end:%A}. For the date I go month by month from {start:%d %B %Y}; {start:%B} has {calendar.monthrange(start.year, start.month)[1]} days, which leaves {calendar.monthrange(start.year, start.month)[1] - start.day} in that month. Going on to {days} days ends at {end:%d %B %Y}."
    return (
        f"{start:%d %B %Y} is a {start:%A}. Which date and weekday is it {days} days later?",
        think,
        f"**{end:%A}, {end:%d %B %Y}**",
    )


def units(r: random.Random) -> Problem:
    """Convert speeds, areas, data rates."""
    kind = r.randrange(4)
    if kind == 0:
        v = r.randint(5, 60)
        return (
            f"How many km/h are {v} m/s?",
            f"One hour has 3600 s and one km 1000 m, so the factor is 3.6. {v}·3.6 = {v * 3.6:g}.",
            f"**{v * 3.6:g} km/h**",
        )
    if kind == 1:
        size, rate = r.randint(1, 90), r.choice((10, 25, 50, 100, 250))
        seconds = size * 8000 / rate
        return (f"How long does a download of {size} GB take at {rate} Mbit/s?", f"Careful: bytes against bits. {size} GB = {size * 1000} MB = {size * 8000} Mbit. {size * 8000}/{rate} = {seconds:g} s = {seconds / 60:.1f} min.", f"About **{seconds / 60:.1f} minutes**, if the line really gives {rate} Mbit/s all the time.")  # fmt: skip
    if kind == 2:
        a, b = r.randint(20, 400), r.randint(20, 400)
        return (
            f"A field is {a} m by {b} m. How many hectares is that, and how many square kilometres?",
            f"{a}·{b} = {a * b} m². A hectare has 10,000 m²: {a * b / 10_000:g} ha. A square kilometre has 100 ha: {a * b / 1e6:g} km².",
            f"**{a * b / 10_000:g} ha**, or {a * b / 1e6:g} km².",
        )
    f = r.randint(-20, 110)
    c = Fraction((f - 32) * 5, 9)
    return (
        f"What are {f} °F in °C?",
        f"Subtract 32: {f - 32}. Times 5: {(f - 32) * 5}. Divided by 9: {float(c):.2f}.",
        f"**{float(c):.1f} °C**",
    )


def statistics(r: random.Random) -> Problem:
    """Mean, median and the effect of one outlier."""
    values = [r.randint(1, 40) for _ in range(r.choice((5, 7, 9)))]
    out = r.randint(200, 500)
    before, after = median(values), median([*values, out])
    think = f"Sorted: {_list(sorted(values))}. Sum {sum(values)}, so the mean is {sum(values) / len(values):.2f}; the middle one is {before}. With {out}: the mean becomes {(sum(values) + out) / (len(values) + 1):.2f}; now the count is even, so the median is the mean of the two middle ones, {after}."
    return (
        f"Compare mean and median of {_list(values)}. What happens to both when the value {out} is added?",
        think,
        f"Mean {sum(values) / len(values):.2f} → {(sum(values) + out) / (len(values) + 1):.2f}, median {before} → {after}. One outlier moves the mean a lot and the median hardly.",
    )


def interest(r: random.Random) -> Problem:
    """Compound interest, year by year."""
    p, i, n = r.randint(1, 50) * 100, r.choice((2, 3, 4, 5, 6)), r.randint(3, 6)
    rows = [p * (1 + i / 100) ** k for k in range(n + 1)]
    think = (
        f"Every year the balance is multiplied by {1 + i / 100:g}. "
        + " ".join(f"Year {k}: {v:.2f}." for k, v in enumerate(rows) if k)
        + f" Simple interest would only give {p + p * i * n / 100:.2f}; the difference of {rows[-1] - p - p * i * n / 100:.2f} is interest on interest."
    )
    return (
        f"{p} are invested at {i} % a year and the interest stays in the account. How much is there after {n} years?",
        think,
        f"**{rows[-1]:.2f}**",
    )


def work_rate(r: random.Random) -> Problem:
    """Two workers together."""
    a, b = r.randint(2, 12), r.randint(2, 12)
    t = Fraction(a * b, a + b)
    think = f"Add rates, not times. The first does 1/{a} of the job per hour, the second 1/{b}: together {Fraction(1, a) + Fraction(1, b)}. The time is the reciprocal: {t} h ≈ {float(t):.2f} h. It is less than either alone, as it should be."
    return (
        f"One pump empties a pool in {a} hours, another one in {b}. How long do both take together?",
        think,
        f"**{t} hours**, about {int(t)} h {round(float(t - int(t)) * 60)} min.",
    )


def knights(r: random.Random) -> Problem:
    """Knights who tell the truth and knaves who lie, solved by going through all cases."""
    a, b = r.sample(("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn"), 2)
    statements = (
        (f"{a} says: “{b} is a knave.” {b} says: “We are both knights.”", lambda x, y: x == (not y) and y == (x and y)),
        (f"{a} says: “At least one of us is a knave.” {b} says nothing.", lambda x, y: x == (not x or not y)),
        (f"{a} says: “We are of different kinds.” {b} says: “{a} is a knave.”", lambda x, y: x == (x != y) and y == (not x)),
        (f"{a} says: “If I am a knight, so is {b}.”", lambda x, y: x == (not x or y)),
    )  # fmt: skip
    text, holds = r.choice(statements)
    kind = {True: "knight", False: "knave"}
    cases = [(x, y, bool(holds(x, y))) for x, y in itertools.product((True, False), repeat=2)]
    think = " ".join(
        f"{a} {kind[x]}, {b} {kind[y]}: {'everything said fits' if ok else 'contradiction'}." for x, y, ok in cases
    )
    good = [f"{a} is a {kind[x]} and {b} is a {kind[y]}" for x, y, ok in cases if ok]
    answer = (
        f"**{good[0]}.** It is the only case without a contradiction."
        if len(good) == 1
        else "The statements do not decide it: possible are " + "; or ".join(good) + "."
    )
    return (
        f"On an island knights always tell the truth and knaves always lie. {text} Who is what?",
        "Four cases, I try each. " + think,
        answer,
    )


def seating(r: random.Random) -> Problem:
    """Order puzzle with one solution, found by elimination."""
    names = r.sample(("Anna", "Bo", "Chen", "Dora", "Emil", "Fay"), 4)
    order = r.sample(names, 4)
    rank = {n: i + 1 for i, n in enumerate(order)}
    ways = list(itertools.permutations(names))
    clues: list[str] = []
    pool: list[tuple[str, Callable[[tuple[str, ...]], bool]]] = []
    for x, y in itertools.permutations(names, 2):
        if rank[x] < rank[y]:
            pool.append((f"{x} finished before {y}.", lambda w, x=x, y=y: w.index(x) < w.index(y)))  # type: ignore[misc]
        if abs(rank[x] - rank[y]) > 1 and x < y:
            pool.append(
                (
                    f"{x} and {y} did not finish one right after the other.",
                    lambda w, x=x, y=y: abs(w.index(x) - w.index(y)) > 1,
                )
            )  # type: ignore[misc]
        if rank[x] not in (1, 4):
            pool.append((f"{x} was neither first nor last.", lambda w, x=x: w.index(x) not in (0, 3)))  # type: ignore[misc]
    r.shuffle(pool)
    story = ["24 orders are possible."]
    for text, test in pool:
        left = [w for w in ways if test(w)]
        if len(left) < len(ways):
            clues.append(text)
            story.append(f"“{text}” leaves {len(left)}.")
            ways = left
        if len(ways) == 1:
            break
    return (
        "Four people ran a race. " + " ".join(clues) + " In which order did they arrive?",
        " ".join(story) + f" What is left: {_list(order)}.",
        f"**{', '.join(order)}**",
    )


MATHEMATICS = (linear_equation, quadratic, discount, two_trains, mixture, number_theory, remainder, counting, committee, dice,
               bayes, weekday, units, statistics, interest, work_rate, knights, seating)  # fmt: skip
