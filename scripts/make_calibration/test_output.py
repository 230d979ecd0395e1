"""What the test runners of five languages print before and after a fix."""

# ruff: noqa: E501, RUF001 (sentences and tables, one per line)

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from make_calibration.code_files import SourceFile


@dataclass(frozen=True)
class Outcome:
    """A command and what it prints with and without the bug; `count` tests are run."""

    command: str
    failing: str
    passing: str
    count: int


def _python(file: SourceFile, name: str, bad: str, rng: random.Random) -> Outcome:
    count, seconds = rng.randint(4, 40), rng.uniform(0.1, 3)
    test, stem = f"tests/test_{PurePosixPath(file.path).stem.strip('_')}.py", name.strip("_").lower()
    line = rng.randint(20, 300)
    dots = ["."] * count
    dots[rng.randrange(count)] = "F"
    failing = (
        f"{test} {''.join(dots)}{'[100%]':>20}\n\n=================================== FAILURES ===================================\n"
        f"______________________________ test_{stem} ______________________________\n\n    def test_{stem}():\n"
        f"        result = {name}(*case.arguments)\n>       assert result == case.expected\n"
        f"E       AssertionError: assert {rng.choice(('None == 3', 'False == True', '[1, 2] == [1, 2, 3]', repr('a') + ' == ' + repr('ab')))}\n\n"
        f"{test}:{line}: AssertionError\n=========================== short test summary info ============================\n"
        f"FAILED {test}::test_{stem}\n{1} failed, {count - 1} passed in {seconds:.2f}s"
    )
    passing = f"{test} {'.' * count}{'[100%]':>20}\n\n{count} passed in {seconds:.2f}s"
    return Outcome(f"python -m pytest {test} -q", failing, passing, count)


def _script(file: SourceFile, name: str, bad: str, rng: random.Random) -> Outcome:
    count, milliseconds = rng.randint(3, 25), rng.randint(8, 400)
    test = f"test/{PurePosixPath(file.path).stem}.test.{'ts' if file.language == 'TypeScript' else 'js'}"
    failing = (
        f" FAIL  {test} > {name} > handles the boundary\nAssertionError: expected {rng.choice(('undefined', 'false', '[]', '2'))} "
        f"to deeply equal {rng.choice(('true', '1', '[ 1 ]', 'null'))}\n ❯ {test}:{rng.randint(10, 200)}:{rng.randint(5, 40)}\n\n"
        f" Test Files  1 failed (1)\n      Tests  1 failed | {count - 1} passed ({count})\n   Duration  {milliseconds}ms"
    )
    passing = f" ✓ {test} ({count} tests) {milliseconds}ms\n\n Test Files  1 passed (1)\n      Tests  {count} passed ({count})"
    return Outcome(f"npx vitest run {test}", failing, passing, count)


def _rust(file: SourceFile, name: str, bad: str, rng: random.Random) -> Outcome:
    count = rng.randint(3, 30)
    failing = (
        f"running {count} tests\ntest tests::{name}_edge ... FAILED\n\nfailures:\n\n---- tests::{name}_edge stdout ----\n"
        f"thread 'tests::{name}_edge' panicked at {file.path}:{rng.randint(200, 900)}:9:\n"
        f"assertion `left == right` failed\n  left: {rng.choice(('Some(3)', '0', 'Ok(())', 'true'))}\n right: {rng.choice(('None', '1', 'Err(Closed)', 'false'))}\n\n"
        f"test result: FAILED. {count - 1} passed; 1 failed; 0 ignored; finished in 0.0{rng.randint(1, 9)}s"
    )
    passing = f"running {count} tests\n\ntest result: ok. {count} passed; 0 failed; 0 ignored; finished in 0.0{rng.randint(1, 9)}s"
    return Outcome(f"cargo test --lib {name}", failing, passing, count)


def _go(file: SourceFile, name: str, bad: str, rng: random.Random) -> Outcome:
    count, folder = rng.randint(3, 30), str(PurePosixPath(file.path).parent)
    test = f"Test{name[0].upper()}{name[1:]}"
    failing = (
        f"--- FAIL: {test} (0.00s)\n    {PurePosixPath(file.path).stem}_test.go:{rng.randint(20, 400)}: {name}() = "
        f"{rng.choice(('false', '0', 'nil', '[]'))}, want {rng.choice(('true', '1', 'EOF', '[1]'))}\nFAIL\nFAIL\t{folder}\t0.0{rng.randint(10, 99)}s"
    )
    return Outcome(f"go test ./{folder}/ -run {test}", failing, f"ok  \t{folder}\t0.0{rng.randint(10, 99)}s", count)


TESTS: dict[str, Callable[[SourceFile, str, str, random.Random], Outcome]] = {
    "Python": _python,
    "TypeScript": _script,
    "JavaScript": _script,
    "Rust": _rust,
    "Go": _go,
}
