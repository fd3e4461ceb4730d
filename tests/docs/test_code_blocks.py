"""Every code block of the README and the docs runs or states why it does not."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.code_blocks import blocks_of, runs_of
from support.page_names import given

from pal_fast import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: Pages whose blocks another test runs, with the set-up that they need.
ELSEWHERE = {ROOT / "docs" / "integrations": "tests/training_loops/test_integrations.py, test_hugging_face_trainer.py"}

#: Packages that a page may need beyond the package's dependencies; without them the page is skipped.
OPTIONAL = ("timm", "torchvision", "torchmetrics", "accelerate", "scipy", "PIL", "skimage")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def command_lines(page: Path) -> list[tuple[str, str]]:
    """(location, command line) of each complete `pal-fast` command in a page's shell blocks and inline code."""
    found = []
    for block in blocks_of(page):
        if block.language == "bash":
            found += [(block.where, line) for line in re.split(r"\n|&&", block.code)]
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found += [(page.name, code) for code in re.findall(r"`([^`\n]+)`", prose)]
    return [(where, line.strip()) for where, line in found if line.strip().startswith("pal-fast ")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_declares_its_language_and_why_it_is_not_run(page):
    for block in blocks_of(page):
        assert block.language, f"{block.where}: a code block without a language; prose is `text`"
        if block.language == "python":
            ast.parse(block.code, block.where)
        elif block.language == "bash":
            ours = all(line.startswith(("pal-fast ", "#")) for line in block.code.splitlines() if line.strip())
            assert ours or block.not_run, f"{block.where}: other commands need <!-- not run: REASON -->"
        else:
            assert block.language in ("text", "toml", "yaml", "cpp", "html"), f"{block.where}: {block.language}"
            assert block.language == "text" or block.not_run, f"{block.where}: needs <!-- not run: REASON -->"
        assert len(block.not_run) > 10 or not block.not_run, f"{block.where}: not a reason: {block.not_run!r}"


def test_code_blocks_are_found():
    """If the regular expression stopped matching, the tests below would pass without checking anything."""
    fences = sum(len(re.findall(r"^ *```\w+", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert sum(len(blocks_of(page)) for page in PAGES) == fences > 10


@pytest.mark.parametrize(
    "page", [p for p in PAGES if runs_of(p) and not any(folder in p.parents for folder in ELSEWHERE)], ids=name_of
)
def test_the_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = given()
    for block in runs_of(page):
        try:
            block.run(names)
        except ImportError as error:
            if (error.name or "").split(".")[0] in OPTIONAL:
                pytest.skip(f"{block.where} needs {error.name}")
            raise


def parses(parser: argparse.ArgumentParser, words: list[str]) -> bool:
    try:
        parser.parse_args(words)
    except SystemExit as stop:
        return stop.code == 0
    return True


@pytest.mark.parametrize("page", [p for p in PAGES if command_lines(p)], ids=name_of)
def test_the_commands_on_a_page_are_accepted_by_their_parsers(page, capsys):
    """Complete command lines are parsed by the command's own parser; a bare mention must name a command."""
    parser = cli.build_parser()
    known = {command.NAME for command in cli.commands()}
    for where, line in command_lines(page):
        words = shlex.split(line, comments=True)[1:]
        if len(words) == 1 and not words[0].startswith("-"):
            assert words[0] in known, f"{where}: {line}"
            continue
        assert parses(parser, words), f"{where}: {line}\n{capsys.readouterr().err}"


def test_the_installed_command_runs():
    code = "import sys; from pal_fast.cli import main; sys.exit(main(['info']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "backends" in done.stdout
