"""`quantkit publish`: quantized files to a repo on the Hub, with card, licence and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.options import Json
from quantkit.errors import BadInput

if TYPE_CHECKING:
    from quantkit.hub.publish import Publication


def command(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="A checkpoint folder, a folder of GGUFs, or GGUFs.", show_default=False)
    ] = None,
    repo: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="The repo; made if there is none.")] = None,
    report: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="What `quantkit verify` wrote about it (repeatable).")
    ] = None,
    imatrix: Annotated[Path | None, typer.Option(help="Importance matrix that the GGUFs were made with.")] = None,
    license_file: Annotated[
        Path | None, typer.Option("--license", help="The model's own LICENSE (default: the one beside the weights).")
    ] = None,
    tag: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the finished commit.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Show the repo to everybody in the end.")] = False,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Publish without a report, or with one that says FAIL.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print files and card, touch nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Publish quantized files on the Hugging Face Hub: weights, card, licence, report, in one commit on main.

    The repo stays private until --public says otherwise and everything is there. A killed run goes on where it was when
    the same command is given again; files of other quantizations are never touched.
    """
    if repo is None:
        raise BadInput("no repo given; name it with --repo OWNER/NAME")
    from quantkit.hub.client import quiet
    from quantkit.hub.publish import Wanted, prepare, publish

    wanted = Wanted(
        tuple(paths or ()), repo, tuple(report or ()), imatrix, license_file, public, tag, unverified=unverified
    )
    with quiet():
        publication = prepare(wanted, dry=dry_run)
        for line in publication.lines:
            typer.echo(line, err=True)
        if dry_run:
            _print_plan(publication, repo, as_json)
            return
        done = publish(wanted, publication, lambda line: None if as_json else typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps({**done.__dict__, "public": public, "lines": list(publication.lines)}))
        return
    from quantkit.run.sizes import format_size

    typer.echo(
        f"{done.files} files, {format_size(done.sent_bytes)} uploaded, {format_size(done.present_bytes)} were there; "
        f"commit {done.commit}"
    )
    typer.echo(done.url)


def _print_plan(publication: Publication, repo: str, as_json: bool) -> None:
    from quantkit.run.sizes import format_size

    sizes = publication.sizes()
    if as_json:
        files = [
            {"path": place, "bytes": size, "present": place in publication.present} for place, size in sizes.items()
        ]
        typer.echo(
            json.dumps({"repo": repo, "files": files, "card": publication.card, "lines": list(publication.lines)})
        )
        return
    for place, size in sizes.items():
        typer.echo(f"{format_size(size):>10}  {place}{' (there)' if place in publication.present else ''}")
    typer.echo(f"{format_size(sum(sizes.values())):>10}  in {len(sizes)} files\n")
    typer.echo(publication.card)
