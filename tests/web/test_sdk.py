"""The JavaScript SDK, and how the page shows bodies: their own tests run under node."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

NODE = shutil.which("node")
OLDEST = 20


class SdkTests(TestCase):
    """``im.test.mjs`` against ``imserver/web/im.js``, with a fake WebSocket, clock and chance, no network;
    ``content.test.mjs`` against ``imserver/web/content.js``, with a document that is just enough of one."""

    if NODE is None:
        skip = "node is not on the PATH; the JavaScript SDK is tested with it"

    async def test_sdk(self) -> None:
        """Every test of the SDK passes; what fails is shown as node says it."""
        await self.run_node("im.test.mjs", 40)

    async def test_content(self) -> None:
        """So does every one of what bodies look like."""
        await self.run_node("content.test.mjs", 5)

    async def run_node(self, name: str, least: int) -> None:
        """Run the tests of a file, of which there are more than so many."""
        assert NODE is not None
        version, _, _ = await getProcessOutputAndValue(NODE, ["--version"])
        found = re.match(rb"v(\d+)\.", version)
        if found is None or int(found[1]) < OLDEST:
            self.skipTest(f"node is {version.decode().strip()}, the tests need {OLDEST} or later")
        tests = Path(__file__).with_name(name)
        output, errors, code = await getProcessOutputAndValue(NODE, ["--test", "--test-reporter=tap", str(tests)])
        text = output.decode(errors="replace")
        self.assertEqual(code, 0, text + errors.decode(errors="replace"))
        passed = re.search(r"^# pass (\d+)$", text, re.MULTILINE)
        assert passed is not None, text
        self.assertGreater(int(passed[1]), least, "node ran fewer tests than there are")
