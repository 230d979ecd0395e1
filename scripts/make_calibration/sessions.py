"""Agent sessions over real files: find and fix a planted bug, port a real change, answer where something is."""

# ruff: noqa: E501 (sentences and tables, one per line)

from __future__ import annotations

import difflib
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from make_calibration.code_files import SourceFile, cleaned
from make_calibration.packages import OLDER, PACKAGES, read_files
from make_calibration.test_output import TESTS
from make_calibration.workspace import TOOL_SETS, Dialogue, ToolSet, Workspace

LANGUAGES = ("Python", "TypeScript", "JavaScript", "Rust", "Go")
_HEAD = {
    "Python": re.compile(r"^\s*(?:async )?def (\w{4,})\("),
    "TypeScript": re.compile(r"^\s*(?:export )?(?:async )?function (\w{4,})\W|^  (?:public |private |async )*(\w{4,})\([^)]*\)[^;]*\{$"),
    "JavaScript": re.compile(r"^\s*(?:export )?(?:async )?function (\w{4,})\W|^\s*(?:const )?(\w{4,}) = function"),
    "Rust": re.compile(r"^\s*(?:pub(?:\(\w+\))? )?fn (\w{4,})\W"),
    "Go": re.compile(r"^func (?:\([^)]*\) )?(\w{4,})\("),
}  # fmt: skip
GLOBS = {"Python": "*.py", "TypeScript": "*.ts", "JavaScript": "*.js", "Rust": "*.rs", "Go": "*.go"}

# What the line says, what the planted bug makes of it, what a user sees, what the reviewer concludes.
MUTATIONS = [
    (" < ", " <= ", "goes one step too far at the upper end", "the bound is exclusive, so `<=` lets one value too many through"),
    (" > ", " >= ", "treats the boundary value as if it were above it", "the comparison must be strict; equality belongs to the other branch"),
    (" <= ", " < ", "leaves out the last valid value", "the bound is meant to be included, `<` drops it"),
    (" >= ", " > ", "ignores the case where both sides are equal", "equality has to take this branch too"),
    (" == ", " != ", "does the opposite of what it should in the ordinary case", "the comparison is inverted"),
    (" != ", " == ", "only works when it should not", "the comparison is inverted"),
    (" and ", " or ", "accepts input that meets only one of the two conditions", "both conditions have to hold, `or` is too weak"),
    (" or ", " and ", "rejects input unless both conditions hold", "either condition is enough, `and` is too strict"),
    (" && ", " || ", "takes the branch although only one condition holds", "both conditions have to hold"),
    (" || ", " && ", "falls through although one of the conditions holds", "one condition is enough"),
    (" is None", " is not None", "fails as soon as the optional argument is left out", "the None check is the wrong way round"),
    (" is not None", " is None", "drops the value exactly when one is given", "the None check is the wrong way round"),
    ("if not ", "if ", "skips the work for valid input", "the negation is missing"),
    (" not in ", " in ", "reports names as missing that are there", "membership is tested the wrong way round"),
    (" === ", " !== ", "never matches equal values", "strict equality was turned into inequality"),
    (" !== ", " === ", "matches only the value that it should exclude", "the inequality was turned into equality"),
    (" + 1", "", "is off by one", "the index has to move past the current element, so the `+ 1` is needed"),
    (" - 1", "", "reads one element past the end", "the last valid index is one less than the length"),
    ("return True", "return False", "always answers no", "this early exit is the positive case"),
    ("return False", "return True", "answers yes for things it has just ruled out", "this early exit is the negative case"),
    ("min(", "max(", "lets values grow beyond the limit", "the value has to be capped, so the smaller one counts"),
    ("max(", "min(", "collapses to the lower limit", "the limit is a floor, so the larger one counts"),
    (".startswith(", ".endswith(", "recognises the wrong end of the name", "the marker is a prefix"),
    ("!= nil", "== nil", "returns early when nothing went wrong", "the error check is inverted"),
    (".is_some()", ".is_none()", "skips the entries that carry a value", "the option test is inverted"),
    (".is_empty()", ".len() == 1", "treats a single element as nothing", "only the empty case is meant here"),
]  # fmt: skip

