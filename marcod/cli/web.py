"""`marcod web`: the page, on one's own machine or behind a proxy."""

import threading
import webbrowser

import click

from marcod import app
from marcod.cli.common import output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.lazy import LazyGroup
from marcod.settings import Settings


@click.group(
    cls=LazyGroup,
    lazy={"web_user:user": "Manage the accounts of the page: add people, change passwords, end sessions."},
    invoke_without_command=True,
)
@click.option("--open", "opens", is_flag=True, help="Show the page in your browser")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the page, instead of web.port")
@click.pass_context
def web(ctx: click.Context, opens: bool, port: int | None) -> None:
    """Serve the page: look at plates and drops, and label them, in a browser.

    It runs until Ctrl-C. As a service it is the role `web` of `marcod run`, which marcod-web.service starts.
    """
    if ctx.invoked_subcommand is None:
        _serve(opens=opens, port=port)


@pass_settings
def _serve(settings: Settings, *, opens: bool, port: int | None) -> None:
    from marcod.web.server import Page

    if port is not None:
        settings = settings.model_copy(update={"web": settings.web.model_copy(update={"port": port})})
    # Makes the schema and a champion in a new database.
    with app.open_app(settings), app.stop_event_on_signals() as stop:
        page = Page(settings)
        output.echo(f"The page is at {page.address}; Ctrl-C ends it", err=True)
        # The main thread has the signals.
        serving = threading.Thread(target=page.run, args=(stop, lambda: None), name="web", daemon=True)
        serving.start()
        if opens:
            threading.Thread(target=webbrowser.open, args=(page.address,), daemon=True).start()
        while serving.is_alive():
            serving.join(0.5)
