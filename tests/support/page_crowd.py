"""People with browsers of their own, and what their browsers blocked."""

from typing import Any, Final

from page_lab import HEADER
from playwright.sync_api import Browser, BrowserContext, Page

PATIENCE_MS: Final = 60_000
WATCH: Final = """
    document.addEventListener("securitypolicyviolation", ({ effectiveDirective, blockedURI, documentURI }) =>
        tellFault(`Content Security Policy: ${effectiveDirective} blocks ${blockedURI} on ${documentURI}`));
"""


class PageCrowd:
    """Makes people; ``faults`` has what the policy of contents blocked, and what a script threw, in any of them."""

    def __init__(self, chromium: Browser, url: str) -> None:
        self._chromium, self._url = chromium, url
        self._contexts: list[BrowserContext] = []
        self.faults: list[str] = []

    def __call__(self, name: str | None = "ann", **more: Any) -> Page:
        """A page of somebody whom the proxy names, or of nobody, in a profile of its own."""
        named = {"extra_http_headers": {HEADER: name}} if name else {}
        context = self._chromium.new_context(base_url=self._url, **named, **more)
        context.set_default_timeout(PATIENCE_MS)
        context.expose_binding("tellFault", lambda _, fault: self.faults.append(fault))
        context.add_init_script(WATCH)
        context.on("weberror", lambda error: self.faults.append(str(error.error)))
        self._contexts.append(context)
        return context.new_page()

    def leave(self) -> None:
        """Close every browser."""
        for context in self._contexts:
            context.close()
