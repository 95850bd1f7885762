"""`python -m roost.server`: serve in the foreground until SIGTERM or SIGINT."""

import asyncio
import logging
import resource
import signal
import sys
from pathlib import Path

import click
import structlog
import uvloop

from roost.server.app import serve_until
from roost.server.settings import Settings, load_settings
from roost.wire.errors import InvalidParameters, RoostError


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where everything is kept.")
@click.option("--engine", help="Where nodes come from.")
@click.option("--insecure-http", is_flag=True, default=None, help="Serve plain HTTP beyond loopback.")
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="A roost.toml.")
def main(
    listen: str | None, data_dir: Path | None, engine: str | None, insecure_http: bool | None, config: Path | None
) -> None:
    """Serve in the foreground until SIGTERM or SIGINT. Sessions go on when the server stops."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        host, port = _address(listen) if listen is not None else (None, None)
        flags = {
            "host": host,
            "port": port,
            "data_dir": data_dir,
            "engine": engine,
            "insecure_http": insecure_http,
        }
        settings = load_settings(flags, file=config)
        _take_descriptors()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings))
    except RoostError as error:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        sys.exit(1)


def _take_descriptors() -> None:
    """Take as many descriptors as the system lets us: a session needs five, and a usual limit is 1,024.

    Sandboxes get the usual number from their keeper.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve_until(settings, stop)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise InvalidParameters(f"not an address: {text!r}", hint="HOST:PORT, such as 127.0.0.1:8080")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    main(prog_name="roost serve")
