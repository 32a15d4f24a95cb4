"""The status page: what all processes of an application are doing, in a browser.

    guard.py   who may look
    view.py    what there is to see
    site.py    a request in, a response out; knows no server
    wsgi.py    the shell for WSGI servers
    asgi.py    the shell for ASGI servers
    static/    the page itself, and uPlot, which draws its charts (MIT licence)

The page asks for news once a second. A stream of events would be a little quicker, and would hold a WSGI worker for as
long as somebody looks: a few open pages, and the application has nobody left to serve its users.
"""

from .asgi import asgi
from .wsgi import wsgi

__all__ = ["asgi", "wsgi"]
