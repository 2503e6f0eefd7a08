"""Every answer, and every webhook, against Stripe's own example of its object and against the SDK's annotations."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from metering.sandbox.stripe.endpoints import OPERATIONS
from metering.sandbox.stripe.sandbox import WEBHOOK_SECRET
from tests.sandbox.stripe import sdk_types, stripe_examples
from tests.sandbox.stripe.receiver import receiver
from tests.sandbox.stripe.walk import Answered, RecordingSandbox, objects_in, walk

FROM_EXAMPLES = {
    "charge.refunds": "is left out unless it is expanded, since API version 2022-11-15; the example is an expanded one",
    "event.data.object": "is of the kind that the event tells of, and compared as such; the example's is a plan",
    "payment_method.metadata": "holds whatever the caller gave",
}
"""Where answers differ from Stripe's examples, there and below, and why."""

FROM_SDK: dict[str, str] = {}
"""Where answers differ from what the SDK says."""


@pytest.fixture(scope="module")
def answers() -> list[Answered]:
    """What a walk through all endpoints was answered; events last, as they came as webhooks."""
    with receiver() as taker, RecordingSandbox(webhook_url=taker.url) as sandbox:
        answered = sandbox.record()
        walk(sandbox)
        assert sandbox.wait_delivered(60)
        told = [each.event(WEBHOOK_SECRET) for each in taker.deliveries]
    return answered + [Answered("webhook", 200, event) for event in told]


@pytest.fixture(scope="module")
def objects(answers: list[Answered]) -> list[dict[str, Any]]:
    return [each for answer in answers for each in objects_in(answer.body)]


def _of_sdk(value: dict[str, Any], seen: list[str]) -> Iterator[str]:
    kind = value["object"]
    shown = {name: part for name, part in value.items() if kind != "error" or name != "object"}
    yield from sdk_types.of_object(shown, sdk_types.CLASSES[kind], kind, seen)


def _of_example(value: dict[str, Any], seen: list[str]) -> Iterator[str]:
    kind = value["object"]
    if kind != "error":  # of errors there is no example
        name = f"deleted_{kind}" if value.get("deleted") else kind
        yield from stripe_examples.differences(value, stripe_examples.examples()[name], kind, seen)


def _unlisted(found: set[str], listed: dict[str, str]) -> tuple[list[str], list[str]]:
    """The differences that no line of the list covers, and the lines that cover none."""
    paths = {each: each.partition(":")[0] for each in found}

    def covers(line: str, path: str) -> bool:
        return path == line or path.startswith(f"{line}.")

    unlisted = sorted(each for each, path in paths.items() if not any(covers(line, path) for line in listed))
    return unlisted, [line for line in listed if not any(covers(line, path) for path in paths.values())]


def test_every_endpoint_was_asked_and_answered(answers: list[Answered]) -> None:
    answered = {each.operation for each in answers if each.status == 200}
    assert answered == OPERATIONS | {"webhook"}


def test_every_kind_of_object_was_answered(objects: list[dict[str, Any]]) -> None:
    assert {each["object"] for each in objects} == sdk_types.CLASSES.keys()


@pytest.mark.parametrize(
    ("differences", "listed", "at_least"),
    [(_of_sdk, FROM_SDK, 1_000), (_of_example, FROM_EXAMPLES, 300)],
    ids=["sdk", "examples"],
)
def test_answers_have_the_fields_and_types_of(
    objects: list[dict[str, Any]],
    differences: Callable[[dict[str, Any], list[str]], Iterator[str]],
    listed: dict[str, str],
    at_least: int,
) -> None:
    seen: list[str] = []
    found = {each for one in objects for each in differences(one, seen)}
    assert _unlisted(found, listed) == ([], [])
    assert len(set(seen)) >= at_least  # so many different fields were compared


def test_pages_are_pages(answers: list[Answered]) -> None:
    pages = [each for each in answers if each.body.get("object") == "list"]
    assert {each.operation for each in pages} == {each for each in OPERATIONS if each.endswith(".list")}
    found = [d for each in pages for d in sdk_types.of_list(each.body, None, each.operation, "stripe", [])]
    assert found == []


@pytest.mark.parametrize("kind", ["charge", "customer", "dispute", "payment_intent", "payment_method"])
@pytest.mark.parametrize("differences", [_of_sdk, _of_example], ids=["sdk", "examples"])
def test_the_comparison_finds_what_is_wrong(
    objects: list[dict[str, Any]],
    kind: str,
    differences: Callable[[dict[str, Any], list[str]], Iterator[str]],
) -> None:
    good = next(each for each in objects if each["object"] == kind and not each.get("deleted"))
    known = list(differences(good, []))
    for wrong in ({"created": "1"}, {"created": True}, {"livemode": 0}, {"id": 7}, {"metadata": ["x"]}):
        (name,) = wrong
        (found,) = [each for each in differences(good | wrong, []) if each not in known]
        assert found.startswith(f"{kind}.{name}: ")
        assert f"{kind}.created: missing" in list(differences({"id": good["id"], "object": kind}, []))


def test_the_sdk_knows_what_is_unknown_or_null_or_no_word_of_it(objects: list[dict[str, Any]]) -> None:
    good = next(each for each in objects if each["object"] == "payment_intent")
    for wrong, found in (
        ({"colour": 1}, ["payment_intent.colour: unknown"]),
        ({"amount": None}, ["payment_intent.amount: null"]),
        (
            {"payment_method_options": {"card": {"x": 1}}},
            ["payment_intent.payment_method_options.card.x: unknown"],
        ),
    ):
        assert list(_of_sdk(good | wrong, [])) == found
    (word,) = _of_sdk(good | {"status": "paid"}, [])
    assert word.startswith("payment_intent.status: 'paid' is none of ")


def test_nothing_private_is_shown(answers: list[Answered]) -> None:
    shown = json.dumps([each.body for each in answers])
    assert "_sandbox" not in shown
    assert "4000002760003184" not in shown


def test_nothing_is_live(objects: list[dict[str, Any]]) -> None:
    assert [each for each in objects if each.get("livemode", False)] == []
