"""``hilm serve`` and ``hilm completion``: the store in a browser, and commands completed by the shell."""

from __future__ import annotations

from pathlib import Path

import click

import hilm
from hilm.cli import options, output
from hilm.cli.output import clean
from hilm.errors import UsageError


@click.command(
    cls=options.Command,
    examples=(
        "hilm serve",
        "hilm serve --port 8000 --read-only",
        "hilm serve --auth-file people --add-user ada",
        "hilm serve --host 0.0.0.0 --auth-file people",
        "hilm serve --export-space my-space",
    ),
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 takes a free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Another lets other machines in.")
@click.option(
    "--auth-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Who may come in, with which password.",
)
@click.option("--add-user", metavar="NAME", help="Ask for a password, write it into FILE, and end.")
@click.option("--insecure", is_flag=True, help="Let other machines read without a password.")
@click.option("--read-only", is_flag=True, help="Leave out everything that writes.")
@click.option(
    "--export-space",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a Hugging Face Space, and end.",
)
@options.storage_dir
@options.switches
def serve(
    *,
    port: int,
    host: str,
    auth_file: Path | None,
    add_user: str | None,
    insecure: bool,
    read_only: bool,
    export_space: Path | None,
    storage_dir: Path | None,
) -> None:
    """Show the store in a browser: library, films, search, lineage, differences; until interrupted.

    Nothing is fetched from or sent to any other server. Only this machine can come in unless --host says
    otherwise, and then only with a password of --auth-file.
    """
    from hilm.web import access  # noqa: PLC0415 only this command pays for it

    if add_user is not None:
        if auth_file is None:
            raise UsageError("which file?", hint="--auth-file FILE --add-user NAME")
        access.add_user(
            auth_file, add_user, click.prompt("password", hide_input=True, confirmation_prompt=True, err=True)
        )
        output.emit({"user": add_user, "file": auth_file}, lambda _: f"{clean(add_user)} may come in now")
        return
    store = hilm.Store(storage_dir)
    store.require_folder()
    if export_space is not None:
        from hilm.web.space import export_space as export  # noqa: PLC0415 the same

        output.emit(
            export(store, export_space), lambda made: f"{made['models']} models are in {made['space']}"
        )
        return
    from hilm.web.server import serve as run  # noqa: PLC0415 the same

    run(
        store.path,
        host=host,
        port=port,
        users=access.read_users(auth_file) if auth_file else None,
        insecure=insecure,
        read_only=read_only,
        announce=lambda address: output.emit({"address": address}, lambda _: f"the store is at {address}"),
    )


@click.command(cls=options.Command, examples=("hilm completion bash", "hilm completion zsh"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> None:
    """Print what makes a shell complete commands, flags and names of models in the store.

    For bash: hilm completion bash > ~/.local/share/bash-completion/completions/hilm
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415 only this command pays for it

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has all three
    click.echo(kind(click.get_current_context().find_root().command, {}, "hilm", "_HILM_COMPLETE").source())
