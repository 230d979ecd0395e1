"""`quantkit publish` puts everything into the repo, all at once, and nothing twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from harness import Cli
from hub_standin import TestHub
from publishing import GGUF_REPO, INT4_REPO, MODEL, Made, write_report, writes


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def local_files(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir()}


def test_checkpoint_folder(either_hub: TestHub, made: Made, tmp_path: Path, cli: Cli) -> None:
    folder = shutil.copytree(made.int4, tmp_path / made.int4.name)
    report = write_report(tmp_path / "report", folder)
    before = local_files(folder)
    result = cli("publish", folder, "--repo", INT4_REPO, "--report", report, "--tag", "v1", "--json")
    assert result.code == 0, result.err
    said = result.json()
    repo, files = either_hub.repos[INT4_REPO], either_hub.files(INT4_REPO)
    own = {"README.md"} | {f"quantkit/{name}" for name in (f"{folder.name}.json", f"{folder.name}/report.json")}
    assert files.keys() == before.keys() | own | {f"quantkit/{folder.name}/report.html"}
    assert {path: files[path] for path in before} == before == local_files(folder)
    assert repo.private
    assert repo.tags == {"v1": said["commit"]} == {"v1": repo.branches["main"]}
    assert list(repo.branches) == ["main"]
    assert said["url"] == f"{either_hub.url}/{INT4_REPO}"
    assert said["files"] == len(files)
    assert said["sent_bytes"] == sum(repo.at("main").tree[path].size for path in files)
    assert not (tmp_path / f"{folder.name}.publish").exists()


def test_second_time_does_nothing(lfs_hub: TestHub, made: Made, cli: Cli) -> None:
    arguments = ("publish", made.int4, "--repo", INT4_REPO, "--unverified", "--public", "--json")
    first = cli(*arguments).json()
    lfs_hub.log.clear()
    second = cli(*arguments).json()
    assert writes(lfs_hub) == []
    assert second["commit"] == first["commit"]
    assert second["sent_bytes"] == 0
    assert second["present_bytes"] == first["sent_bytes"]


def test_quantizations_come_one_after_the_other(lfs_hub: TestHub, made: Made, tmp_path: Path, cli: Cli) -> None:
    reports = {
        path: write_report(tmp_path / path.stem, path, kld=kld)
        for path, kld in zip((made.q8_0, made.q4_k_m), (0.001, 0.02))
    }
    for path, report in reports.items():
        result = cli("publish", path, "--repo", GGUF_REPO, "--report", report, "--public")
        assert result.code == 0, result.err
    result = cli("publish", *made.parts[:1], "--repo", GGUF_REPO, "--unverified")
    assert result.code == 0, result.err
    files = lfs_hub.files(GGUF_REPO)
    assert files[made.q8_0.name] == sha256(made.q8_0)
    assert files[made.q4_k_m.name] == sha256(made.q4_k_m)
    assert {path: files[path] for path in files if path.startswith(f"{MODEL}-Q6_K/")} == {
        f"{MODEL}-Q6_K/{part.name}": sha256(part) for part in made.parts
    }
    card = lfs_hub.read(GGUF_REPO, "README.md").decode()
    for name, figure in (("Q8_0", "0.001"), ("Q4_K_M", "0.02")):
        (row,) = [line for line in card.splitlines() if line.startswith(f"| `{name}` | `{MODEL}")]
        assert figure in row
    assert "quantkit/kld.png" in files
    # Whatever the public saw had a card and a licence, and every weight file of each quantization in it.
    for seen in lfs_hub.public_files(GGUF_REPO):
        assert {"README.md", "LICENSE"} <= seen.keys()
        records = [
            json.loads(lfs_hub.blobs.path(seen[path]).read_text())
            for path in seen
            if path.startswith("quantkit/Q") and path.count("/") == 1
        ]
        assert {file["path"] for record in records for file in record["files"]} == {
            path for path in seen if path.endswith(".gguf")
        }


def test_a_folder_of_ggufs(lfs_hub: TestHub, made: Made, cli: Cli) -> None:
    result = cli("publish", made.ggufs, "--repo", GGUF_REPO, "--unverified")
    assert result.code == 0, result.err
    places = {made.q8_0.name, made.q4_k_m.name} | {f"{MODEL}-Q6_K/{part.name}" for part in made.parts}
    assert {path for path in lfs_hub.files(GGUF_REPO) if path.endswith(".gguf")} == places


def test_the_recipe_in_the_repo_makes_the_same_types_again(
    lfs_hub: TestHub, made: Made, tmp_path: Path, cli: Cli
) -> None:
    source, recipe = made.ggufs.parent / MODEL, tmp_path / "recipe.yaml"
    rule = ("--tensor-type", "attn_v=q8_0", "--no-overflow-guard")
    out = tmp_path / f"{MODEL}-Q4_K_S.gguf"
    assert cli("gguf", "q4_k_s", source, "-o", out, *rule).code == 0
    shutil.copyfile(source / "LICENSE", tmp_path / "LICENSE")
    assert cli("publish", out, "--repo", GGUF_REPO, "--unverified").code == 0
    recipe.write_bytes(lfs_hub.read(GGUF_REPO, "quantkit/Q4_K_S/recipe.yaml"))
    again = tmp_path / "again" / out.name
    again.parent.mkdir()
    assert cli("gguf", "q4_k_s", source, "-o", again, "--recipe", recipe).code == 0
    assert again.read_bytes() == out.read_bytes()


def test_importance_matrix_goes_along_under_a_name_that_no_runtime_loads(
    lfs_hub: TestHub, made: Made, cli: Cli
) -> None:
    result = cli("publish", made.q4_k_m, "--repo", GGUF_REPO, "--imatrix", made.imatrix, "--unverified")
    assert result.code == 0, result.err
    files = lfs_hub.files(GGUF_REPO)
    assert files["importance-imatrix.gguf"] == sha256(made.imatrix)
    record = json.loads(lfs_hub.read(GGUF_REPO, "quantkit/Q4_K_M.json"))
    assert record["imatrix"]["file"] == made.imatrix.name


def test_source_on_the_hub_is_recorded(lfs_hub: TestHub, made: Made, tmp_path: Path, cli: Cli) -> None:
    folder = shutil.copytree(made.int4, tmp_path / made.int4.name)
    licence = {"path": "LICENSE", "size": 1, "sha256": None, "oid": "0" * 40}
    source = {"repo": "MiniMaxAI/MiniMax-M2.7", "revision": "v1", "commit": "c" * 40, "endpoint": "", "files": {}}
    (folder / "source.json").write_text(json.dumps(source | {"files": {"LICENSE": licence}}))
    result = cli("publish", folder, "--repo", INT4_REPO, "--unverified")
    assert result.code == 2
    assert "differs from the LICENSE of MiniMaxAI/MiniMax-M2.7" in result.err
    raw = (folder / "LICENSE").read_bytes()
    right = licence | {"size": len(raw), "oid": hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()}
    (folder / "source.json").write_text(json.dumps(source | {"files": {"LICENSE": right}}))
    assert cli("publish", folder, "--repo", INT4_REPO, "--unverified").code == 0
    assert "c" * 40 in lfs_hub.read(INT4_REPO, "README.md").decode()


def test_public_shows_nothing_before_everything_is_there(lfs_hub: TestHub, made: Made, cli: Cli) -> None:
    assert cli("publish", made.int4, "--repo", INT4_REPO, "--unverified", "--public").code == 0
    assert lfs_hub.public_files(INT4_REPO) == [lfs_hub.files(INT4_REPO)]
    assert [moment.what for moment in lfs_hub.history(INT4_REPO)] == ["commit", "commit", "visibility"]


def test_changed_file_of_an_interrupted_publication_goes_up_again(
    lfs_hub: TestHub, made: Made, tmp_path: Path, cli: Cli
) -> None:
    from hub_standin import Fault

    folder = shutil.copytree(made.int4, tmp_path / made.int4.name)
    lfs_hub.fail(Fault("POST .*/commit/main", "403"))
    assert cli("publish", folder, "--repo", INT4_REPO, "--unverified").code == 2
    journal = tmp_path / f"{folder.name}.publish"
    assert len(journal.read_text().splitlines()) == 2
    shard = folder / "model.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    assert cli("publish", folder, "--repo", INT4_REPO, "--unverified").code == 0
    assert lfs_hub.files(INT4_REPO)["model.safetensors"] == sha256(shard)
