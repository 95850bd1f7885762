"""Session templates, and sessions of them (spec/cli.md §4, §14)."""

from typing import Any

import click
from click.core import ParameterSource

from roost.cli.connection import connected
from roost.cli.options import (
    creation_arguments,
    name_option,
    owner_option,
    resource_options,
    starting_options,
)
from roost.cli.output import print_items, say, wants_json
from roost.cli.sessions import show_created
from roost.cli.waiting import telling_why
from roost.client.func.session import new_name

_OPTION_OF = {
    "mount_map": "mounts",
    "domain_name": "domain",
    "group_name": "group",
    "owner_access_key": "owner",
    "dependencies": "depends",
}
"""From which option an argument comes, where that has another name."""

_FILE = click.option(
    "-f",
    "--file",
    type=click.File(),
    default="-",
    help="A file with the template, as YAML or JSON.  [default: standard input]",
)


@click.command()
@click.argument("template_id")
@name_option
@owner_option
@click.option("-i", "--image", help="Another image.")
@click.option("-c", "--startup-command", help="What a batch session runs.")
@starting_options
@resource_options
@click.option("--no-mount", is_flag=True, help="None of the template's folders.")
@click.option("--no-env", is_flag=True, help="None of the template's environment variables.")
@click.option("--no-resource", is_flag=True, help="None of the template's resources.")
@click.pass_context
def create_from_template(
    ctx: click.Context,
    /,
    template_id: str,
    name: str | None,
    image: str | None,
    startup_command: str | None,
    no_mount: bool,
    no_env: bool,
    no_resource: bool,
    **options: Any,
) -> None:
    """Create a session of a template, or find the one of that name. What is given takes the template's place.

    Its name is written to stdout.
    """
    wanted = {
        key: value
        for key, value in creation_arguments(options).items()
        if ctx.get_parameter_source(_OPTION_OF.get(key, key)) not in (None, ParameterSource.DEFAULT)
    }
    wanted |= {key: value for key, value in (("image", image), ("startup_command", startup_command)) if value}
    if no_mount:
        wanted |= {"mounts": [], "mount_map": {}}
    if no_env:
        wanted["envs"] = {}
    if no_resource:
        wanted |= {"resources": {}, "resource_opts": {}}
    name = name if name is not None else new_name()
    with connected() as api, telling_why(name, options["owner"]):
        made = api.ComputeSession.create_from_template(template_id, name=name, **wanted)
    show_created(ctx, made)


@click.group()
def session_template() -> None:
    """Keep what sessions are to be, under an id."""


@session_template.command()
@_FILE
@click.option("-d", "--domain", help="The domain; that of the configuration, if not given.")
@click.option("-g", "--group", help="The group; that of the configuration, if not given.")
@owner_option
def create(file: Any, domain: str | None, group: str | None, owner: str | None) -> None:
    """Write a template down, and print its id."""
    with connected() as api:
        made = api.SessionTemplate.create(file.read(), domain, group, owner)
    _tell(made.template_id, f"session template {made.template_id} is created")


@session_template.command()
@click.argument("template_id")
@click.option("-f", "--format", "format_", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
@owner_option
def get(template_id: str, format_: str, owner: str | None) -> None:
    """Print a template, as the server writes it."""
    with connected() as api:
        click.echo(api.SessionTemplate(template_id, owner).get(format_))


@session_template.command(name="list")
@click.option("-a", "--list-all", is_flag=True, help="Those of everybody; for administrators.")
def list_(list_all: bool) -> None:
    """List your templates."""
    with connected() as api:
        found = api.SessionTemplate.list_templates(list_all)
    columns = {"name": "Name", "id": "ID", "created_at": "Created At", "user_email": "User", "group_name": "Group"}
    print_items(found, columns)


@session_template.command()
@click.argument("template_id")
@_FILE
@owner_option
def update(template_id: str, file: Any, owner: str | None) -> None:
    """Write another template in the place of one."""
    with connected() as api:
        api.SessionTemplate(template_id, owner).put(file.read())
    _tell(template_id, f"session template {template_id} is updated")


@session_template.command()
@click.argument("template_id")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@owner_option
def delete(template_id: str, force: bool, owner: str | None) -> None:
    """Delete a template. Sessions that were made of it go on."""
    if not force:
        click.confirm(f"delete session template {template_id}?", abort=True, err=True)
    with connected() as api:
        api.SessionTemplate(template_id, owner).delete()
    _tell(template_id, f"session template {template_id} is deleted")


def _tell(template_id: str, done: str) -> None:
    if wants_json():
        print_items([{"id": template_id}], {})
        return
    say(done)
    click.echo(template_id)
