"""The demo's page in a real browser: a customer and an agent write to each other in one window."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.browser import PROGRAM, Browser
from tests.integration.stack import Demo


class PageTests(SynchronousTestCase):
    """What a newcomer sees after `make demo`."""

    if PROGRAM is None:
        skip = "Chromium is not installed (Debian: apt-get install chromium)"

    def test_conversation(self) -> None:
        """A question from the left arrives on the right, an answer comes back, and nothing complains."""
        demo = Demo()
        self.addCleanup(demo.stop)
        browser = Browser(demo.ready["web"])
        self.addCleanup(browser.close)
        browser.wait("document.body?.dataset.ready === 'true'")
        browser.write("customer-input", "Is the kettle still in stock?")
        browser.click("customer-send")
        browser.wait("document.querySelector('#agent-conversations [data-conversation]')")
        browser.click("agent-conversations [data-conversation]")
        browser.wait("document.querySelector('#agent-thread').innerText.includes('Is the kettle still in stock?')")
        browser.write("agent-input", "Yes, three of them.")
        browser.click("agent-send")
        browser.wait("document.querySelector('#customer-thread').innerText.includes('Yes, three of them.')")
        browser.wait("!document.querySelector('#customer-thread [data-status=sending]')")
        demo.dispatcher(
            "POST", "/v1/push", {"to": "demo-customer", "type": "text", "body": {"text": "A parcel is on its way"}}
        )
        browser.wait("document.body.innerText.includes('A parcel is on its way')")
        self.assertEqual(browser.problems, [])
