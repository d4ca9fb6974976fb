"""Tasks, each in an environment of its own: `nox -l` lists them, `nox -s unit` runs one."""

import nox

nox.options.sessions = ["lint", "unit"]
OLDEST = ("torch==2.11.0", "torchvision==0.26.0")
"""The oldest versions that pyproject.toml supports."""


def install(session: nox.Session, *packages: str) -> None:
    session.install("-c", "constraints.txt", "-e", ".[dev]", *packages)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff and mypy."""
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def unit(session: nox.Session) -> None:
    """The fast part of the tests: no other process, under a minute."""
    install(session)
    session.run("python", "-m", "pytest", "-m", "unit", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documents as a site, in site/; warnings are errors. `nox -s docs -- serve` shows them while you write."""
    needed = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]["docs"]  # without torch
    session.install("-c", "constraints.txt", *needed)
    session.run("python", "-m", "mkdocs", *(session.posargs or ["build"]), env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite."""
    install(session)
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """The whole suite with the oldest supported torch."""
    session.install("-e", ".[test]", *OLDEST)
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Every CUDA path once, and the speed on one card."""
    install(session)
    session.run("python", "-m", "pytest", "-m", "gpu", *session.posargs)
    session.run("python", "benchmarks/gpu.py")


@nox.session
def gate(session: nox.Session) -> None:
    """What has to pass before a change lands."""
    session.run("bash", ".ci/run", external=True)
