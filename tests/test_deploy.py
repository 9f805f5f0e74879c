"""What `deploy/` names is there: commands and options, files, extras, routes, volumes, variables."""

from __future__ import annotations

import fnmatch
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the command line makes of arguments, without running them. Raises click's errors."""
    from lynx_video.cli.main import commands as group

    command: click.Command = group
    context = click.Context(command, info_name="lynx-video")
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(context, arguments)
        assert name is not None
        assert found is not None
        command = found
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=name, parent=context)
    return {**command.make_context(command.name, list(arguments), parent=context).params, "command": command.name}


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest) in turn, lines joined."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.strip() and line[0] != "#"]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in joined.splitlines()]


def values(instruction: str) -> list[str]:
    return [rest for name, rest in dockerfile() if name == instruction]


def arguments() -> dict[str, str]:
    return {name: default.strip('"') for name, _, default in (one.partition("=") for one in values("ARG"))}


def compose(name: str = "compose.yaml") -> Any:
    """A compose file with its variables at their defaults."""

    def default(match: re.Match[str]) -> str:
        return match[2] or "" if match[1] == ":-" else "secret"

    return yaml.safe_load(re.sub(r"\$\{\w+(:[-?])([^}]*)\}", default, (DEPLOY / name).read_text()))


def commands() -> list[str]:
    """The lines of the README's code blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_what_the_image_is_made_from_is_there_and_sent() -> None:
    ignore = [line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignore[0] == "*"
    sent = [line[1:] for line in ignore if line[0] == "!"]
    copied = [one for rest in values("COPY") if not rest.startswith("--from") for one in rest.split()[:-1]]
    assert sorted(one.removeprefix("./") for one in copied) == sorted(sent)
    for name in sent:
        assert (ROOT / name).exists(), name
    # What the package is built from: its readme and licence are named in pyproject.toml.
    assert {"pyproject.toml", "README.md", "LICENSE", "src"} <= set(sent)


def test_extras_exist() -> None:
    named = [arguments()["EXTRAS"], *re.findall(r"EXTRAS=([\w,-]+\w)", (DEPLOY / "README.md").read_text())]
    named += re.findall(r"'\.\[([\w,-]+)\]'", (DEPLOY / "README.md").read_text())
    named += re.findall(r"extras `([\w,-]+)`", (DEPLOY / "README.md").read_text())
    assert len(named) == 4
    for extra in ",".join(named).split(","):
        assert extra in EXTRAS, extra
    assert {"serve", "postgres"} <= set(arguments()["EXTRAS"].split(","))


def test_the_image_is_not_root_keeps_its_data_and_says_how_it_is() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", values("USER")[-1])
    volumes = json.loads(values("VOLUME")[0])
    variables = dict(re.findall(r"(\w+)=(\S+)", " ".join(values("ENV"))))
    assert variables["LYNX_VIDEO_HOME"].startswith("/data/"), (
        "a development certificate that is made anew each time helps nobody"
    )
    options = parsed(json.loads(values("CMD")[0]))
    assert {str(options["data"]), str(options["models"])} == set(volumes)
    assert str(options["port"]) == values("EXPOSE")[0]
    assert (options["command"], options["host"]) == ("serve", "0.0.0.0")
    assert json.loads(values("ENTRYPOINT")[0]) == ["lynx-video"]
    check = values("HEALTHCHECK")[0]
    port, path = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", check).groups()  # type: ignore[union-attr]
    assert port == values("EXPOSE")[0]
    assert path in routes()
    code = json.loads(check.partition("CMD ")[2])
    assert code[:2] == ["python", "-c"]
    compile(code[2], "healthcheck", "exec")


def routes() -> set[str]:
    from lynx_video.server.routes import identities, status, videos

    return {route.path for one in (identities, status, videos) for route in one.router.routes}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_name_what_is_there(name: str) -> None:
    base, file = compose(), compose(name)
    service = file["services"]["service"]
    assert set(file["services"]) <= set(base["services"])
    assert set(service["build"].get("args", {})) <= set(arguments())
    if name == "compose.yaml":
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
        options = parsed(service["command"])
        assert {str(options["data"]), str(options["models"])} == {one.split(":")[1] for one in service["volumes"]}
        assert options["database"] == "postgresql://lynx@database/lynx"
        assert service["ports"] == [f"127.0.0.1:8000:{options['port']}"], "keys do not travel in plain text"
        assert file["services"]["tls"]["command"].endswith(f"service:{options['port']}")
        who = file["services"]["database"]["environment"]
        assert (who["POSTGRES_USER"], who["POSTGRES_DB"]) == ("lynx", "lynx")
        mounted = [one.split(":")[0] for part in file["services"].values() for one in part.get("volumes", [])]
        assert set(mounted) == set(file["volumes"])
    for variable in re.findall(r"\$\{(\w+)", (DEPLOY / name).read_text()):
        assert re.search(rf"^# +{variable} ", (DEPLOY / "compose.yaml").read_text(), re.MULTILINE), variable


def test_no_secret_is_in_a_file() -> None:
    for file in DEPLOY.rglob("*"):
        if file.is_file() and file.name != ".env":
            text = file.read_text()
            for value in re.findall(r"(?:PASSWORD|SECRET|TOKEN|KEY)\w*[:=] *(\S+)", text):
                assert value.startswith(("${", '"$', "$(")), f"{file.name}: {value}"
            assert not re.search(r"://\w+:[^@/\s]+@", text), file.name
    assert fnmatch.filter((DEPLOY / ".gitignore").read_text().splitlines(), ".env")


def test_the_commands_of_the_readme_are_those_of_the_program() -> None:
    seen = []
    for line in commands():
        words = shlex.split(line, comments=True)
        for at, word in enumerate(words):
            if (
                word in ("lynx-video", "service")
                and at + 1 < len(words)
                and not words[at + 1].startswith("-")
                and words[at + 1] != "."
            ):
                seen.append(parsed(words[at + 1 :])["command"])
                break
        for word in words:
            if word.startswith("deploy/") and not word.endswith(".env"):
                assert (ROOT / word).is_file(), word
    assert sorted(seen) == ["add", "add", "add", "download"]
    for path in re.findall(r"8000(/\w+)", "\n".join(commands())):
        assert path in routes()
    for name in re.findall(r"^\| `(\S+)` \|", (DEPLOY / "README.md").read_text(), re.MULTILINE):
        assert (DEPLOY / name).is_file()
    assert (ROOT / "tests" / "server" / "test_ray_serve.py").is_file()


def test_a_wrong_option_is_seen() -> None:
    with pytest.raises(click.UsageError, match="No such option"):
        parsed(["serve", "--hots", "0.0.0.0"])
    with pytest.raises(click.UsageError, match="No such command"):
        parsed(["serv"])


@pytest.mark.filterwarnings("ignore")  # Ray's and its libraries' own, at import
def test_the_ray_config_is_one_that_serve_takes() -> None:
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    from lynx_video.server.ray_serve import terms_of

    config = yaml.safe_load((DEPLOY / "ray-serve.yaml").read_text())
    (app,) = ServeDeploySchema.model_validate(config).applications
    # Keys that it does not know it passes over.
    assert set(config) <= set(ServeDeploySchema.model_fields)
    assert set(config["applications"][0]) <= set(ServeApplicationSchema.model_fields)
    module, _, name = app.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    terms = terms_of(app.args)
    assert terms.store.database, "SQLite is not for several machines"
    assert terms.setup.signing.signing_key is not None, "each node would sign with another development key"
    assert terms.cluster.max_workers > terms.cluster.min_workers
    assert f"--data {terms.store.data} --database {terms.store.database}" in (DEPLOY / "README.md").read_text()
