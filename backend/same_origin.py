"""Whether a form was sent from a page of ours.

A browser sends a signed-in person's password along with a form that another site's page makes it
send. It also says where the form came from, in headers that no page can set: ``Sec-Fetch-Site``
over HTTPS and on loopback, ``Origin`` with every form. Programs send neither and have the routes
that take JSON, which a form cannot send (training_routes.py).
"""

from __future__ import annotations

from flask import Request

from edgesam_core.errors import Guarded


def check_same_origin(request: Request) -> None:
    """Refuse a form that does not come from this server's own page.

    Behind a proxy that speaks HTTP and changes ``Host`` no form passes: let it keep ``Host``.

    Raises:
        Guarded: It comes from elsewhere, or nothing says where it comes from.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        is_ours = site == "same-origin"
    else:
        ours = (f"http://{request.host}", f"https://{request.host}")
        is_ours = request.headers.get("Origin") in ours
    if not is_ours:
        raise Guarded(
            "This was not sent from the server's own page, so nothing was done. Open the page and "
            "press the button there. Behind a proxy, let it pass the header Host on."
        )
