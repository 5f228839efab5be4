"""The demo's page as files: it must work under a strict Content-Security-Policy and be whole."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from twisted.trial.unittest import TestCase

import imserver.web

FOLDER = Path(imserver.web.__file__).parent
SCRIPTS = sorted(FOLDER.glob("*.js"))
TEST_IDS = {
    *("customer-input", "customer-send", "customer-thread"),
    *("agent-conversations", "agent-input", "agent-send", "agent-thread"),
}


class _Elements(HTMLParser):
    """Collects what the page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline_scripts = 0
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._in_script and data.strip():
            self.inline_scripts += 1

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


class PageTests(TestCase):
    """``index.html`` and the scripts beside it."""

    def setUp(self) -> None:
        """Read the page and its scripts."""
        page = _Elements()
        page.feed((FOLDER / "index.html").read_text("utf-8"))
        self.page = page
        self.scripts = {path.name: path.read_text("utf-8") for path in SCRIPTS}

    def test_nothing_inline(self) -> None:
        """No inline script, style or listener, which ``script-src`` and ``style-src 'self'`` would refuse."""
        self.assertEqual(self.page.inline_scripts, 0)
        for tag, attributes in self.page.found:
            self.assertNotEqual(tag, "style")
            self.assertNotIn("style", attributes, tag)
            self.assertEqual([name for name in attributes if name.startswith("on")], [], tag)

    def test_nothing_from_elsewhere(self) -> None:
        """Every file that the page and its scripts name lies beside it."""
        named = [
            str(attributes[name])
            for tag, attributes in self.page.found
            if tag != "use"
            for name in ("src", "href")
            if attributes.get(name)
        ]
        for text in self.scripts.values():
            named += re.findall(r'from "\./([^"]+)"', text)
        self.assertIn("demo.js", named)
        for name in named:
            self.assertTrue((FOLDER / name).is_file(), name)

    def test_no_html_from_text(self) -> None:
        """What users write is only ever text: nothing parses HTML, nothing evaluates."""
        for name, text in self.scripts.items():
            found = re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
            self.assertIsNone(found, name)

    def test_icons(self) -> None:
        """Every icon that is used is drawn."""
        drawn = {attributes["id"] for tag, attributes in self.page.found if tag == "symbol"}
        used = {str(attributes["href"]).removeprefix("#") for tag, attributes in self.page.found if tag == "use"}
        for text in self.scripts.values():
            used |= {f"i-{name}" for name in re.findall(r'icon\("(\w+)"\)', text)}
        self.assertEqual(used - drawn, set())

    def test_ids(self) -> None:
        """Ids are there once, those that browser tests look for among them."""
        ids = [attributes["id"] for _, attributes in self.page.found if "id" in attributes]
        self.assertEqual(len(ids), len(set(ids)))
        marked = {attributes["data-testid"] for _, attributes in self.page.found if "data-testid" in attributes}
        self.assertEqual(TEST_IDS - marked, set())