ISSUES = (
    "`{name}` in {path} {symptom}. It used to work in the previous release. Please find out why and fix it.",
    "Bug report: since the last refactoring `{name}` {symptom}. The tests around it fail. Can you repair it with the smallest possible change?",
    "Our CI is red. I think {path} is to blame: {name} {symptom}. Fix it, and show me the diff at the end.",
    "A user wrote: “{name}() {symptom}.” I can reproduce it. Have a look at the code, correct it and run the tests.",
    "Please debug `{name}` for me. What I see: it {symptom}. Don't touch the tests.",
    "regression in {path} -> {name} {symptom}. pls fix",
)  # fmt: skip
SYSTEMS = (
    "You are a coding agent. Work in small steps, check every assumption with a tool, and finish with a short summary.",
    "You are a careful software engineer with access to a repository. Read before you edit; run the tests after you edit.",
    "You fix bugs in open-source projects. Prefer the smallest correct change. Never modify tests to make them pass.",
    None,
)  # fmt: skip
_LOOK = (
    "The report names `{name}`. First I need to see where it is defined and who calls it.",
    "I start with the definition of `{name}` and its callers, then I read the body.",
    "Nothing to guess here: search for `{name}`, read it, then reproduce the failure.",
)
_READ = (
    "It is defined in {path} at line {head}. I read the function with some context, and run the tests that cover it at the same time.",
    "{path}:{head} is the definition. Let me look at the body and reproduce the failure before touching anything.",
    "The match at line {head} of {path} is the one that matters; the others only call it.",
)  # fmt: skip
_FOUND = (
    "The failure shows that it {symptom}. Line {line} reads `{bad}`. Here {reason}. So the line should be `{good}`.",
    "Reading along: everything up to line {line} is fine, but `{bad}` cannot be right: {reason}. The repair is `{good}`.",
    "Line {line}, `{bad}`: {reason}. That explains the report, it {symptom}. I change only this line, to `{good}`.",
)
_DONE = (
    "Fixed. In `{name}` ({path}, line {line}) {reason}. I changed\n\n```\n{bad}\n```\n\nto\n\n```\n{good}\n```\n\nand the tests pass now.",
    "The cause was one line in {path}: {reason}. `{name}` behaves as before again; {passed} pass. No other file needed a change.",
    "Done: line {line} of {path} is corrected ({reason}). All tests that cover `{name}` pass.",
)


@dataclass(frozen=True)
class Bug:
    """A planted bug: the file as broken, the line before and after, and what they mean."""

    file: SourceFile
    name: str
    head: int
    number: int
    good: str
    bad: str
    symptom: str
    reason: str

    def fields(self) -> dict[str, Any]:
        """What the wordings may mention."""
        shown = {"good": self.good.strip(), "bad": self.bad.strip()}
        return shown | {"name": self.name, "head": self.head, "path": self.file.path, "line": self.number, "symptom": self.symptom, "reason": self.reason}  # fmt: skip


def plant(file: SourceFile, rng: random.Random) -> Bug | None:
    """Break one line inside a function of `file`, or None where nothing can be broken."""
    lines = file.text.split("\n")
    heads: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        match = _HEAD[file.language].match(line)
        if match:
            heads.append((number, next(filter(None, match.groups()))))
    options = []
    for place, (head, name) in enumerate(heads):
        end = heads[place + 1][0] if place + 1 < len(heads) else len(lines)
        for number in range(head + 1, min(end, head + 60)):
            line = lines[number]
            if re.match(r"\s*(#|//|\*|\"\"\"|'|\"|:|@)", line) or '"' in line or lines.count(line) != 1:
                continue
            if line[:1].isspace():
                options += [(number, name, head + 1, line, m) for m in MUTATIONS if _can_break(line, m[0])]
    if not options:
        return None
    kinds = sorted({option[4] for option in options})
    kind = rng.choice(kinds)
    number, name, head, line, (old, new, symptom, reason) = rng.choice(
        [option for option in options if option[4] == kind]
    )
    return Bug(file, name, head, number + 1, line, line.replace(old, new), symptom, reason)


def _can_break(line: str, old: str) -> bool:
    """Whether `old` is once in the line; an operator needs an operand on both sides (and is no type argument)."""
    if line.count(old) != 1:
        return False
    before, _, after = line.partition(old)
    operator = old.startswith(" ") and old.endswith(" ")
    return not operator or bool(re.search(r"[\w)\]'\"]$", before) and re.match(r"[\w(\[&*'\"-]", after))


