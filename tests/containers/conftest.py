"""One installation for all checks, made at their beginning and taken away at their end, whatever happens in between."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.containers.docker import LOG_LINES, DockerError, Installation, unusable

_prepared: list[Installation] = []


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """The image, built; nothing runs yet. Ends the session with a sentence where no Docker Engine is."""
    reason = unusable()
    if reason is not None:
        pytest.exit(reason, returncode=1)
    made = Installation.prepare()
    made.remove()  # what a run left that was killed
    made = Installation.prepare()
    _prepared.append(made)
    try:
        made.compose("build")
        yield made
    finally:
        _prepared.clear()
        made.remove()


@pytest.fixture(scope="session")
def api_key(installation: Installation) -> str:
    """The first start of all, and what an operator does then: a price, org 1 with 1,000.00 USD, and its key, given back."""
    installation.start()
    installation.operator("tier", "set", "bolt", "0.08")
    assert "Org 1" in installation.operator("org", "create", "Acme")
    installation.operator("adjust", "1", "--cents", "100000", "--reason", "First credit", "--key", "first-1")
    return next(
        word for word in installation.operator("key", "create", "1").split() if word.startswith("sk_")
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A failure comes with what the containers were doing."""
    report = yield
    if report.failed:
        for installation in _prepared:
            report.sections += [
                ("containers", _containers(installation)),
                ("their logs", _logs(installation)),
            ]
    return report


def _containers(installation: Installation) -> str:
    try:
        return installation.compose("ps", "--all")
    except DockerError as error:
        return str(error)


def _logs(installation: Installation) -> str:
    try:
        return installation.logs(lines=LOG_LINES)
    except DockerError as error:
        return str(error)
