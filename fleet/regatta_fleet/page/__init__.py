"""The status page: the fleet at a glance, in a browser, read-only.

Rendered whole by the server, so it works without scripts; a small script fetches the same address again every two
seconds and puts in the sections that changed. Nothing is loaded from elsewhere, a strict Content-Security-Policy
sees to that, and every text that a device or model gave is escaped by the template engine.
"""

from __future__ import annotations

from regatta_fleet.page.routes import cookie_name, page_cookie, router

__all__ = ["cookie_name", "page_cookie", "router"]
