"""The tests of both ways, with the oldest client of the Hub that is allowed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLDEST = Path(os.environ.get("QUANTKIT_OLDEST_HUB") or ROOT / ".cache" / "oldest-hub")
FILES = ("test_hub_client.py", "test_repo_files.py", "test_download_mirror.py", "test_download_spool.py")
FILES += ("test_push_story.py", "test_push_faults.py", "test_publish_story.py", "test_hub_to_hub.py")


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("file", FILES)
def test_works_with_the_oldest_client(file: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(OLDEST)}
    version = [sys.executable, "-c", "import huggingface_hub; print(huggingface_hub.__version__)"]
    found = subprocess.run(version, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("1.31."), "run scripts/setup_oldest_hub"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not full", "-p", "no:cacheprovider", f"tests/hub/{file}"]
    ran = subprocess.run(command, check=False, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert " passed" in ran.stdout
