"""The demo's web page and the JavaScript SDK: static files, no build step, nothing loaded from elsewhere.

``im.js`` is the SDK: one class without dependencies, to be copied into any page. The rest is the demo's page, on
which a customer and an agent write to each other in one browser window:

- ``index.html``, ``demo.css``: the page and its looks, light and dark; ``kettle.svg`` and ``favicon.svg``: its pictures
- ``demo.js``: starts the page from ``GET /session.json``
- ``customer.js``, ``agent.js``: the two panes; ``pane.js``: what both have: a client, a composer, a banner
- ``thread.js``: the messages of one conversation; ``content.js``: what their bodies look like
- ``wirelog.js``: the frames that crossed the wire
- ``elements.js``: building and formatting without ever parsing HTML

The page works under ``Content-Security-Policy: default-src 'self'; connect-src *; img-src 'self' data: http: https:;
style-src 'self'``. What it needs from ``/session.json``: ``shop``, ``channel``, ``workers`` (WebSocket URLs),
``business``, ``dispatcher``, ``worker_http``, ``customer`` and ``agent`` (each with ``uid`` and ``token``); optional
``agents``, the uids of further agents to whom a conversation can be transferred. Each ``GET`` brings fresh tokens.
"""