def fix_bug(bug: Bug, neighbours: dict[str, str], rng: random.Random) -> Dialogue:
    """The session of an agent that is told the symptom, and finds and repairs the line."""
    path, language = bug.file.path, bug.file.language
    broken = bug.file.text.replace(bug.good, bug.bad)
    space = Workspace(neighbours | {path: broken})
    tools = rng.choice(TOOL_SETS)
    tests = TESTS[language](bug.file, bug.name, bug.bad, rng)
    dialogue = Dialogue(tools.tools)
    fields = bug.fields() | {"passed": f"{tests.count} tests"}
    system = rng.choice(SYSTEMS)
    if system:
        dialogue.say("system", system)
    dialogue.say("user", rng.choice(ISSUES).format(**fields))
    folder = path.rpartition("/")[0] or "."
    look = [(tools.search(bug.name, GLOBS[language]), space.matches(bug.name))]
    if rng.random() < 0.5:
        look.append((tools.listing(folder), space.listing(folder)))
    if rng.random() < 0.25:
        wrong = path.replace("src/", "lib/") if "src/" in path else f"src/{path}"
        dialogue.call("I open the file that the report names.", [(tools.read(wrong, 1, 60), space.lines(wrong, 1, 60))])
        dialogue.call(f"{wrong} does not exist. Let me search instead.", look)
    else:
        dialogue.call(rng.choice(_LOOK).format(**fields), look)
    first = max(1, bug.number - rng.randint(18, 40))
    last = min(broken.count("\n"), bug.number + rng.randint(12, 30))
    body = [(tools.read(path, first, last), space.lines(path, first, last)), (tools.run(tests.command), tests.failing)]
    dialogue.call(rng.choice(_READ).format(**fields), body)
    thought = rng.choice(_FOUND).format(**fields)
    if rng.random() < 0.3:
        careless = tools.replace(path, bug.bad.strip() + " ", bug.good.strip() + " ")
        dialogue.call(thought, [(careless, space.replace(path, bug.bad.strip() + " \n#", ""))])
        thought = "My text had a trailing blank and so did not match. Again, with the exact line and its indentation."
    dialogue.call(thought, [(tools.replace(path, bug.bad, bug.good), space.replace(path, bug.bad, bug.good))])
    check = [(tools.run(tests.command), tests.passing)]
    if rng.random() < 0.5:
        check.append((tools.run("git diff"), space.diff()))
    dialogue.call("The edit is in place. Now the same tests again.", check)
    dialogue.answer("The tests pass and the diff is one line.", rng.choice(_DONE).format(**fields))
    return dialogue


def port_change(path: str, before: str, after: str, neighbours: dict[str, str], rng: random.Random) -> Dialogue | None:
    """The session of an agent that applies a real upstream change, hunk by hunk."""
    hunks = _hunks(before, after)
    if not 1 <= len(hunks) <= 4 or any(before.count(old) != 1 for old, _ in hunks):
        return None
    space = Workspace(neighbours | {path: before})
    tools = rng.choice(TOOL_SETS)
    patch = "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"a/{path}", f"b/{path}"))
    dialogue = Dialogue(tools.tools)
    dialogue.say("user", rng.choice((
        "Upstream made this change; our fork does not have it yet. The patch does not apply because of line numbers, "
        f"so please make the edits by hand:\n\n```diff\n{patch}```",
        f"Please backport the following commit to our branch and check that nothing else uses the old code.\n\n{patch}",
    )))  # fmt: skip
    for count, (old, new) in enumerate(hunks, 1):
        number = space.files[path].partition(old)[0].count("\n") + 1
        first, last = max(1, number - 12), number + old.count("\n") + 12
        plan = f"Change {count} of {len(hunks)} is around line {number}. I look at the present text before I edit it."
        dialogue.call(plan, [(tools.read(path, first, last), space.lines(path, first, last))])
        gone, come = old.count("\n"), new.count("\n")
        thought = f"The text is as the patch expects: {gone} lines go, {come} come. I replace exactly these."
        dialogue.call(thought, [(tools.replace(path, old, new), space.replace(path, old, new))])
    dialogue.call("All parts are in. I compare with the patch.", [(tools.run("git diff"), space.diff())])
    dialogue.answer(
        "The diff equals the patch apart from line numbers.",
        f"I made the change in {path}: {len(hunks)} place{'s' * (len(hunks) > 1)}, and `git diff` shows the same lines "
        "as your patch. I ran no tests, as you did not ask for it.",
    )
    return dialogue


def _hunks(before: str, after: str) -> list[tuple[str, str]]:
    """Changed blocks with one line of context on each side, as (old text, new text)."""
    old, new = before.splitlines(True), after.splitlines(True)
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    found = []
    for kind, a, b, c, d in blocks:
        if kind != "equal":
            start, end = max(a - 1, 0), min(b + 1, len(old))
            found.append(("".join(old[start:end]), "".join(old[start:a] + new[c:d] + old[b:end])))
    return found


