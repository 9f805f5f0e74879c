"""The entry point: the commands, and how an error ends one.

Every error is one sentence on stderr and an exit code: 1 failed, 2 bad request, 3 refused by the safety gate, 130 interrupted.
LYNX_VIDEO_DEBUG=1 adds the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

from lynx_video import __version__
from lynx_video.cli.batch import batch
from lynx_video.cli.bench import bench
from lynx_video.cli.calibrate import calibrate
from lynx_video.cli.console import one_line
from lynx_video.cli.dataset import dataset
from lynx_video.cli.demo import demo
from lynx_video.cli.doctor import doctor
from lynx_video.cli.download import download
from lynx_video.cli.draw import draw
from lynx_video.cli.enroll import enroll
from lynx_video.cli.evaluate import evaluate
from lynx_video.cli.faces import faces
from lynx_video.cli.generate import generate
from lynx_video.cli.keys import keys
from lynx_video.cli.plan import plan
from lynx_video.cli.replay import replay
from lynx_video.cli.serve import serve
from lynx_video.cli.train import train, train_report
from lynx_video.cli.ui import ui
from lynx_video.cli.verify import verify
from lynx_video.errors import LynxError

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    # the reference's snake_case; click hands over names of options and words of choices, never paths or texts
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="lynx-video")
def commands() -> None:
    """Video of a real person from one photo."""


for _command in (
    generate,
    verify,
    replay,
    batch,
    serve,
    keys,
    ui,
    plan,
    demo,
    faces,
    enroll,
    download,
    doctor,
    dataset,
    train,
    train_report,
    evaluate,
    bench,
    calibrate,
):
    commands.add_command(_command)
dataset.add_command(draw)


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
