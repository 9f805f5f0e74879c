"""The entry point: the commands, and how an error ends one.

Every error is one sentence on stderr and an exit code: 1 failed, 2 bad request, 3 refused by the safety gate, 130 interrupted.
LYNX_VIDEO_DEBUG=1 adds the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from lynx_video import __version__
from lynx_video.cli.console import one_line
from lynx_video.errors import LynxError

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    # the reference's snake_case; click hands over names of options and words of choices, never paths or texts
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


COMMANDS = {
    "generate": "Make a clip of a person doing what the prompt says.",
    "verify": "Tell what made a clip, who signed it, and whether a bit of it was altered.",
    "replay": "Make a clip again from its own record, and say whether every pixel is the same.",
    "batch": "Make the clips that a list or a grid asks for, each once.",
    "serve": "Serve the model over HTTP, in the shape of OpenAI's video API.",
    "keys": "Make, list and revoke the keys of the service.",
    "ui": "Show a page on which clips are made, in a browser of this machine.",
    "plan": "Say what a clip would take here, in memory and time, without making it.",
    "demo": "Draw a person that the nano model never saw and make a clip of them.",
    "faces": "List the faces of a portrait and write a picture with their boxes.",
    "enroll": "Write an identity file from portraits of one person, for any number of clips.",
    "download": "Fetch models: show what, how large and under which licence, then ask.",
    "doctor": "Say what this machine can run and what is missing.",
    "dataset": "Make a training set from clips and pictures, or look at one.",
    "train": "Train an adapter on a set of `lynx-video dataset build`.",
    "train-report": "Write a page about a run: curves, settings, validation clips.",
    "evaluate": "Know how much it is them: score clips of this or any other system.",
    "bench": "Time several ways to make the same clip.",
    "calibrate": "Measure a base and adapter for --step-cache.",
}
"""The commands, and what the list of them says. Each is imported when it is called: a machine's worth of options takes its time."""
_MODULES = {"train-report": "train"}


class Commands(click.Group):
    """The commands of COMMANDS, each from the module of its name."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's own)
        """The command itself."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"lynx_video.cli.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's own)
        """The list of them, in the order in which one meets them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, commands={name: click.Command(name) for name in COMMANDS}, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="lynx-video")
def commands() -> None:
    """Video of a real person from one photo."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line (by default the process's own) and end the process with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code."""
    try:
        code = commands.main(list(arguments) if arguments is not None else None, "lynx-video", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except LynxError as error:
        return _end(one_line(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except (click.NoSuchOption, click.exceptions.NoSuchCommand) as error:
        return _end(_nearest(error), 2)
    except click.ClickException as error:
        return _end(one_line(error.format_message()), 2)
    except (click.Abort, KeyboardInterrupt) as error:
        return _end(one_line(error) or "interrupted; nothing half-written is left.", 130)
    except BrokenPipeError:  # whoever read stdout has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _end("out of memory; try fewer frames or a smaller size.", 1)
    except Exception as error:  # noqa: BLE001 (the last resort: one sentence instead of a traceback)
        if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
            return _end(
                "out of GPU memory; try a --vram-budget (a smaller one, if there was one), fewer frames or a smaller size.", 1
            )
        return _end(
            f"internal error: {type(error).__name__}: {one_line(error)} (LYNX_VIDEO_DEBUG=1 shows the traceback)", 1, prefix=""
        )


def _nearest(error: click.NoSuchOption | click.exceptions.NoSuchCommand) -> str:
    what, name = ("option", error.option_name) if isinstance(error, click.NoSuchOption) else ("command", error.command_name)
    if error.possibilities:
        return f"no such {what} {name}; did you mean {error.possibilities[0]}?"
    return f"no such {what} {name}; --help lists what there is."


def _end(sentence: str, code: int, prefix: str = "error: ") -> int:
    if os.environ.get("LYNX_VIDEO_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    print(f"{prefix}{sentence}", file=sys.stderr, flush=True)
    return code