def explain(file: SourceFile, neighbours: dict[str, str], rng: random.Random) -> Dialogue | None:
    """A question about the code base that reading answers."""
    lines = file.text.split("\n")
    heads = [(n, m) for n, line in enumerate(lines, 1) if (m := _HEAD[file.language].match(line))]
    if not 3 <= len(heads) <= 40:
        return None
    number, match = rng.choice(heads)
    name = next(filter(None, match.groups()))
    space = Workspace(neighbours | {file.path: file.text})
    tools: ToolSet = rng.choice(TOOL_SETS)
    dialogue = Dialogue(tools.tools)
    dialogue.say("user", rng.choice((
        f"Where is `{name}` defined, what does it need, and who uses it?",
        f"I am new to this code base. Give me a tour of {file.path}, and tell me where {name} is used.",
        f"Before I change the signature of {name}: which places would I have to touch?",
    )))  # fmt: skip
    search = (tools.search(name, GLOBS[file.language]), space.matches(name))
    folder = file.path.rpartition("/")[0] or "."
    look = [search, (tools.listing(folder), space.listing(folder))]
    dialogue.call("A search shows definition and uses; the listing shows what lies around it.", look)
    last = min(number + rng.randint(25, 70), len(lines))
    read = (tools.read(file.path, max(1, number - 5), last), space.lines(file.path, max(1, number - 5), last))
    dialogue.call(f"The definition is at line {number}. I read it instead of guessing from its name.", [read])
    uses = sum(text.count(name) for text in space.files.values()) - 1
    others = sorted({path for path, text in space.files.items() if name in text} - {file.path})
    where = (
        f"It is also mentioned in {', '.join(f'`{path}`' for path in others[:4])}."
        if others
        else "No other file mentions it."
    )
    around = ", ".join(f"`{next(filter(None, m.groups()))}` (line {n})" for n, m in heads[:6])
    dialogue.answer(
        f"Definition at line {number}, {uses} further mentions in all. I list them with files so that the user can check.",
        f"`{name}` is defined in `{file.path}`, line {number}:\n\n```\n{match.string.strip()}\n```\n\nBesides the "
        f"definition the name occurs {uses} more time{'s' * (uses != 1)} in the files I can see. {where}\n\nThe same file also defines {around}.",
    )
    return dialogue


def session_rows(
    found: dict[str, list[SourceFile]], folder: Path, counts: dict[str, int], seed: int
) -> list[dict[str, Any]]:
    """The rows of sessions.jsonl: so many bug fixes, ported changes and explanations as `counts` says."""
    rng = random.Random(f"{seed}/sessions")
    by_package: dict[str, list[SourceFile]] = defaultdict(list)
    for language in LANGUAGES:
        for file in found.get(language, []):
            by_package[f"{language} {file.package}"].append(file)
    groups = [files for _, files in sorted(by_package.items()) if len(files) >= 4]
    rows: list[dict[str, Any]] = []
    for kind, count in counts.items():
        made = _ported(folder, rng) if kind == "port" else _of_files(kind, groups, rng)
        rows += [row for row, _ in zip(made, range(count), strict=False)]
    rng.shuffle(rows)
    return rows


def _of_files(kind: str, groups: list[list[SourceFile]], rng: random.Random) -> Any:
    while True:
        files = rng.choice(groups)
        file = rng.choice(files)
        near = {other.path: other.text for other in rng.sample(files, min(len(files), 25)) if other.path != file.path}
        dialogue = None
        if kind == "explain":
            dialogue = explain(file, near, rng)
        elif "test" not in file.path.lower() and (bug := plant(file, rng)) is not None:
            dialogue = fix_bug(bug, near, rng)
        if dialogue:
            yield dialogue.row(package=str(file.package), licence=file.package.licence, path=file.path)


def _ported(folder: Path, rng: random.Random) -> Any:
    changes = []
    for package in PACKAGES:
        if package.name in OLDER:
            old = {
                path: cleaned(text)
                for path, text in read_files(OLDER[package.name], folder)
                if path.endswith((".py", ".js"))
            }
            for path, text in read_files(package, folder):
                if path in old and old[path] != cleaned(text) and len(text) < 100_000:
                    changes.append((package, path, old[path], cleaned(text)))
    rng.shuffle(changes)
    for package, path, before, after in changes:
        dialogue = port_change(path, before, after, {}, rng)
        if dialogue:
            yield dialogue.row(package=str(package), licence=package.licence, path=path)
