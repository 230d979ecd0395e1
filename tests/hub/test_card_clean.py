"""Commands and sentences lose what belongs to a machine, and keep what a reader needs."""

import pytest

from quantkit.hub.card.clean import public_command, public_text

TOKEN = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    ("command", "public"),
    [
        ("quantkit gguf q4_k_m /data/models/M2.7/ -o /mnt/x/out.gguf", "quantkit gguf q4_k_m M2.7 -o out.gguf"),
        ("/opt/env/bin/python -m vllm --model=/models/M2.7 --port 8000", "python -m vllm --model=M2.7 --port 8000"),
        ("quantkit gptq hub:me/M2@main -o runs/one/M2-GPTQ", "quantkit gptq hub:me/M2@main -o M2-GPTQ"),
        ("quantkit gptq MiniMaxAI/MiniMax-M2.7 -o ../M2-GPTQ", "quantkit gptq MiniMaxAI/MiniMax-M2.7 -o M2-GPTQ"),
        ("quantkit gguf q8_0 M -o out/M.gguf", "quantkit gguf q8_0 M -o M.gguf"),
        (f"HF_TOKEN={TOKEN} quantkit rtn M -o O", "quantkit rtn M -o O"),
        ("x '/home/me/with blank/M.gguf'", "x M.gguf"),
        ("x it's /home/me/M", "x 'it'\"'\"'s' M"),
    ],
)
def test_paths_of_a_command_are_bare_names(command: str, public: str) -> None:
    assert public_command(command) == public


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/me/M2.7: no tokenizer", "M2.7: no tokenizer"),
        ("served from '/srv/a/b/M.gguf', twice", "served from 'M.gguf', twice"),
        ("http://10.0.0.7:8000/v1: gives no log-probabilities", "the server: gives no log-probabilities"),
        ("see https://huggingface.co/me/M/blob/main/README.md", "see https://huggingface.co/me/M/blob/main/README.md"),
        ("mean 0.1/0.2 and w1/w3 stay", "mean 0.1/0.2 and w1/w3 stay"),
        (r"C:\Users\me\M.gguf is it", "M.gguf is it"),
    ],
)
def test_sentences_lose_folders_and_servers(text: str, public: str) -> None:
    assert public_text(text) == public


def test_tokens_are_hidden() -> None:
    assert TOKEN not in public_text(f"Bearer {TOKEN} was refused")
    assert TOKEN not in public_command(f"curl -H 'Authorization: Bearer {TOKEN}' x")
