"""The pages of deploy/: their commands exist, their links lead somewhere, and decisions are all alike."""

from __future__ import annotations

import re

import pytest

from tests.deploy import drift
from tests.deploy.drift import DEPLOY, ROOT

PAGES = sorted(DEPLOY.rglob("*.md"))
DECISIONS = sorted((DEPLOY / "adr").glob("[0-9]*.md"))
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DEPLOY)))


@pages
def test_the_commands_of_the_page_exist(page):
    """A page that names a command that is not there costs an operator the night."""
    text = page.read_text()
    for words in drift.commands_in(text):
        drift.refuse_unknown_command(words, mention=len(words) == 2)
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= MAKE_TARGETS


@pages
def test_the_links_of_the_page_lead_somewhere(page):
    """To a file that is there; what lies elsewhere is not asked for."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_decision_is_listed_and_of_one_form():
    """Numbered without a gap, named in the list by its title, and each says what it costs."""
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    listed = (DEPLOY / "adr/README.md").read_text()
    for page in DECISIONS:
        text = page.read_text()
        title = text.splitlines()[0].removeprefix("# ")
        assert title.startswith(f"{int(page.name[:4])}. ")
        assert f"- [{title}]({page.name})" in listed
        parts = re.findall(r"^(Status|\*\*Context\.|\*\*Decision\.|\*\*What it costs\.)", text, re.MULTILINE)
        assert parts == ["Status", "**Context.", "**Decision.", "**What it costs."], page.name
